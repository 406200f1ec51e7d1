"""The shapes that most methods have: a formula on logits, on tokens, on features."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from stillroom.core import Batch, Method, Run, Signals, Teacher, Term
from stillroom.losses.per_row import per_row
from stillroom.losses.sparse import draws, top_k
from stillroom.models.taps import LAST


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
