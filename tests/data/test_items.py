"""Inputs with class labels, by index."""

import pytest
import torch
from torch.utils.data import TensorDataset

from stillroom.core import Failure
from stillroom.data.items import ItemData

X, Y = torch.arange(12.0).view(4, 3), torch.tensor([2, 0, 1, 2])


@pytest.mark.parametrize(
    "items", [(X, Y), TensorDataset(X, Y), [(x, int(y)) for x, y in zip(X, Y, strict=True)]]
)
def test_a_batch_holds_what_was_asked_for_under_its_index(items):
    data = ItemData(items)
    assert len(data) == 4
    batch = data.batch([3, 1, 3])
    assert torch.equal(batch.x, X[[3, 1, 3]])
    assert batch.labels.tolist() == [2, 0, 2]
    assert batch.labels.dtype == torch.int64
    assert batch.id.tolist() == [3, 1, 3]
    assert batch.mask.tolist() == [1.0, 1.0, 1.0]
    assert batch.size == batch.cost == 3


def test_two_pairs_are_examples_and_not_a_pair_of_tensors():
    data = ItemData([(X[0], 1), (X[1], 0)])
    assert len(data) == 2
    assert data.batch([1]).labels.tolist() == [0]


@pytest.mark.parametrize("items", [[], (X[:0], Y[:0])])
def test_no_examples_are_refused(items):
    with pytest.raises(Failure, match="there are no examples"):
        ItemData(items)


def test_inputs_and_labels_of_unlike_number_are_refused():
    with pytest.raises(Failure, match="4 inputs but 3 labels"):
        ItemData((X, Y[:3]))
