"""Inputs with class labels: tensors, or any map-style data set of ``(x, y)`` pairs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import default_collate

from stillroom.core import Batch, Failure


class ItemData:
    """Examples ``(x, y)`` by index; the index is the sample id.

    Args:
        items: a pair of tensors ``(x [n, ...], y [n])``, or a map-style data set of pairs.
    """

    def __init__(self, items: Any) -> None:
        pair = isinstance(items, tuple) and len(items) == 2 and isinstance(items[0], Tensor)
        if pair and len(items[0]) != len(items[1]):
            raise Failure(f"data: {len(items[0])} inputs but {len(items[1])} labels")
        if not len(items[0] if pair else items):
            raise Failure("data: there are no examples")
        self.pair, self.items = pair, items

    longest = 0

    def __len__(self) -> int:
        return len(self.items[0] if self.pair else self.items)

    def batch(self, indices: Sequence[int]) -> Batch:
        id = torch.tensor(list(indices))
        if self.pair:
            x, y = self.items[0][id], self.items[1][id]
        else:
            x, y = default_collate([self.items[i] for i in indices])
        return Batch(x=x, labels=y, mask=torch.ones(len(id)), id=id)
