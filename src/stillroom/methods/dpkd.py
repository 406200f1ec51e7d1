"""Direct preference knowledge distillation: the teacher's choice over the student's own."""

from collections.abc import Iterator, Set
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Gt, Le, Lt
from torch import Tensor

from stillroom.core import Batch, Failure, Method, Needs, Paper, Run, Teacher, Term, Update
from stillroom.losses.divergences import forward_kl
from stillroom.losses.per_row import per_row
from stillroom.losses.policy import label_logp, nll
from stillroom.losses.preference import answer_logp, preference, shortfall

Pair = tuple[Tensor, Tensor]


@dataclass(frozen=True, kw_only=True)
class DPKD(Method):
    """Preference distillation: DPO with the teacher as reference, teacher's choice against own.

    ``L = (1 - w) CE(y) + w L_pref + corpus_weight ((1 - w) CE + w KL(p || q))``, p the teacher, q
    the student, the last part over plain text (``data.corpus``).

    - ``level: token``, as in the authors' code: at each place of the answer ``a = argmax p``, ``b =
      argmax q``, ``L_pref = mean_j -log sigmoid(beta D_j)`` with ``D = log q(a) / q(b) - log p(a) /
      p(b)``. Where both choose the same token that is log 2 without a gradient;
      ``dpkd/active`` is the share of the other places.
    - ``level: sequence``, as in the paper's text: ``L_pref = -log sigmoid(beta (log q(y_t) / p(y_t)
      - log q(y_s) / p(y_s)))``, y_t the data's answer, y_s one that the student samples in this
      step, without gradient through sampling. At q = p its gradient is not 0.

    ``dpkd/margin`` is the mean of what beta multiplies, the implicit reward of the teacher's choice
    above the student's.

    Differences: ``corpus_weight`` is 0 (theirs 0.5), so that no further text is needed. The
    teacher's entropy, a constant, is left out of the corpus part. The mean of tokens runs over the
    batch. What the paper writes to be drawn from the teacher are the data's answers here.
    Unconfirmed: that the penalty of ``dpo-positive`` stands within the sigmoid, as in the paper
    that it is from.

    Args:
        level: what is compared, see above.
        beta: how far from the teacher the student may go for its reward; smaller is farther.
        preference_weight: w; 0, without a corpus, is plain fine-tuning.
        variant: ``dpo`` is the paper's; ``reference-free`` leaves p out of D, ``ipo`` has ``(D - 1
            / (2 beta))^2``, ``dpo-positive`` takes ``penalty max(0, log p / q)`` of the teacher's
            choice from D.
        penalty: of ``dpo-positive``.
        smoothing: share of pairs that count the other way round; not with ``ipo``.
        length_norm: whether log-probabilities of sequences are means over tokens, not sums; beta
            then wants to be larger by about the length.
        sample_temperature: of the student's own answers.
        corpus_weight: of the part on plain text; 0 reads none.
    """

    paper = Paper(
        "2406.19774", "Li et al., 2024", "Direct Preference Knowledge Distillation for Large "
        "Language Models"
    )  # fmt: skip
    needs = Needs(
        teacher={"logits"}, student={"logits"}, rollouts=True, streams={"train", "corpus"}
    )
    modality = "text"
    family = "preference"

    level: Literal["token", "sequence"] = "token"
    beta: Annotated[float, Gt(0)] = 0.1
    preference_weight: Annotated[float, Ge(0), Le(1)] = 0.5
    variant: Literal["dpo", "ipo", "dpo-positive", "reference-free"] = "dpo"
    penalty: Annotated[float, Ge(0)] = 50.0
    smoothing: Annotated[float, Ge(0), Lt(0.5)] = 0.0
    length_norm: bool = False
    sample_temperature: Annotated[float, Gt(0)] = 1.0
    corpus_weight: Annotated[float, Ge(0)] = 0.0

    def __post_init__(self) -> None:
        if self.smoothing and self.variant == "ipo":
            raise Failure("smoothing: ipo has no labels to smooth; set it to 0, or variant: dpo")

    def check(self, teacher: Teacher) -> None:
        if self.level == "sequence" and not teacher.fresh:
            raise Failure(
                "level: sequence asks the teacher about what the student writes, and this one "
                "knows recorded sequences only; take level: token, or a teacher that is there"
            )

    def streams(self) -> Set[str]:
        return self.needs.streams if self.corpus_weight else self.needs.streams - {"corpus"}

    @property
    def _samples(self) -> bool:
        return self.level == "sequence" and self.preference_weight > 0

    def prepare(self, run: Run, batch: Batch) -> Batch:
        if self._samples:
            batch = batch.add(samples=run.rollout(batch, temperature=self.sample_temperature))
        if self.corpus_weight:
            batch = batch.add(corpus=run.next("corpus"))
        return batch

    def updates(self, run: Run, batch: Batch) -> Iterator[Update]:
        terms = self._sequences(run, batch) if self._samples else self._tokens(run, batch)
        if self.corpus_weight:
            text = batch.corpus
            far = per_row(self._corpus, run.student(text), run.teacher(text), text.labels)
            terms.append(Term(far, "corpus.mask", weight=self.corpus_weight, name="corpus"))
        yield Update(terms)

    def _tokens(self, run: Run, batch: Batch) -> list[Term]:
        own = run.student(batch)
        if not self.preference_weight:
            return [Term(per_row(nll, own, None, batch.labels))]
        theirs = run.teacher(batch)
        with torch.no_grad():
            seen = per_row(self._told, own, theirs, None)[batch.mask > 0]
        run.log(**{"dpkd/active": seen[:, 0], "dpkd/margin": seen[:, 1]})
        return [Term(per_row(self._token, own, theirs, batch.labels))]

    def _token(self, student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
        w = self.preference_weight
        return w * self._preferred(*_choices(student, teacher)) - (1 - w) * label_logp(
            student, labels
        )

    def _told(self, student: Tensor, teacher: Tensor, labels: None) -> Tensor:
        own, theirs = _choices(student, teacher)
        chosen, rejected = self._ratios(own, theirs)
        active = (student.argmax(-1) != teacher.argmax(-1)).to(chosen)
        return torch.stack([active, chosen - rejected], -1)

    def _sequences(self, run: Run, batch: Batch) -> list[Term]:
        halves = batch, batch.samples
        said = [per_row(_both, run.student(h), run.teacher(h), h.labels) for h in halves]
        both = [self._answers(h, logp) for h, logp in zip(halves, said, strict=True)]
        mine, theirs = zip(*both, strict=True)
        chosen, rejected = self._ratios(mine, theirs)
        run.log(**{"dpkd/margin": (chosen - rejected).detach()})
        w = self.preference_weight
        return [
            Term(-said[0][:, 0], weight=1 - w, name="text"),
            Term(self._preferred(mine, theirs), "examples", weight=w, name="preference"),
        ]

    def _answers(self, batch: Batch, logp: Tensor) -> Pair:
        """[B] of student and teacher, of the last answers: earlier turns belong to the prompt."""
        place = batch.positions.flatten()[batch.rows] + 1
        counts = (batch.mask * (place >= batch.prompt[batch.owner])).to(logp)
        told = {"owner": batch.owner, "counts": counts, "size": batch.size}
        own, theirs = (answer_logp(one, mean=self.length_norm, **told) for one in logp.T)
        return own, theirs.detach()

    def _ratios(self, own: Pair, theirs: Pair) -> Pair:
        if self.variant == "reference-free":
            return own
        return own[0] - theirs[0], own[1] - theirs[1]

    def _preferred(self, own: Pair, theirs: Pair) -> Tensor:
        """A value a pair: log-probabilities of the teacher's choice and of the student's."""
        chosen, rejected = self._ratios(own, theirs)
        if self.variant == "dpo-positive":
            chosen = chosen - self.penalty * shortfall(chosen)
        shape = "squared" if self.variant == "ipo" else "sigmoid"
        told = {"beta": self.beta, "smoothing": self.smoothing}
        return preference(chosen, rejected, shape=shape, **told)

    def _corpus(self, student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
        w = self.preference_weight
        return w * forward_kl(student, teacher) - (1 - w) * label_logp(student, labels)


def _choices(student: Tensor, teacher: Tensor) -> tuple[Pair, Pair]:
    """Log-probabilities [n] of the teacher's likeliest token and of the student's: q's, p's."""
    picks = teacher.argmax(-1), student.argmax(-1)
    own = label_logp(student, picks[0]), label_logp(student, picks[1])
    return own, (label_logp(teacher, picks[0]), label_logp(teacher, picks[1]))


def _both(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    return torch.stack([label_logp(student, labels), label_logp(teacher, labels)], -1)
