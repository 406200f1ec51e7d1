"""Classification: right answers and the likelihood of the truth."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from stillroom.core import Failure
from stillroom.evaluation.suite import View, mean
from stillroom.losses.policy import label_logp

COLUMNS = {
    "accuracy": ("likeliest class is the true one", "higher"),
    "class_nll": ("nats of the true class", "lower"),
}


def measure(view: View) -> dict[str, float]:
    """Share of examples whose likeliest class is the label, and mean -log p(label)."""
    return _describe([(view.student(batch).logits, batch.labels) for batch in view.batches()])


def teacher(view: View) -> dict[str, float]:
    """The same of a live teacher; nothing for one that gives no logits."""
    if (live := view.live) is None:
        return {}
    return _describe([(live(batch).logits, batch.labels) for batch in view.batches()])


def _describe(said: Sequence[tuple[Tensor, Tensor]]) -> dict[str, float]:
    if said[0][1].dim() > 1:
        raise Failure(
            "eval.metrics: accuracy reads examples of one class each, and these may have several "
            "labels at once: take many_labels"
        )
    return {
        "accuracy": mean([(z.argmax(-1) == y).double() for z, y in said]),
        "class_nll": -mean([label_logp(z, y) for z, y in said]),
    }
