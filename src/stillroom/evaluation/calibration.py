"""Whether the student is as sure of its likeliest token as it should be."""

from __future__ import annotations

from types import ModuleType

import torch
from torch import Tensor

from stillroom.evaluation.suite import View
from stillroom.extras import extra
from stillroom.losses.per_row import per_row

GIVEN = True
"""Reads what the student says of given text, and samples nothing."""
COLUMNS = {
    "ece": ("expected calibration error of the likeliest token, share", "lower"),
    "confidence": ("probability of the likeliest token", None),
}
BINS = 15


def ready(_view: View) -> None:
    """Raises Failure where torchmetrics is missing, before anything is read."""
    _metrics()


def measure(view: View) -> dict[str, float]:
    """``ece = sum_b n_b / n |accuracy_b - confidence_b|`` over 15 bins of equal width.

    A token's confidence is the student's probability of its likeliest token, which is right where
    it is the text's. Source: Guo et al. (arXiv 1706.04599).
    """
    said = torch.cat([per_row(_sure, view.student(b), None, b.labels) for b in view.batches()])
    confidence, right = said.float().T.contiguous()
    error = _metrics().binary_calibration_error(confidence, right.long(), n_bins=BINS, norm="l1")
    return {"ece": float(error), "confidence": float(confidence.mean())}


def _sure(student: Tensor, teacher: None, labels: Tensor) -> Tensor:
    largest = student.softmax(-1).max(-1)
    return torch.stack([largest.values, (largest.indices == labels).to(student.dtype)], -1)


def _metrics() -> ModuleType:
    return extra("torchmetrics.functional.classification", "eval", why="calibration error")
