"""Whether the student is as sure of its likeliest class or token as it should be."""

from __future__ import annotations

from types import ModuleType

import torch
from torch import Tensor

from stillroom.evaluation.suite import View
from stillroom.extras import extra
from stillroom.losses.per_row import per_row

GIVEN = True
"""Reads what the student says of given examples, and samples nothing."""
COLUMNS = {
    "ece": ("expected calibration error of the likeliest class or token, share", "lower"),
    "confidence": ("probability of the likeliest class or token", None),
    "brier": ("squared error of all probabilities, from 0 to 2", "lower"),
}
BINS = 15


def ready(_view: View) -> None:
    """Raises Failure where torchmetrics is missing, before anything is read."""
    _metrics()


def measure(view: View) -> dict[str, float]:
    """``ece = sum_b n_b / n |accuracy_b - confidence_b|`` over 15 bins of equal width.

    Confidence is the student's probability of its likeliest class or token, which is right where
    it is the label. ``brier = mean sum_c (p_c - [c = y])^2`` over all classes or tokens. Sources:
    Guo et al. (arXiv 1706.04599); Brier (1950).
    """
    said = torch.cat([per_row(_sure, view.student(b), None, b.labels) for b in view.batches()])
    confidence, right, square = said.float().T.contiguous()
    error = _metrics().binary_calibration_error(confidence, right.long(), n_bins=BINS, norm="l1")
    told = {"confidence": float(confidence.mean()), "brier": float(square.double().mean())}
    return {"ece": float(error), **told}


def _sure(student: Tensor, teacher: None, labels: Tensor) -> Tensor:
    chances = student.softmax(-1)
    largest, own = chances.max(-1), chances.gather(-1, labels[:, None]).squeeze(-1)
    square = chances.square().sum(-1) - 2 * own + 1
    right = (largest.indices == labels).to(student.dtype)
    return torch.stack([largest.values, right, square], -1)


def _metrics() -> ModuleType:
    return extra("torchmetrics.functional.classification", "eval", why="calibration error")
