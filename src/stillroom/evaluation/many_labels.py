"""Examples with several labels at once: how well each label's examples are ranked, and told."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from stillroom.core import Failure
from stillroom.evaluation.suite import View
from stillroom.extras import extra

COLUMNS = {
    "map": ("mean average precision over labels", "higher"),
    "worst_ap": ("average precision of the label that is ranked worst", "higher"),
    "of1": ("F1 over all labels together, told at probability 1/2", "higher"),
    "cf1": ("F1, mean over labels", "higher"),
    "bce": ("binary cross-entropy, nats a label", "lower"),
}


def ready(_view: View) -> None:
    """Raises Failure where torchmetrics is missing, before anything is read."""
    _metrics()


def measure(view: View) -> dict[str, float]:
    """Average precision of each label, its mean and least, and F1 of what is told.

    ``AP_c = sum_k (recall_k - recall_(k-1)) precision_k`` down the examples by their score of label
    c. Labels that no example of the split has count in neither mean.

    Raises:
        Failure: an example has one class here (``labels`` [B]), not several.
    """
    return _describe(view, view.student)


def teacher(view: View) -> dict[str, float]:
    """The same of a live teacher; nothing for one that gives no logits."""
    return {} if view.live is None else _describe(view, view.live)


def _describe(view: View, speaker: Any) -> dict[str, float]:
    said = [(speaker(batch).logits, batch.labels) for batch in view.batches()]
    logits, labels = (torch.cat(part) for part in zip(*said, strict=True))
    if labels.dim() != 2:
        raise Failure(
            "eval.metrics: many_labels reads examples that have several labels at once, and these "
            "have one class each: take accuracy"
        )
    occurs = labels.sum(0) > 0
    logits, labels = logits[:, occurs].double(), labels[:, occurs].long()
    told: dict[str, Any] = {"num_labels": labels.shape[1]}
    each: Tensor = _metrics().multilabel_average_precision(logits, labels, average=None, **told)
    f1 = {
        name: float(_metrics().multilabel_f1_score(logits, labels, average=how, **told))
        for name, how in (("of1", "micro"), ("cf1", "macro"))
    }
    loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, labels.double())
    return {"map": float(each.mean()), "worst_ap": float(each.min()), **f1, "bce": float(loss)}


def _metrics() -> ModuleType:
    return extra("torchmetrics.functional.classification", "eval", why="average precision")
