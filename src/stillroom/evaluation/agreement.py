"""How far the student's distribution is from a live teacher's, on examples or reference text."""

from __future__ import annotations

import torch
from torch import Tensor

from stillroom.core import Failure
from stillroom.evaluation.suite import View, mean
from stillroom.losses.divergences import forward_kl, reverse_kl
from stillroom.losses.per_row import per_row

GIVEN = True
"""Reads what the student says of given examples, and samples nothing."""
COLUMNS = {
    "kl": ("KL(teacher || student), nats an example or token", "lower"),
    "reverse_kl": ("KL(student || teacher), nats an example or token", "lower"),
    "agreement": ("likeliest class or token is the teacher's likeliest", "higher"),
}


def measure(view: View) -> dict[str, float]:
    """Both divergences and top-1 agreement, averaged over supervised tokens or examples.

    Raises:
        Failure: the teacher gives no logits.
    """
    teacher = view.teachers.get("teacher")
    if teacher is None or "logits" not in teacher.signals:
        raise Failure("eval.metrics: agreement compares logits, and this teacher gives none")
    said = [per_row(_all, view.student(b), teacher(b), b.labels) for b in view.batches()]
    return {name: mean([s[:, i] for s in said]) for i, name in enumerate(COLUMNS)}


def _all(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    same = (student.argmax(-1) == teacher.argmax(-1)).to(student.dtype)
    return torch.stack([forward_kl(student, teacher), reverse_kl(student, teacher), same], -1)
