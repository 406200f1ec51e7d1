"""The shapes that most methods have: a formula on logits, on tokens, on features, on pairs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from annotated_types import Ge
from torch import Tensor

from stillroom.core import Batch, Failure, Method, Run, Setup, Signals, Teacher, Term
from stillroom.losses.maps import pooled
from stillroom.losses.per_row import per_row
from stillroom.losses.policy import nll
from stillroom.losses.preference import answer_logp
from stillroom.losses.sparse import draws, top_k
from stillroom.models.taps import LAST
from stillroom.models.text import mode


@dataclass(frozen=True, kw_only=True)
class LogitMethod(Method):
    """A formula on the logits of one row: a token's on text, an example's on classes."""

    def objective(self, student: Tensor, teacher: Any, labels: Tensor) -> Tensor:
        """Logits [n, V], [n, V] and labels [n] to values [n]; each row alone.

        The teacher's are ``Sparse`` where it gives some tokens alone, and None without one.
        """
        raise NotImplementedError(f"{type(self).__name__} must define objective()")

    def check(self, teacher: Teacher) -> None:
        """Tries the objective on two rows of what a teacher gives that is less than logits."""
        sparse = teacher.signals & {"topk", "sampled"}
        if "logits" in teacher.signals or not sparse:
            return
        scores, half = torch.zeros(2, 5), torch.full((2, 2), 0.5)
        told = top_k(scores, 2) if "topk" in sparse else draws(scores, half)
        self.objective(scores, told, torch.zeros(2, dtype=torch.long))

    def loss(
        self, student: Signals, teacher: Signals, batch: Batch, nets: Mapping[str, Any]
    ) -> Term | Sequence[Term]:
        return Term(per_row(self.objective, student, teacher, batch.labels))


@dataclass(frozen=True, kw_only=True)
class TokenMethod(LogitMethod):
    """Distillation of a language model in four parts; a paper overrides one or two.

    ``sequences``: whose text is learned from. ``target``: the distribution to reach.
    ``divergence``: the distance to it, a value a token. ``weight``: how much a token counts.
    """

    def sequences(self, run: Run, batch: Batch) -> Batch:
        return batch

    def target(self, student: Tensor, teacher: Tensor) -> Tensor:
        return teacher

    def divergence(self, student: Tensor, target: Tensor) -> Tensor:
        raise NotImplementedError(f"{type(self).__name__} must define divergence()")

    def weight(self, student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor | float:
        return 1.0

    def prepare(self, run: Run, batch: Batch) -> Batch:
        return self.sequences(run, batch)

    def objective(self, student: Tensor, teacher: Tensor | None, labels: Tensor) -> Tensor:
        assert teacher is not None
        value = self.divergence(student, self.target(student, teacher))
        return self.weight(student, teacher, labels) * value


@dataclass(frozen=True, kw_only=True)
class FeatureMethod(Method):
    """Compares one layer of the student with one of the teacher.

    Args:
        student_layer: name of the student's layer; ``last`` is what its last linear layer reads.
        teacher_layer: the same of the teacher.
    """

    student_layer: str = LAST
    teacher_layer: str = LAST

    def layers(self) -> Mapping[str, Sequence[str]]:
        return {"student": [self.student_layer], "teacher": [self.teacher_layer]}

    def tried(self, setup: Setup) -> tuple[Tensor, Tensor]:
        """What the two layers say of one example, before the first step: their shapes."""
        return self.said(one_said(setup), one_said(setup, "teacher"))

    def said(self, student: Signals, teacher: Signals) -> tuple[Tensor, Tensor]:
        """What the two layers say, in their own shapes; the teacher's without gradient."""
        own = _layer("student", student, self.student_layer)
        return own, _layer("teacher", teacher, self.teacher_layer).detach()

    def flat(self, student: Signals, teacher: Signals) -> tuple[Tensor, Tensor]:
        """The same as one vector an example: [B, d] and [B, e], all places side by side."""
        own, other = self.said(student, teacher)
        return own.flatten(1), other.flatten(1)

    def pooled(self, student: Signals, teacher: Signals) -> tuple[Tensor, Tensor]:
        """The same as one vector an example: [B, d] and [B, e], the mean over places."""
        own, other = self.said(student, teacher)
        return pooled(own), pooled(other)


def one_said(setup: Setup, who: str = "student") -> Signals:
    """What the student, or a teacher by name, says of one example: shapes, before the first step.

    The student in eval mode: one example must not enter the statistics of a batch norm.
    """
    one = setup.batch.part(0, 1)
    if who == "student":
        with torch.no_grad(), mode(setup.student, training=False):
            return setup.student(one)
    return setup.teachers[who](one.add(x=one.x_teacher) if "x_teacher" in one else one)


def _layer(who: str, said: Signals, layer: str) -> Tensor:
    """What a layer says; raises Failure where it says nothing, as ``map`` of a perceptron."""
    if layer not in said.features:
        raise Failure(
            f"{who}_layer: the {who}'s layer {layer!r} says nothing: it has no feature map or "
            "tokens; name another ('stillroom show layers' lists them)"
        )
    return said.features[layer]


@dataclass(frozen=True, kw_only=True)
class PairMethod(Method):
    """Compares two answers to one question: the chosen one should be likelier than the other.

    Args:
        mean: whether a score is the mean of an answer's log-probabilities over its tokens
            (length-normalised), not their sum.
        anchor: weight of the cross-entropy with the chosen answer; 0 leaves it out.
        anchor_over: ``tokens``: its mean is over all tokens of the batch; ``answers``: within each
            answer first, then over answers.
    """

    mean: bool = False
    anchor: Annotated[float, Ge(0)] = 0.0
    anchor_over: Literal["tokens", "answers"] = "tokens"

    def said(self, speaker: Signals, batch: Batch) -> Tensor:
        """[N] log-probability of each label."""
        return -per_row(nll, speaker, None, batch.labels)

    def scored(self, batch: Batch, logp: Tensor, *, mean: bool | None = None) -> Tensor:
        """[B] scores of the last answers; tokens of earlier turns belong to the prompt."""
        place = batch.positions.flatten()[batch.rows] + 1
        counts = (batch.mask * (place >= batch.prompt[batch.owner])).to(logp)
        mean = self.mean if mean is None else mean
        return answer_logp(logp, batch.owner, counts, batch.size, mean=mean)

    def anchored(self, batch: Batch, logp: Tensor) -> list[Term]:
        """Cross-entropy with the chosen answer, times the example's ``weight``; none at 0."""
        if not self.anchor:
            return []
        if self.anchor_over == "answers":
            each = -self.scored(batch, logp, mean=True)
            return [Term(weighted(each, batch), "examples", weight=self.anchor, name="text")]
        return [Term(weighted(-logp, batch, batch.owner), weight=self.anchor, name="text")]


def weighted(value: Tensor, batch: Batch, owner: Tensor | None = None) -> Tensor:
    """Values times the ``weight`` of their example, where the data give one.

    ``value`` [B], or [N] with ``owner`` [N], the example of each.
    """
    if "weight" not in batch:
        return value
    weight = batch.weight.to(value)
    return value * (weight if owner is None else weight[owner])
