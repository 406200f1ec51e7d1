"""Endless batches of one data set, with a cursor that a checkpoint can hold."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Protocol

import torch

from stillroom.core import Batch, Failure
from stillroom.data.views import Places, Views


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
        views: how examples are changed, anew in each pass.
    """

    def __init__(
        self,
        data: Data,
        size: int,
        seed: int,
        *,
        rank: int = 0,
        world: int = 1,
        views: Views | None = None,
    ) -> None:
        if size % world:
            raise Failure(f"train.batch is {size}: it must be a multiple of the {world} processes")
        self.data, self.size, self.seed = data, size, seed
        self.rank, self.world = rank, world
        self.views = views
        self.cursor = 0
        if views is not None:
            views.check(data.batch([0]))

    @property
    def epoch(self) -> int:
        return self.cursor // len(self.data)

    def next(self) -> Batch:
        mine = range(self.cursor + self.rank, self.cursor + self.size, self.world)
        self.cursor += self.size
        if self.views is None:
            return self.data.batch([self._index(k) for k in mine])
        return self._viewed(self.views, list(mine))

    def everything(self) -> Iterator[Batch]:
        """Every sample once, as the data hold it and in their order; the cursor stays where it is.

        Shares of processes are equal: what fills the last batch up has mask 0.
        """
        most = len(self.data)
        for start in range(0, most, self.size):
            mine = range(start + self.rank, start + self.size, self.world)
            batch = self.data.batch([min(k, most - 1) for k in mine])
            inside = torch.tensor([k < most for k in mine])[batch.owner]
            yield batch.add(mask=batch.mask * inside.to(batch.mask))

    def _viewed(self, views: Views, mine: list[int]) -> Batch:
        """The samples ``mine`` as they are seen, those that are mixed into them read as well."""
        step = self.cursor - self.size
        before = [step + (k - 1 - step) % self.size for k in mine]
        read = sorted({*mine, *(before if views.mixup else ())})
        at = {k: i for i, k in enumerate(read)}
        places = Places(
            seed=self.seed,
            passes=torch.tensor([k // len(self.data) for k in read]),
            step=step,
            own=torch.tensor([at[k] for k in mine]),
            before=torch.tensor([at[k] for k in (before if views.mixup else mine)]),
        )
        return views.of(self.data.batch([self._index(k) for k in read]), places)

    def _index(self, k: int) -> int:
        epoch, place = divmod(k, len(self.data))
        return _order(len(self.data), self.seed, epoch)[place]


@lru_cache(maxsize=4)
def _order(length: int, seed: int, epoch: int) -> list[int]:
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    return torch.randperm(length, generator=generator).tolist()
