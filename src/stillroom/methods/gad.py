"""Generative adversarial distillation: on-policy from a teacher that only gives text."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from annotated_types import Ge, Gt, Le, Lt
from torch import Tensor, nn
from torch.nn.functional import softplus

from stillroom.core import Batch, Failure, Method, Needs, Paper, Run, Setup, Term, Update
from stillroom.losses.per_row import per_row
from stillroom.losses.policy import (
    bradley_terry,
    clipped_surrogate,
    entropy,
    group_advantage,
    k3,
    label_logp,
    nll,
)
from stillroom.models.cut import Early
from stillroom.nets.pooled import Pooled, Pooling
from stillroom.nets.scorer import Scorer
from stillroom.nets.watch import averages, watch
from stillroom.rollouts.sampling import uniform


@dataclass(frozen=True, kw_only=True)
class GAD(Method):
    """Black-box on-policy distillation: a critic tells the teacher's text from the student's.

    The critic D (a copy of the student with a scalar head read at the last token) learns
    ``softplus(D(x, y_i) - D(x, y_teacher))`` over the N samples y_i of each prompt (equation 3);
    the student gets ``D(x, y_i)``, of the critic before its update, as reward in a clipped policy
    gradient with advantages normalised in the group, plus ``kl_weight * k3`` to the student with
    which this stage began. In a warm-up both learn together, the student by cross-entropy on the
    teacher's text. At the critic's optimum ``D = log p_teacher(y|x) - log p_student(y|x)``, so
    the student then follows the sequence-level reverse KL.

    Steps run through these stages: the warm-up (``warmup`` of all), the critic alone
    (``critic_alone`` of what is left), the adversarial stage (the rest), which begins with a
    fresh optimiser.

    Differences: the critic is updated before the student, as in the authors' code (the paper's
    listing has the student first). A ``pooled`` critic, random rewards and ``least_accuracy`` are
    ours: few pairs do not teach a whole network to judge, and what a useless critic says is scaled
    up to unit deviation like any other reward. Ratio and KL are of log-probabilities at
    temperature 1, whatever the sampling temperature (unconfirmed for the authors' code). The
    warm-up's learning rate is a stretch of the recipe's schedule; a checkpoint is chosen by what
    the recipe selects.

    Args:
        group: N, samples of each prompt.
        warmup: share of the steps that imitate; 1, with ``critic_from`` 1, is SeqKD.
        critic_from: share of the warm-up after which the critic joins in.
        head_start: first steps of a joining critic in which the student waits.
        critic_alone: share of the steps after the warm-up in which only the critic learns.
        critic: changes of the student's config for a fresh critic of another size; none copies
            the student.
        critic_loss: the ablation ``cross-entropy`` judges each text for itself.
        pooled: another critic, linear on mean states of the frozen student, fitted in each step to
            the last pairs: ``layers`` of the trunk that it reads (null: all), ``l2`` its penalty,
            ``replay`` how many pairs; ``{}`` for 10 and 256.
        least_accuracy: held-out accuracy of the critic, over recent steps, below which the
            adversarial stage is refused; null asks for none.
        reward: the control ``random`` draws rewards that know nothing of the answers.
        critic_frozen: the ablation whose critic stops learning when the adversarial stage begins.
        prompts: of each batch (over all processes), how many are sampled from; none takes all.
        sample_temperature: of the samples.
        clip: how far the probability ratio may leave 1.
        kl_weight: weight of the k3 estimate of KL(student || start of the stage).
    """

    paper = Paper(
        "2511.10643", "Ye et al., 2025", "Black-Box On-Policy Distillation of Large Language Models"
    )
    needs = Needs(teacher={"text"}, student={"logits"}, rollouts=True, planned=True)
    modality = "text"
    family = "adversarial"

    group: Annotated[int, Ge(2)] = 8
    warmup: Annotated[float, Ge(0), Le(1)] = 1 / 3
    critic_from: Annotated[float, Ge(0), Le(1)] = 0.0
    head_start: Annotated[int, Ge(0)] = 10
    critic_alone: Annotated[float, Ge(0), Lt(1)] = 0.0
    critic: dict[str, Any] | None = None
    critic_loss: Literal["bradley-terry", "cross-entropy"] = "bradley-terry"
    pooled: Pooling | None = None
    least_accuracy: Annotated[float, Ge(0), Le(1)] | None = None
    reward: Literal["critic", "random"] = "critic"
    critic_frozen: bool = False
    prompts: Annotated[int, Ge(1)] | None = None
    sample_temperature: Annotated[float, Gt(0)] = 0.8
    clip: Annotated[float, Gt(0)] = 0.2
    kl_weight: Annotated[float, Ge(0)] = 0.001

    def __post_init__(self) -> None:
        if self.pooled and (self.critic or self.critic_loss != "bradley-terry"):
            raise Failure(
                "pooled: this critic is fitted by Bradley-Terry to the student's own trunk; "
                "leave out critic and critic_loss"
            )

    def players(self, setup: Setup) -> Mapping[str, nn.Module]:
        student: Any = setup.student
        reference = student.snapshot()
        if (told := self.pooled) is None:
            critic: nn.Module = Scorer(student.body(**(self.critic or {})))
        else:
            body = Early(student.snapshot(), told.layers)
            critic = Pooled(body, replay=told.replay, l2=told.l2)
        made: dict[str, nn.Module] = {"critic": critic, "watch": averages()}
        return {**made, "reference": reference} if self.kl_weight else made

    def prepare(self, run: Run, batch: Batch) -> Batch:
        stage = _Stage(self, run)
        if stage.begins:
            run.reset("student")
            if self.kl_weight:
                run.players["reference"].load_state_dict(run.players["student"].state_dict())
        if not (stage.critic or stage.adversarial):
            return batch
        duel = batch.part(0, self._asked(run, batch))
        samples = run.rollout(duel, self.group, temperature=self.sample_temperature)
        theirs, own = self._scores(run, duel, samples, learns=stage.critic)
        accuracy = watch(run, duel, samples, theirs, own)
        if stage.begins:
            self._refuse_below(accuracy, run)
        if stage.adversarial:
            samples = self._rewarded(run, samples, own)
        return batch.add(duel=duel.add(samples=samples))

    def _asked(self, run: Run, batch: Batch) -> int:
        """How many prompts of this process's share are sampled from."""
        if self.prompts is None:
            return batch.size
        everywhere = len(run.gather(batch.id))
        return min(batch.size, -(-self.prompts * batch.size // everywhere))

    def _scores(
        self, run: Run, duel: Batch, samples: Batch, *, learns: bool
    ) -> tuple[Tensor, Tensor]:
        """The critic's scores of teacher and samples, pair by pair; a pooled one learns then."""
        if self.pooled is None:
            return run.ask("critic", duel).repeat_interleave(self.group), run.ask("critic", samples)
        critic = run.players["critic"]
        theirs = run.ask("critic.read", duel).repeat_interleave(self.group, 0)
        own = run.ask("critic.read", samples)
        scores = critic.score(theirs), critic.score(own)
        if learns:  # from the pairs of all processes, in the order that one would have them in
            order = run.gather(samples.id).argsort(stable=True)
            critic.learn(run.gather(theirs)[order], run.gather(own)[order])
        return scores

    def _refuse_below(self, accuracy: float, run: Run) -> None:
        least = self.least_accuracy
        if least is not None and accuracy < least:
            raise Failure(
                f"GAD: step {run.step + 1} would begin to reward the student, but over recent "
                f"steps the critic told {accuracy:.2f} of held-out pairs right, and "
                f"least_accuracy is {least:g}: its rewards would be noise. Let it learn longer "
                "(critic_alone, critic_from), give it other layers or more pairs (pooled), or "
                "lower least_accuracy"
            )

    def _rewarded(self, run: Run, samples: Batch, reward: Tensor) -> Batch:
        if self.reward == "random":
            copies = torch.arange(samples.size) % self.group
            seed = int(run.uniform() * 2**53)
            reward = uniform(seed, samples.id.cpu(), copies).to(reward)
        said = per_row(_logp_and_entropy, run.ask("student", samples), None, samples.labels)
        run.log(**{"gad/reward": reward, "gad/entropy": said[:, 1]})
        old = said[:, 0]
        advantage = group_advantage(reward, self.group)[samples.owner]
        start = old
        if self.kl_weight:
            start = per_row(_logp, run.ask("reference", samples), None, samples.labels)
        return samples.add_rows(old=old, advantage=advantage.to(old), start=start)

    def updates(self, run: Run, batch: Batch) -> Iterator[Update]:
        stage = _Stage(self, run)
        if stage.critic and self.pooled is None:
            duel, critic = batch.duel, run.players["critic"]
            theirs = critic(duel).repeat_interleave(self.group)
            loss = self._judge(theirs, critic(duel.samples))
            yield Update(Term(loss, over="duel.samples.examples"), players=("critic",))
        if stage.imitates:
            yield Update(Term(per_row(nll, run.student(batch), None, batch.labels)))
        if stage.adversarial:
            samples = batch.duel.samples
            inputs = {name: samples[name] for name in ("old", "advantage", "start")}
            loss = per_row(self._policy, run.student(samples), None, samples.labels, **inputs)
            yield Update(Term(loss, over="duel.samples.mask"))

    def _judge(self, theirs: Tensor, own: Tensor) -> Tensor:
        if self.critic_loss == "bradley-terry":
            return bradley_terry(theirs, own)
        return softplus(-theirs) + softplus(own)

    def _policy(
        self,
        student: Tensor,
        teacher: Tensor | None,
        labels: Tensor,
        old: Tensor,
        advantage: Tensor,
        start: Tensor,
    ) -> Tensor:
        logp = label_logp(student, labels)
        loss = clipped_surrogate(logp, old, advantage, self.clip)
        return loss + self.kl_weight * k3(logp, start) if self.kl_weight else loss


class _Stage:
    """What learns in this step; the same for all data."""

    def __init__(self, method: GAD, run: Run) -> None:
        warm = round(method.warmup * run.steps)
        alone = warm + round(method.critic_alone * (run.steps - warm))
        joins = round(method.critic_from * warm)
        self.begins = run.step == alone
        self.adversarial = run.step >= alone
        joined = joins <= run.step < alone
        self.critic = joined or (self.adversarial and not method.critic_frozen)
        waits = joined and run.step < joins + method.head_start
        self.imitates = run.step < warm and not waits


def _logp(student: Tensor, teacher: Tensor | None, labels: Tensor) -> Tensor:
    return label_logp(student, labels)


def _logp_and_entropy(student: Tensor, teacher: Tensor | None, labels: Tensor) -> Tensor:
    return torch.stack([label_logp(student, labels), entropy(student)], -1)
