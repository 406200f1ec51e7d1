"""Classification where some classes are rare: each class counts the same."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from stillroom.evaluation.suite import View
from stillroom.extras import extra

COLUMNS = {
    "balanced_accuracy": ("accuracy, mean over classes", "higher"),
    "worst_accuracy": ("accuracy of the class that is told worst", "higher"),
}


def ready(_view: View) -> None:
    """Raises Failure where torchmetrics is missing, before anything is read."""
    _metrics()


def measure(view: View) -> dict[str, float]:
    """Mean and least over classes of the share of a class's examples that are told right.

    Classes without an example in the split count in neither.
    """
    return _describe(view, view.student)


def teacher(view: View) -> dict[str, float]:
    """The same of a live teacher; nothing for one that gives no logits."""
    return {} if view.live is None else _describe(view, view.live)


def _describe(view: View, speaker: Any) -> dict[str, float]:
    said = [(speaker(batch).logits, batch.labels) for batch in view.batches()]
    logits, labels = (torch.cat(part) for part in zip(*said, strict=True))
    each = _of_each(logits, labels)
    return {"balanced_accuracy": float(each.mean()), "worst_accuracy": float(each.min())}


def _of_each(logits: Tensor, labels: Tensor) -> Tensor:
    """Accuracy [C'] of every class that occurs."""
    told = {"num_classes": logits.shape[-1], "average": "none"}
    each = _metrics().multiclass_accuracy(logits.argmax(-1), labels, **told)
    return each[labels.unique()].double()


def _metrics() -> ModuleType:
    return extra("torchmetrics.functional.classification", "eval", why="accuracy by class")
