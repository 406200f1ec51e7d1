"""The mixture of a student's two heads that is right most often, chosen on the validation split."""

from __future__ import annotations

import torch

from stillroom.evaluation.suite import View
from stillroom.models.taps import HEADS
from stillroom.models.two_heads import best_mixture

SPLIT = "validation"
"""It chooses, so it never sees the test split."""
GIVEN = True
"""Reads what the student says of given examples, and samples nothing."""
COLUMNS = {
    "mix_weight": ("weight of the labels' head in the best mixture", None),
    "mix_temperature": ("temperature of the teacher's head in it", None),
    "mixed_accuracy": ("accuracy of the best mixture", "higher"),
    "first_accuracy": ("accuracy of the labels' head alone", "higher"),
    "second_accuracy": ("accuracy of the teacher's head alone", "higher"),
}


def measure(view: View) -> dict[str, float]:
    """Weight and temperature that mix both heads best, and the accuracy of each head alone.

    Nothing for a student without two heads.
    """
    said = [(view.student(batch).get("features", {}), batch.labels) for batch in view.batches()]
    if not all(HEADS in features for features, _ in said):
        return {}
    both, labels = torch.cat([f[HEADS] for f, _ in said]), torch.cat([y for _, y in said])
    right = (both.argmax(-1) == labels[:, None]).double().mean(0).tolist()
    chosen = (*best_mixture(both, labels), *right)
    return dict(zip(COLUMNS, chosen, strict=True))
