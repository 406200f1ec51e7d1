"""Accuracy by class, by hand."""

from types import SimpleNamespace

import pytest
import torch

from stillroom.core import Signals
from stillroom.evaluation import balanced
from stillroom.evaluation.suite import View

pytest.importorskip("torchmetrics", reason="the extra 'eval' is not installed")
pytestmark = pytest.mark.extra("eval")


def test_by_hand():
    """Of class 0 three of four are right, of 1 one of one, of 2 none of two; 3 does not occur."""
    said = torch.tensor([0, 0, 0, 3, 1, 1, 0])
    labels = torch.tensor([0, 0, 0, 0, 1, 2, 2])
    logits = torch.nn.functional.one_hot(said, 4).float()
    view = View(players={"student": lambda batch: Signals(logits=batch.z)}, data=None)
    view.batches = lambda: [
        SimpleNamespace(z=z, labels=y)
        for z, y in zip(logits.split(3), labels.split(3), strict=True)
    ]
    told = balanced.measure(view)
    assert told["balanced_accuracy"] == pytest.approx((0.75 + 1 + 0) / 3, abs=1e-6)
    assert told["worst_accuracy"] == 0
    assert set(told) == set(balanced.COLUMNS)
    assert balanced.teacher(view) == {}
    view.teachers = {"teacher": SimpleNamespace(signals={"text"})}
    assert balanced.teacher(view) == {}


def test_a_live_teacher_is_told_too():
    class Live:
        signals = frozenset({"logits"})

        def __call__(self, batch):
            return Signals(logits=torch.eye(2)[[0, 1, 1]])

    view = View(players={}, data=None, teachers={"teacher": Live()})
    view.batches = lambda: [SimpleNamespace(labels=torch.tensor([0, 1, 0]))]
    assert balanced.teacher(view) == pytest.approx(
        {"balanced_accuracy": 0.75, "worst_accuracy": 0.5}, abs=1e-6
    )
