"""Classification: right answers and the likelihood of the truth."""

from __future__ import annotations

from stillroom.evaluation.suite import View, mean
from stillroom.losses.policy import label_logp

COLUMNS = {
    "accuracy": ("likeliest class is the true one", "higher"),
    "class_nll": ("nats of the true class", "lower"),
}


def measure(view: View) -> dict[str, float]:
    """Share of examples whose likeliest class is the label, and mean -log p(label)."""
    said = [(view.student(batch).logits, batch.labels) for batch in view.batches()]
    return {
        "accuracy": mean([(z.argmax(-1) == y).double() for z, y in said]),
        "class_nll": -mean([label_logp(z, y) for z, y in said]),
    }
