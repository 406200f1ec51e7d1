"""MiniLLM: reverse KL of whole answers, by policy gradient on answers the teacher helps write."""

from collections.abc import Iterator, Set
from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor

from stillroom.core import Batch, Failure, Method, Needs, Paper, Run, Teacher, Term, Update
from stillroom.losses.divergences import forward_kl, reverse_kl
from stillroom.losses.per_row import per_row
from stillroom.losses.policy import clipped_surrogate, label_logp, later_returns
from stillroom.rollouts.guided import Mixed


@dataclass(frozen=True, kw_only=True)
class MiniLLM(Method):
    """On-policy distillation by the reverse KL of whole answers, a policy gradient.

    With the student q, the teacher p, the reward ``r_t = log p(y_t) - log q(y_t)`` of a token and
    the return ``R_{t+1}`` of the tokens after it, the gradient of ``KL(q(y | x) || p(y | x))`` is
    that of ``sum_t KL(q(. | y_<t) || p(. | y_<t)) - R_{t+1} log q(y_t | y_<t)``, on average over
    answers y of the student. The first part is exact over the vocabulary and sees one token alone;
    the second tells a token what it does to those that come later.

    - answers are drawn from ``(1 - a) q + a p``, token by token, and weighted by
      ``w_t = q(y_t) / ((1 - a) q(y_t) + a p(y_t))``;
    - ``R_{t+1}`` is divided by how many tokens it sums, so that short answers are not preferred;
    - ``L = mean_t[-min(w rho A, clamp(w rho, 1 - clip, 1 + clip) A) + KL(q || p)] + corpus_weight
      ((1 - k) CE(text) + k KL(p || q))`` with ``rho = q / q_old``, A the whitened returns, and the
      last part over plain text (``data.corpus``).

    Differences: a step samples, and makes ``epochs`` updates with all of it; the paper makes four
    passes of small batches over 256 answers. A corpus batch serves all updates of its step. w of
    one token is the paper's approximation: the exact weight is the product over the answer; the
    KL part has none, as in the authors' code. The number of summed tokens divides, where the
    paper's ``T - t - 1`` is one less. Means run over the tokens of all answers. No discount (the
    code has 0.95), and no entropy of the teacher in the last part, a constant. Answers are drawn
    at temperature 1 from all tokens, whatever the recipe's sampling says, since w and r are of
    these. Unconfirmed: that rewards are clipped after they are scaled, and that the deviation is
    the biased one.

    Args:
        teacher_share: a, how much of the teacher is in the distribution that is drawn from.
        samples: answers to each prompt.
        single_step: the exact part; without it the return counts the token's own reward, too.
        length_norm: whether returns are divided by how many tokens they sum.
        reward_scale: rewards are divided by it; whitening takes it out again, but for the clip.
        reward_clip: rewards are kept within this of 0.
        whiten: whether returns get mean 0 and deviation 1 over all tokens of the step.
        clip: how far ``w rho`` may leave 1; the teacher's share alone may take w so far.
        epochs: updates of a step with the same samples.
        corpus_weight: of the part on plain text; 0 reads none.
        corpus_teacher: k, the teacher's share of that part.
    """

    paper = Paper(
        "2306.08543", "Gu et al., 2024", "MiniLLM: Knowledge Distillation of Large Language Models"
    )
    needs = Needs(
        teacher={"logits"}, student={"logits"}, rollouts=True, fresh=True,
        streams={"train", "corpus"},
    )  # fmt: skip
    modality = "text"
    family = "on-policy"

    teacher_share: Annotated[float, Ge(0), Le(1)] = 0.2
    samples: Annotated[int, Ge(1)] = 1
    single_step: bool = True
    length_norm: bool = True
    reward_scale: Annotated[float, Gt(0)] = 0.5
    reward_clip: Annotated[float, Gt(0)] = 100.0
    whiten: bool = True
    clip: Annotated[float, Gt(0)] = 0.2
    epochs: Annotated[int, Ge(1)] = 1
    corpus_weight: Annotated[float, Ge(0)] = 1.0
    corpus_teacher: Annotated[float, Ge(0), Le(1)] = 0.5

    def streams(self) -> Set[str]:
        return self.needs.streams if self.corpus_weight else self.needs.streams - {"corpus"}

    def check(self, teacher: Teacher) -> None:
        if self.teacher_share and "weights" not in teacher.signals:
            raise Failure(
                f"minillm: a teacher that helps write answers is a language model in this process; "
                f"this one gives {sorted(teacher.signals)}. Set teacher_share to 0, and it scores "
                "the student's answers alone"
            )

    def prepare(self, run: Run, batch: Batch) -> Batch:
        told = {"temperature": 1.0, "top_p": 1.0, "top_k": None}
        if self.teacher_share:
            told["guide"] = Mixed(share=self.teacher_share)
        made = run.rollout(batch, self.samples, **told)
        said = per_row(_both, run.ask("student", made), run.teacher(made), made.labels)
        weight = made["importance"].to(said) if self.teacher_share else torch.ones_like(said[:, 0])
        old, reward = said[:, 0], said[:, 1] - said[:, 0]
        run.log(**{"minillm/reward": reward, "minillm/weight": weight})
        run.log(**{"minillm/tokens": torch.bincount(made.owner)})
        reward = (reward / self.reward_scale).clamp(-self.reward_clip, self.reward_clip)
        own = not self.single_step
        advantage = later_returns(reward, made.owner, made.mask, mean=self.length_norm, own=own)
        if self.whiten:
            advantage = _whitened(run, advantage, made.mask)
        made = made.add_rows(before=old - weight.log(), advantage=advantage)
        return made.add(corpus=run.next("corpus")) if self.corpus_weight else made

    def updates(self, run: Run, batch: Batch) -> Iterator[Update]:
        inputs = {name: batch[name] for name in ("before", "advantage")}
        for _ in range(self.epochs):
            teacher = run.teacher(batch) if self.single_step else None
            value = per_row(self._policy, run.student(batch), teacher, batch.labels, **inputs)
            terms = [Term(value)]
            if self.corpus_weight:
                corpus = batch.corpus
                teacher = run.teacher(corpus) if self.corpus_teacher else None
                value = per_row(self._text, run.student(corpus), teacher, corpus.labels)
                terms.append(
                    Term(value, over="corpus.mask", weight=self.corpus_weight, name="corpus")
                )
            yield Update(terms)

    def _policy(
        self,
        student: Tensor,
        teacher: Tensor | None,
        labels: Tensor,
        before: Tensor,
        advantage: Tensor,
    ) -> Tensor:
        """``before``: log q_old - log w, so that the ratio to it is w rho."""
        logp = label_logp(student, labels)
        value = clipped_surrogate(logp, before, advantage, self.clip)
        return value if teacher is None else value + reverse_kl(student, teacher)

    def _text(self, student: Tensor, teacher: Tensor | None, labels: Tensor) -> Tensor:
        k, value = self.corpus_teacher, -label_logp(student, labels)
        return value if teacher is None else (1 - k) * value + k * forward_kl(student, teacher)


def _both(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    return torch.stack([label_logp(student, labels), label_logp(teacher, labels)], -1)


def _whitened(run: Run, value: Tensor, mask: Tensor) -> Tensor:
    """With mean 0 and deviation 1 over the masked rows of all processes; 0 where all are alike."""

    def mean(given: Tensor) -> Tensor:
        sums = torch.stack([(given * mask).sum(), mask.sum().to(given)])
        total, count = run.gather(sums[None]).sum(0)
        return total / count

    value = value.double()
    centred = value - mean(value)
    return (centred * (mean(centred.square()) + 1e-8).rsqrt()).to(mask)
