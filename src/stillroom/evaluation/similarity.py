"""How alike the student's and the teacher's last embeddings lie: linear CKA."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from stillroom.core import Batch, Failure
from stillroom.evaluation.suite import View
from stillroom.models.classes import Classifier
from stillroom.models.taps import LAST, tapped
from stillroom.teachers.local import Local

GIVEN = True
"""Reads what networks say of given examples, and samples nothing."""
COLUMNS = {"cka": ("linear CKA of the last embeddings with the teacher's", "higher")}


def measure(view: View) -> dict[str, float]:
    """Linear CKA of what the last linear layers of student and teacher read, over the whole split.

    Raises:
        Failure: the teacher is no classifier in this process.
    """
    teacher = view.teachers.get("teacher")
    networks = [view.student, teacher.network if isinstance(teacher, Local) else None]
    if not all(isinstance(one, Classifier) for one in networks):
        raise Failure("eval.metrics: similarity compares classifiers in this process")
    said = [[_read(one, batch) for one in networks] for batch in view.batches()]
    own, other = (torch.cat(side) for side in zip(*said, strict=True))
    return {"cka": float(linear_cka(own, other))}


def linear_cka(x: Tensor, y: Tensor) -> Tensor:
    """``||Y^T X||^2 / (||X^T X|| ||Y^T Y||)``, Frobenius norms, columns centred; in float64.

    Of embeddings [n, d] and [n, e] of the same examples: from 0 to 1, the same where either side
    is rotated, moved, or scaled as a whole. 0 where a side never varies. Source: Kornblith et al.
    (arXiv 1905.00414).

    >>> round(float(linear_cka(torch.tensor([[1.0], [-1.0]]), torch.tensor([[3.0], [5.0]]))), 6)
    1.0
    """
    x, y = (side.double() - side.double().mean(0) for side in (x, y))
    own = torch.linalg.matrix_norm(x.T @ x) * torch.linalg.matrix_norm(y.T @ y)
    return (y.T @ x).square().sum() / own.clamp(min=torch.finfo(own.dtype).tiny)


def _read(network: Any, batch: Batch) -> Tensor:
    with tapped(network.network, [LAST]) as seen:
        network(batch)
    return seen[LAST].flatten(1)
