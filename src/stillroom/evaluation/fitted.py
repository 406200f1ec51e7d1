"""How well the student matches a live teacher on the very examples that it learned from."""

from __future__ import annotations

from dataclasses import replace

from stillroom.core import Failure
from stillroom.evaluation import agreement
from stillroom.evaluation.suite import View

GIVEN = True
"""Reads what the student says of given examples, and samples nothing."""
SPLIT = "test"
COLUMNS = {
    "train_kl": ("KL(teacher || student) on the training split, nats", "lower"),
    "train_agreement": ("likeliest class or token is the teacher's, training split", "higher"),
}


def measure(view: View) -> dict[str, float]:
    """``kl`` and ``agreement`` (the evaluator of that name) of the training split.

    What is missing here is optimisation; what ``agreement`` lacks beside it is generalisation.

    Raises:
        Failure: the teacher gives no logits, or there is no training split.
    """
    if view.train is None:
        raise Failure("eval.metrics: fitted reads the training split, and there is none here")
    told = agreement.measure(replace(view, data=view.train))
    return {name: told[name.removeprefix("train_")] for name in COLUMNS}
