"""Calibration error against bins filled by hand."""

from types import SimpleNamespace

import pytest
import torch

from stillroom.core import Signals
from stillroom.evaluation import calibration

pytest.importorskip("torchmetrics", reason="the extra 'eval' is not installed")
pytestmark = pytest.mark.extra("eval")


def test_by_hand():
    """Two examples at .9, one of them right; two at .6, both right: (2 * .4 + 2 * .4) / 4 = .4.

    Squares: 2 * .1^2, 2 * .9^2, and 2 * .4^2 twice.
    """
    chances = torch.tensor([[0.9, 0.1], [0.9, 0.1], [0.6, 0.4], [0.4, 0.6]])
    labels = torch.tensor([0, 1, 0, 1])
    view = SimpleNamespace(
        student=lambda batch: Signals(logits=chances.log()),
        batches=lambda: [SimpleNamespace(labels=labels)],
    )
    told = calibration.measure(view)
    assert told["ece"] == pytest.approx(0.4, abs=1e-6)
    assert told["confidence"] == pytest.approx(0.75, abs=1e-6)
    assert told["brier"] == pytest.approx((0.02 + 1.62 + 0.32 + 0.32) / 4, abs=1e-6)
    assert set(told) == set(calibration.COLUMNS)
