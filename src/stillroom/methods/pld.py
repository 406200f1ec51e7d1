"""Plackett-Luce distillation: the teacher's ranking of the classes, the label at its head."""

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from annotated_types import Gt
from torch import Tensor

from stillroom.core import Needs, Paper
from stillroom.losses.ranking import label_first, plackett_luce
from stillroom.methods._bases import LogitMethod


@dataclass(frozen=True, kw_only=True)
class PLD(LogitMethod):
    """Learn one ranking of the classes: the label first, then all others as the teacher ranks them.

    ``sum_k w_k (log sum_(l >= k) exp s_(pi_l) - s_(pi_k))``, s the student's logits, pi the label
    followed by the other classes by falling teacher logit, ``w_k = softmax(teacher / T)_(pi_k)``.
    Cross-entropy with the label is its first term, so there is no weight to choose between the
    two. A teacher who is sure makes it little more than that: soften w. Where the teacher does not
    believe the label the whole example weighs less. It is convex in s, and not 0 where the student
    is the teacher: as with cross-entropy, logits that are further apart are always better.

    Unconfirmed: T; 1 is taken for the paper's. Unconfirmed: the exponent of ``falling``.

    Differences: text is offered as well, a ranking of the vocabulary for each next token; the
    paper is on images. ``falling`` is divided by its largest, so that many classes do not overflow.

    Args:
        temperature: T of the weights alone; the ranking does not depend on it.
        weights: ``teacher``: w; ``equal``: 1 at every place, ListMLE of the same ranking;
            ``falling``: ``(2^(C - k) - 1) / (2^(C - 1) - 1)``, its position-aware form.
    """

    paper = Paper(
        "2506.12542", "Bassam, Zhu, Bian, 2025", "PLD: A Choice-Theoretic List-Wise Knowledge "
        "Distillation"
    )  # fmt: skip
    needs = Needs(teacher={"logits"}, student={"logits"})
    modality = "any"
    family = "logits"

    temperature: Annotated[float, Gt(0)] = 1.0
    weights: Literal["teacher", "equal", "falling"] = "teacher"

    def objective(self, student: Tensor, teacher: Tensor | None, labels: Tensor) -> Tensor:
        assert teacher is not None
        order = label_first(teacher, labels)
        return plackett_luce(student, order, self._weight(teacher, order))

    def _weight(self, teacher: Tensor, order: Tensor) -> Tensor:
        exact = teacher.to(torch.promote_types(teacher.dtype, torch.float32))
        if self.weights == "teacher":
            return (exact / self.temperature).softmax(-1).gather(-1, order)
        places = exact.new_ones(exact.shape[-1])
        if self.weights == "equal":
            return places
        falling = 0.5 ** places.cumsum(0) - 0.5 ** len(places)
        return falling / falling[0]
