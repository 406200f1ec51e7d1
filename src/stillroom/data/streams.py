"""Endless batches of one data set, with a cursor that a checkpoint can hold."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Protocol

import torch

from stillroom.core import Batch, Failure


class Data(Protocol):
    """Anything with a length that makes a batch of the examples at given indices.

    ``longest``: tokens of the longest prompt and of the longest answer together; 0 where the
    examples are no texts.
    """

    @property
    def longest(self) -> int: ...
    def __len__(self) -> int: ...
    def batch(self, indices: Sequence[int]) -> Batch: ...


class Stream:
    """Batches in an order that depends on the seed and the pass alone.

    Sample ``k`` since the start is entry ``k % len(data)`` of pass ``k // len(data)``, so one
    number is the whole cursor, every pass sees every sample once, and every batch is full.

    Args:
        size: examples of one step, over all processes; process ``r`` of ``w`` takes every ``w``-th.
    """

    def __init__(self, data: Data, size: int, seed: int, *, rank: int = 0, world: int = 1) -> None:
        if size % world:
            raise Failure(f"train.batch is {size}: it must be a multiple of the {world} processes")
        self.data, self.size, self.seed = data, size, seed
        self.rank, self.world = rank, world
        self.cursor = 0

    @property
    def epoch(self) -> int:
        return self.cursor // len(self.data)

    def next(self) -> Batch:
        mine = range(self.cursor + self.rank, self.cursor + self.size, self.world)
        self.cursor += self.size
        return self.data.batch([self._index(k) for k in mine])

    def _index(self, k: int) -> int:
        epoch, place = divmod(k, len(self.data))
        return _order(len(self.data), self.seed, epoch)[place]


@lru_cache(maxsize=4)
def _order(length: int, seed: int, epoch: int) -> list[int]:
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    return torch.randperm(length, generator=generator).tolist()
