"""Classification by the mean of the student and the models that are shipped beside it."""

from __future__ import annotations

import torch

from stillroom.core import Failure
from stillroom.evaluation.suite import View, mean
from stillroom.losses.policy import label_logp
from stillroom.models import classes

GIVEN = True
"""Reads what the models say of given examples, and samples nothing."""
COLUMNS = {
    "ensemble_accuracy": ("likeliest class of the mean of all generations is true", "higher"),
    "ensemble_nll": ("nats of the true class under that mean", "lower"),
}


def measure(view: View) -> dict[str, float]:
    """Accuracy and mean -log p(label) of ``p = mean_k softmax(z_k)``, the student among the k.

    Without models beside it these are the student's own.

    Raises:
        Failure: a model beside is no classifier.
    """
    device = next(view.student.parameters()).device
    others = []
    for name, folder in view.beside.items():
        if not classes.saved(folder):
            raise Failure(f"eval.metrics: ensemble: {name!r} beside the student is no classifier")
        others.append(classes.load(folder).to(device).eval())
    right, far = [], []
    for batch in view.batches():
        scores = torch.stack([one(batch).logits for one in (view.student, *others)])
        logp = scores.log_softmax(-1).logsumexp(0)  # of the sum; label_logp divides by it
        right.append((logp.argmax(-1) == batch.labels).double())
        far.append(-label_logp(logp, batch.labels))
    return {"ensemble_accuracy": mean(right), "ensemble_nll": mean(far)}
