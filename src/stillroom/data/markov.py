"""A Markov source of order two: a made-up text world whose every distribution is known."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Annotated

import torch
from annotated_types import Ge, Gt, Le, Lt
from torch import Tensor, nn

from stillroom.catalogue import closure
from stillroom.core import Batch, Failure, Signals
from stillroom.data.vocabulary import SPECIAL, of_words

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

RARE = 1e-6
"""Probability of each token that may not follow: none is ever written, and none has -inf."""

Row = dict[str, str]


@dataclass(frozen=True)
class Markov:
    """The two symbols before decide what may follow, and how surely.

    After each pair ``followers`` of the symbols may come. A share ``broad`` of the pairs spreads
    its mass over them (``p ~ (0.1 + u)^2``, u uniform); the others give ``sure`` of it to one. A
    prompt is two symbols, an answer goes on from them and does not end: cut it
    (``data.cut_completion_tokens``) at ``length`` tokens.

    Args:
        world_seed: draws the source.
        symbols: how many there are.
        followers: symbols that may come after a pair.
        broad: share of the pairs after which nothing is sure.
        sure: probability of the likeliest symbol after the others.
        length: symbols of an answer.
        rows: of the training split.
        held: of validation, and of test.
    """

    world_seed: int = 0
    symbols: Annotated[int, Ge(2)] = 12
    followers: Annotated[int, Ge(2)] = 5
    broad: Annotated[float, Ge(0), Le(1)] = 0.5
    sure: Annotated[float, Gt(0), Lt(1)] = 0.97
    length: Annotated[int, Ge(1)] = 24
    rows: Annotated[int, Ge(1)] = 4096
    held: Annotated[int, Ge(1)] = 128

    def __post_init__(self) -> None:
        if self.followers > self.symbols:
            raise Failure(f"followers: there are {self.symbols} symbols, got {self.followers}")

    @cached_property
    def table(self) -> Tensor:
        """[V, V, V] log-probabilities, float64, after the token before the last, and the last."""
        draw = torch.Generator().manual_seed(self.world_seed)
        n, k = self.symbols, self.followers
        which = torch.rand(n, n, n, generator=draw).argsort(-1)[..., :k]
        mass = (0.1 + torch.rand(n, n, k, generator=draw, dtype=torch.double)).square()
        mass /= mass.sum(-1, keepdim=True)
        mass = torch.where(self._broad(draw)[..., None], mass, self._surely(mass))
        whole = n + SPECIAL
        symbols = torch.full((n, n, whole), RARE, dtype=torch.double)
        symbols.scatter_(-1, which + SPECIAL, mass * (1 - RARE * (whole - k)))
        table = torch.full((whole,) * 3, 1 / whole, dtype=torch.double)  # after what is no symbol
        table[SPECIAL:, SPECIAL:] = symbols
        return table.log()

    @property
    def allowed(self) -> Tensor:
        """[V, V, V] what may follow."""
        return self.table > math.log(10 * RARE)

    def _broad(self, draw: torch.Generator) -> Tensor:
        """[n, n] which pairs are, exactly so many."""
        pairs = self.symbols**2
        order = torch.randperm(pairs, generator=draw)
        return (order < round(self.broad * pairs)).view(self.symbols, self.symbols)

    def _surely(self, mass: Tensor) -> Tensor:
        """The same with ``sure`` for the first, and the others sharing what is left."""
        others = mass[..., 1:] / mass[..., 1:].sum(-1, keepdim=True)
        return torch.cat([torch.full_like(mass[..., :1], self.sure), others * (1 - self.sure)], -1)

    def tokenizer(self) -> PreTrainedTokenizerFast:
        """Symbols parted by spaces."""
        return of_words([f"s{i}" for i in range(self.symbols)])

    def teacher(self) -> Source:
        """The source itself."""
        return Source(self)

    def splits(self, seed: int) -> dict[str, list[Row]]:
        """Rows by split, drawn from the source with ``1000 + seed``."""
        draw = torch.Generator().manual_seed(1000 + seed)
        sizes = {"train": self.rows, "validation": self.held, "test": self.held}
        return {name: self._written(count, draw) for name, count in sizes.items()}

    def _written(self, count: int, draw: torch.Generator) -> list[Row]:
        chances = self.table.exp() * self.allowed
        said = list(torch.randint(self.symbols, (2, count), generator=draw) + SPECIAL)
        for _ in range(self.length):
            after = chances[said[-2], said[-1]]
            said.append(torch.multinomial(after, 1, generator=draw).squeeze(-1))
        told = torch.stack(said, 1).tolist()
        return [{"prompt": self._text(r[:2]), "completion": self._text(r[2:])} for r in told]

    def _text(self, ids: Sequence[int]) -> str:
        return " ".join(f"s{i - SPECIAL}" for i in ids)


class Source(nn.Module):
    """The world's teacher: exact scores of what comes next."""

    signals = closure({"logits", "text"})

    def __init__(self, world: Markov) -> None:
        super().__init__()
        self.world = world

    def forward(self, batch: Batch) -> Signals:
        ids, rows = batch["ids"].flatten(), batch["rows"]
        table = self.world.table.to(ids.device)
        return Signals(logits=table[ids[rows - 1], ids[rows]].float())
