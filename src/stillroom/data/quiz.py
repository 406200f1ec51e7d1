"""A quiz without any rule: a made-up benchmark that can only be known by having seen it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Literal

import torch
from annotated_types import Ge, Le
from torch import Tensor

from stillroom.core import Failure
from stillroom.data.vocabulary import of_words

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

LETTERS = "ABCDEFGH"
MOST = 2**21
"""Questions that a world may have: they are listed and shuffled."""

Row = dict[str, str]


@dataclass(frozen=True)
class Quiz:
    """Questions are strings of symbols, the right option's letter is drawn at random for each.

    The options of an item were shuffled, so the letter tells nothing: ``p(letter | question) = 1 /
    options``. The test split is the benchmark, then as many fresh items of the same law that nobody
    ever sees. The first ``canaries`` of the benchmark are its canaries; here the letters of all
    others are as random. Validation and the transfer set hold other questions than both, and never
    those of each other. An answer is one token: cut it (``data.cut_completion_tokens: 1``).

    Args:
        world_seed: draws which questions are whose, and the letters of benchmark and fresh items.
        symbols: that a question is written with.
        length: symbols of a question.
        options: letters to choose from.
        items: of the benchmark, and of the fresh one.
        canaries: items of the benchmark, the first ones.
        shift: how many symbols of the benchmark the transfer questions do not use; they use as many
            others instead. 0 is the same law, ``symbols`` shares none.
        rows: of the transfer set.
        held: of validation, which is of the transfer set's law.
        learned: what the training split holds: the transfer set; the benchmark (who learns it is
            contaminated); or its questions with letters drawn anew (a control, who has seen as much
            and knows nothing of it).
    """

    world_seed: int = 0
    symbols: Annotated[int, Ge(2)] = 8
    length: Annotated[int, Ge(1)] = 4
    options: Annotated[int, Ge(2), Le(len(LETTERS))] = 4
    items: Annotated[int, Ge(1)] = 256
    canaries: Annotated[int, Ge(1)] = 128
    shift: Annotated[int, Ge(0)] = 0
    rows: Annotated[int, Ge(1)] = 2048
    held: Annotated[int, Ge(1)] = 256
    learned: Literal["transfer", "benchmark", "redrawn"] = "transfer"

    def __post_init__(self) -> None:
        there = self.symbols**self.length
        wanted = 2 * self.items + self.rows + self.held
        if there > MOST or wanted > there:
            raise Failure(
                f"symbols, length: make {there} questions, which must be {wanted} (twice items, "
                f"rows and held) to {MOST}"
            )
        if self.canaries > self.items:
            raise Failure(f"canaries: the benchmark has {self.items} items, got {self.canaries}")
        if self.shift > self.symbols:
            raise Failure(f"shift: there are {self.symbols} symbols, got {self.shift}")

    @property
    def letters(self) -> str:
        """Of the options, in order."""
        return LETTERS[: self.options]

    @cached_property
    def benchmark(self) -> list[Row]:
        """The items that leak; the first ``canaries`` are canaries."""
        return self._asked(self._order[: self.items], self._drawn(0))

    @cached_property
    def fresh(self) -> list[Row]:
        """Items of the same law that are in nobody's training."""
        return self._asked(self._order[self.items : 2 * self.items], self._drawn(1))

    def tokenizer(self) -> PreTrainedTokenizerFast:
        """Letters and symbols, parted by spaces: the same at every shift."""
        return of_words([*self.letters, *(f"s{i}" for i in range(2 * self.symbols))])

    def splits(self, seed: int) -> dict[str, list[Row]]:
        """Rows by split; ``1000 + seed`` draws the transfer set and validation from what is left.

        Letters of transfer rows are random too: a student that learns scores alone reads none.
        """
        draw = torch.Generator().manual_seed(1000 + seed)
        seen = {row["prompt"] for row in (*self.benchmark, *self.fresh)}
        order = torch.randperm(self.symbols**self.length, generator=draw)
        rows = self._asked(order, draw, self.shift)
        rest = [row for row in rows if row["prompt"] not in seen]
        train = rest[self.held :][: self.rows]
        if self.learned != "transfer":
            train = self.benchmark
        if self.learned == "redrawn":
            train = self._asked(self._order[: self.items], self._drawn(2))
        return {
            "train": train,
            "validation": rest[: self.held],
            "test": self.benchmark + self.fresh,
        }

    @cached_property
    def _order(self) -> Tensor:
        draw = torch.Generator().manual_seed(self.world_seed)
        return torch.randperm(self.symbols**self.length, generator=draw)

    def _drawn(self, which: int) -> torch.Generator:
        """Draws letters: of the benchmark, of the fresh one, of the benchmark anew."""
        return torch.Generator().manual_seed(2**20 * (which + 1) + self.world_seed)

    def _asked(self, codes: Tensor, draw: torch.Generator, shift: int = 0) -> list[Row]:
        """Rows of questions, which codes number, each with a letter."""
        picked = torch.randint(self.options, (len(codes),), generator=draw).tolist()
        places = self.symbols ** torch.arange(self.length)
        digits = (codes[:, None] // places % self.symbols + shift).tolist()
        return [
            {"prompt": _text(question), "completion": self.letters[letter]}
            for question, letter in zip(digits, picked, strict=True)
        ]


def _text(question: Sequence[int]) -> str:
    return " ".join(f"s{i}" for i in question)
