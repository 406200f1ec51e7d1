"""A chain of words by Zipf's law: a made-up text world whose teacher is known for every word."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from stillroom.catalogue import closure
from stillroom.core import Batch, Failure, Signals
from stillroom.data.vocabulary import SPECIAL, of_words

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

RARE = 1e-6
"""Probability of each token that is no word: none is ever written, and none has a score of -inf."""

SYLLABLES = [c + v for c in "bdfgklmnprst" for v in "aeiou"]

Row = dict[str, str]


@dataclass(frozen=True)
class ZipfChain:
    """Every word belongs to one of a few kinds, which alone decides what may follow it.

    ``p(v | u) ~ 1 / rank(v | kind of u)^exponent``: each kind has an order of all words of its
    own. A prompt is one word, an answer goes on from it and does not end: cut it
    (``data.cut_completion_tokens``) at ``length`` tokens.

    Args:
        world_seed: draws kinds and orders.
        words: how many there are.
        kinds: of words.
        exponent: the larger, the more of the mass is with few words.
        length: words of an answer.
        spelled: ``numbers`` are ``w0``, ``w1``, ...; ``syllables`` are words of two (``bada``),
            which tokenizers part in various ways.
        rows: of the training split; validation and test have 256 each.
    """

    world_seed: int = 0
    words: int = 1000
    kinds: int = 20
    exponent: float = 1.0
    length: int = 32
    spelled: Literal["numbers", "syllables"] = "numbers"
    rows: int = 4096

    def __post_init__(self) -> None:
        least = {"words": 2, "kinds": 1, "length": 1, "rows": 1}
        for name, value in least.items():
            if getattr(self, name) < value:
                raise Failure(f"{name} must be at least {value}, got {getattr(self, name)}")
        if self.spelled == "syllables" and self.words > len(SYLLABLES) ** 2:
            raise Failure(f"words: there are {len(SYLLABLES) ** 2} of two syllables")
        if not self.exponent >= 0:
            raise Failure(f"exponent must not be below 0, got {self.exponent}")

    @cached_property
    def _told(self) -> tuple[Tensor, Tensor]:
        """The kind of each token [V], and log-probabilities of what follows a kind [kinds, V]."""
        draw = torch.Generator().manual_seed(self.world_seed)
        kind = torch.randint(self.kinds, (self.words + SPECIAL,), generator=draw)
        ranks = torch.stack([torch.randperm(self.words, generator=draw) for _ in range(self.kinds)])
        words = (-self.exponent * (ranks.double() + 1).log()).log_softmax(-1)
        table = torch.full((self.kinds, self.words + SPECIAL), math.log(RARE), dtype=torch.double)
        table[:, SPECIAL:] = words + math.log1p(-SPECIAL * RARE)
        return kind, table

    def logp(self, ids: Tensor) -> Tensor:
        """[..., V] log-probabilities, float64, of the token after each of ``ids`` [...]."""
        kind, table = (part.to(ids.device) for part in self._told)
        return table[kind[ids]]

    def tokenizer(self) -> PreTrainedTokenizerFast:
        """Words parted by spaces."""
        return of_words([self._word(i) for i in range(self.words)])

    def teacher(self) -> Chain:
        """The chain itself."""
        return Chain(self)

    def splits(self, seed: int) -> dict[str, list[Row]]:
        """Rows by split, drawn from the chain with ``1000 + seed``."""
        draw = torch.Generator().manual_seed(1000 + seed)
        sizes = {"train": self.rows, "validation": 256, "test": 256}
        return {name: self._written(count, draw) for name, count in sizes.items()}

    def _written(self, count: int, draw: torch.Generator) -> list[Row]:
        last = torch.randint(self.words, (count,), generator=draw) + SPECIAL
        kind, table = self._told
        chances = table.exp()
        chances[:, :SPECIAL] = 0  # so rare that they are never written
        said = [last]
        for _ in range(self.length):
            last = torch.multinomial(chances[kind[last]], 1, generator=draw).squeeze(-1)
            said.append(last)
        told = torch.stack(said, 1).tolist()
        return [{"prompt": self._text(r[:1]), "completion": self._text(r[1:])} for r in told]

    def _text(self, ids: Sequence[int]) -> str:
        return " ".join(self._word(i - SPECIAL) for i in ids)

    def _word(self, i: int) -> str:
        if self.spelled == "numbers":
            return f"w{i}"
        first, second = divmod(i, len(SYLLABLES))
        return SYLLABLES[first] + SYLLABLES[second]


class Chain(nn.Module):
    """The world's teacher: exact scores of every next word."""

    signals = closure({"logits", "text"})

    def __init__(self, world: ZipfChain) -> None:
        super().__init__()
        self.world = world

    def forward(self, batch: Batch) -> Signals:
        read = batch["ids"].flatten()[batch["rows"]]
        return Signals(logits=self.world.logp(read).float())
