"""Average precision and F1 of several labels by hand."""

import pytest
import torch

from stillroom.core import Batch, Failure, Signals
from stillroom.evaluation import accuracy, many_labels
from stillroom.evaluation.suite import View

pytestmark = pytest.mark.extra("eval")


def view_of(logits, labels):
    batches = [
        Batch(id=torch.arange(len(y)), logits=z, labels=y)
        for z, y in zip(logits.split(3), labels.split(3), strict=True)
    ]
    view = View(players={"student": lambda batch: Signals(logits=batch.logits)}, data=None)
    view.batches = lambda: batches
    return view


def test_by_hand():
    # by label 0: right, wrong, right, wrong: (1 + 2/3) / 2; by label 1: wrong, wrong, wrong, right
    logits = torch.tensor([[3.0, 4.0, 1.0], [2.0, 3.0, 1.0], [1.0, 2.0, 1.0], [-1.0, 1.0, 1.0]])
    labels = torch.tensor([[1, 0, 0], [0, 0, 0], [1, 0, 0], [0, 1, 0]])
    told = many_labels.measure(view_of(logits, labels))
    assert told["map"] == pytest.approx((5 / 6 + 1 / 4) / 2)
    assert told["worst_ap"] == pytest.approx(1 / 4)
    # told at 0: label 0 thrice, twice right; label 1 four times, once right; no miss
    assert told["of1"] == pytest.approx(2 * 3 / (2 * 3 + 4))
    assert told["cf1"] == pytest.approx((4 / 5 + 2 / 5) / 2, abs=1e-6)
    chances = logits[:, :2].sigmoid()
    right = torch.where(labels[:, :2] > 0, chances, 1 - chances)
    assert told["bce"] == pytest.approx(-right.log().mean().item(), abs=1e-6)
    assert set(told) == set(many_labels.COLUMNS)
    assert many_labels.teacher(view_of(logits, labels)) == {}


def test_one_class_an_example_is_refused():
    with pytest.raises(Failure, match="take accuracy"):
        many_labels.measure(view_of(torch.zeros(4, 3), torch.tensor([0, 1, 2, 0])))


def test_several_labels_are_no_matter_of_accuracy():
    with pytest.raises(Failure, match="take many_labels"):
        accuracy.measure(view_of(torch.zeros(4, 3), torch.ones(4, 3).long()))
