"""The shapes that most methods have: a formula on logits, on tokens, on features."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from stillroom.core import Batch, Method, Run, Signals, Term
from stillroom.losses.per_row import per_row
from stillroom.models.taps import LAST


@dataclass(frozen=True, kw_only=True)
class LogitMethod(Method):
    """A formula on the logits of one row: a token's on text, an example's on classes."""

    def objective(self, student: Tensor, teacher: Tensor | None, labels: Tensor) -> Tensor:
        """Logits [n, V], [n, V] and labels [n] to values [n]; each row alone."""
        raise NotImplementedError(f"{type(self).__name__} must define objective()")

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
