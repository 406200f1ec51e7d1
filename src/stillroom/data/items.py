"""Inputs with class labels: tensors, or any map-style data set of ``(x, y)`` pairs."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import default_collate

from stillroom.core import Batch, Failure


class ItemData:
    """Examples ``(x, y)`` by index; the index is the sample id.

    Args:
        items: a pair of tensors ``(x [n, ...], y [n])``, or a map-style data set of pairs. Where
            an example has several classes at once, y is [n, C] of 0 and 1.
        classes: how many there are; None counts the names, or those of the labels.
        names: of the classes, in their order, where they have some.
    """

    def __init__(
        self, items: Any, classes: int | None = None, names: Sequence[Any] | None = None
    ) -> None:
        pair = isinstance(items, tuple) and len(items) == 2 and isinstance(items[0], Tensor)
        if pair and len(items[0]) != len(items[1]):
            raise Failure(f"data: {len(items[0])} inputs but {len(items[1])} labels")
        if not len(items[0] if pair else items):
            raise Failure("data: there are no examples")
        self.pair, self.items, self.names = pair, items, names
        self._classes = classes if names is None else len(names)

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

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one input."""
        return tuple(self.batch([0]).x.shape[1:])

    @cached_property
    def classes(self) -> int:
        """How many classes there are, one more than the largest label where nobody said so."""
        if self._classes is not None:
            return self._classes
        labels = [batch.labels for batch in self._all()]
        return labels[0].shape[1] if labels[0].dim() == 2 else int(torch.cat(labels).max()) + 1

    @cached_property
    def sha256(self) -> str:
        """Of all inputs and labels, in order."""
        found = hashlib.sha256()
        for batch in self._all():
            for part in (batch.x, batch.labels):
                found.update(str((part.dtype, tuple(part.shape))).encode())
                found.update(part.contiguous().numpy().tobytes())
        return found.hexdigest()

    def _all(self) -> Iterator[Batch]:
        for start in range(0, len(self), 1024):
            yield self.batch(range(start, min(start + 1024, len(self))))
