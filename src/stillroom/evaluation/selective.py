"""Whether the student knows where it errs: answers left out where it is unsure."""

from __future__ import annotations

import torch
from torch import Tensor

from stillroom.evaluation.suite import View
from stillroom.losses.per_row import per_row

GIVEN = True
"""Reads what the student says of given examples, and samples nothing."""
COLUMNS = {"aurc": ("area under the risk-coverage curve, mean share of errors", "lower")}


def measure(view: View) -> dict[str, float]:
    """``aurc = 1/n sum_k r(k)``, ``r(k)`` the share of errors among the ``k`` surest of n.

    Sure is the probability of the likeliest class or token, which errs where it is not the label.
    With 0 errors it is 0; where confidence tells nothing it is the share of errors. Source:
    Geifman, Uziel and El-Yaniv (arXiv 1805.08206).
    """
    said = torch.cat([per_row(_sure, view.student(b), None, b.labels) for b in view.batches()])
    return {"aurc": float(aurc(*said.double().unbind(-1)))}


def aurc(confidence: Tensor, wrong: Tensor) -> Tensor:
    """The area under the risk-coverage curve: confidences [n], errors [n] of 0 and 1.

    Of examples that are equally sure each counts as their mean error, which is what the area would
    be on average over their orders.

    >>> aurc(torch.tensor([0.6, 0.9, 0.7, 0.8]), torch.tensor([1.0, 0.0, 0.0, 1.0]))
    tensor(0.3333)
    """
    surest, order = confidence.sort(descending=True)
    _, group, counts = surest.unique_consecutive(return_inverse=True, return_counts=True)
    errors = torch.zeros(len(counts)).to(wrong).index_add(0, group, wrong[order])
    risks = (errors / counts)[group].cumsum(0) / torch.arange(1, len(order) + 1).to(wrong)
    return risks.mean()


def _sure(student: Tensor, teacher: None, labels: Tensor) -> Tensor:
    largest = student.softmax(-1).max(-1)
    return torch.stack([largest.values, (largest.indices != labels).to(student.dtype)], -1)
