"""Whether the loss rises on the straight line from the student's weights to the teacher's."""

from __future__ import annotations

from torch.func import functional_call

from stillroom.core import Failure
from stillroom.evaluation.suite import View, mean
from stillroom.losses.per_row import per_row
from stillroom.losses.policy import nll
from stillroom.models.between import between, check_alike
from stillroom.teachers.local import Local

GIVEN = True
"""Reads what networks say of given examples, and samples nothing."""
SPLIT = "test"
COLUMNS = {"barrier": ("most that the loss rises on the line to the teacher, nats", "lower")}
POINTS = 11
"""Of the line, its ends among them."""


def ready(view: View) -> None:
    """Raises Failure where there is no line, before anything is read."""
    check_alike(view.student, _teacher(view))


def measure(view: View) -> dict[str, float]:
    """``max_u L(u student + (1 - u) teacher) - max(L(student), L(teacher))``, u in 11 even steps.

    L is the cross-entropy with the labels. Both networks lie in one basin where it is near 0.

    Raises:
        Failure: the teacher is no network in this process, or of another shape than the student.
    """
    student, teacher = view.student, _teacher(view)
    losses = []
    for i in range(POINTS):
        weights = between(student, teacher, i / (POINTS - 1))
        far = [
            per_row(nll, functional_call(student, weights, (batch,)), None, batch.labels)
            for batch in view.batches()
        ]
        losses.append(mean(far))
    return {"barrier": max(losses) - max(losses[0], losses[-1])}


def _teacher(view: View):
    teacher = view.teachers.get("teacher")
    if not isinstance(teacher, Local):
        raise Failure("eval.metrics: barrier needs a teacher whose weights are in this process")
    return teacher.network
