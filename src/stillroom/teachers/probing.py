"""Whether a server tells the truth about given tokens: one known sequence, asked in several ways.

Numbers are compared as probabilities, since kernels in half precision give slightly other ones for
another batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from stillroom.core import Failure
from stillroom.store.budget import Budget
from stillroom.store.requests import Decoding, Request
from stillroom.teachers.entries import (
    BROKEN,
    Row,
    alike,
    apart,
    entries_of,
    maps,
    rows_of,
    word,
    written_of,
)
from stillroom.teachers.served import Scorer, Told, asked

NEAR = 0.05
"""Half the sum of differences between probabilities that still counts as equal."""
PLACES = 3
"""Places at which the next token is asked for."""
GREEDY = 8
"""Tokens that are written at temperature 0."""


@dataclass(frozen=True)
class Finding:
    """One test: what it is about, whether it was passed, what was seen."""

    about: str
    fine: bool
    says: str


class Probe:
    """Tests of a served teacher; each returns what it saw, or raises a Failure.

    Args:
        source: the server, with K.
        vocab: ids of the tokenizer are below this.
        budget: bounds on the tokens of all requests.
        tokenizer: the one that the served model is said to have.
        ids: the known sequence, of 3 tokens at least.
    """

    def __init__(
        self, source: Scorer, vocab: int, budget: Budget, tokenizer: Any, ids: Sequence[int]
    ) -> None:
        self.source, self.vocab, self.budget = source, vocab, budget
        self.tokenizer, self.ids = tokenizer, list(ids)

    def findings(self) -> Iterator[Finding]:
        """The tests in order; raises Failure where the server does not answer at all."""
        _ = self.whole
        tests: dict[str, Callable[[], str]] = {
            "tokenizer as claimed": self.words,
            f"the {self.source.k} likeliest": self.ranks,
            "raw, not processed": self.raw,
            "temperature honoured": self.greedy,
            "no off by one": self.aligned,
        }
        for about, test in tests.items():
            try:
                yield Finding(about, True, test())
            except Failure as failure:
                yield Finding(about, False, str(failure))

    def ask(self, said: Any, *, k: int | None = None, next: bool = False, **how: Any) -> Told:
        source = replace(self.source, k=k or self.source.k, next=next)
        return asked(source, [Request(said, Decoding(**how))], self.budget)[0]

    @cached_property
    def whole(self) -> Told:
        """The reply about the sequence, as training asks for it."""
        return self.ask(self.ids)

    @cached_property
    def entries(self) -> list[Any]:
        told = entries_of(self.whole.choice, len(self.ids))
        if strange := [one for one in told[1:] if not maps(one)]:
            raise Failure(f"an entry is no map of ids to maps: {strange[0]!r:.120}")
        return told

    @cached_property
    def rows(self) -> list[Row]:
        return self._rows(self.whole, self.source.k)

    def _rows(self, told: Told, k: int) -> list[Row]:
        """The ``k`` likeliest at each token after the first."""
        return rows_of(told.choice, self.ids, range(len(self.ids) - 1), k, self.vocab)

    def words(self) -> str:
        """What ids stand for there, and which ids a text becomes there."""
        sent = len(self.ids)
        counted = self.whole.tokens and self.whole.tokens.prompt
        if counted != sent:
            raise Failure(f"{sent} ids were sent, and its usage counts {counted}")
        named = {int(i): one for entry in self.entries[1:] for i, one in entry.items()}
        for i, one in named.items():
            mine = self.tokenizer.decode([i]) if i < self.vocab else None
            theirs = one.get("decoded_token")
            if mine is None or not alike(mine, theirs):
                raise Failure(
                    f"id {i} is {theirs!r} there and {mine!r} in the tokenizer that is named: name "
                    "the one that the served model has as teacher.tokenizer"
                )
        text = self.tokenizer.decode(self.ids, skip_special_tokens=True)
        ids = self.tokenizer(text).input_ids
        told = self.ask(text).choice.get("prompt_logprobs") or []
        same = len(told) == len(ids)
        if not same or any(str(i) not in one for i, one in zip(ids[1:], told[1:], strict=True)):
            raise Failure(f"{text!r:.60} becomes other ids there than in the tokenizer named")
        return f"{len(named)} ids stand for the same, {sent} tokens are {sent} there"

    def ranks(self) -> str:
        for place, row in enumerate(self.rows, start=1):
            entry = self.entries[place]
            ranks = [entry[str(i)].get("rank") for i, _ in row]
            if sorted(ranks, key=lambda n: n or 0) != [*range(1, len(row) + 1)]:
                raise Failure(f"at token {place} the likeliest have the ranks {ranks}")
            by_rank = [p for _, p in sorted(zip(ranks, (p for _, p in row), strict=True))]
            if by_rank != [p for _, p in row]:
                raise Failure(f"at token {place} a token of lower rank is likelier: {by_rank}")
        return f"ranks 1 to {self.source.k} in order at each of {len(self.rows)} tokens"

    def raw(self) -> str:
        """Whether numbers depend on how words are chosen, or on how many were asked for."""
        few = 1 if self.source.k > 1 else 2
        ways: dict[str, tuple[int, dict[str, Any]]] = {
            "temperature 2": (self.source.k, {"temperature": 2.0}),
            "top_p 0.5": (self.source.k, {"top_p": 0.5}),
            f"prompt_logprobs {few}": (few, {}),
        }
        for said, (k, how) in ways.items():
            other = self._rows(self.ask(self.ids, k=k, **how), k)
            pairs = [sorted(pair, key=len) for pair in zip(self.rows, other, strict=True)]
            gap = max(apart(dict(few), dict(many)) for few, many in pairs)
            if gap > NEAR:
                raise Failure(
                    f"probabilities differ by up to {gap:.3f} with {said}: they are processed or "
                    "renormalised; have the server give raw ones (vLLM: --logprobs-mode "
                    "raw_logprobs)"
                )
        sums = [math.fsum(math.exp(p) for _, p in row) for row in self.rows]
        held = f"the {self.source.k} hold {min(sums):.3f} to {max(sums):.3f}"
        return f"{held} of the probability, and are the same with {', '.join(ways)}"

    def greedy(self) -> str:
        """Whether temperature 0 takes the likeliest, each time."""
        place = len(self.ids) // 2
        said = self.ids[:place]
        first, second = (
            self.ask(said, next=True, temperature=0.0, max_tokens=GREEDY) for _ in range(2)
        )
        if first.text != second.text:
            raise Failure(f"two answers at temperature 0 differ: {first.text!r}, {second.text!r}")
        written = written_of(first.choice)["tokens"][0]
        row, entry = dict(self.rows[place - 1]), self.entries[place]
        least = math.exp(max(row.values())) - NEAR
        likely = [word(entry, i) for i, p in row.items() if math.exp(p) > least]
        if not any(alike(written, said) for said in likely):
            raise Failure(
                f"after {place} tokens it writes {written!r} at temperature 0, and calls "
                f"{likely[0]!r} most likely"
            )
        return f"two greedy answers agree and begin with the likeliest, {written!r}"

    def aligned(self) -> str:
        """Whether what it says of a token is what it says next after those before."""
        last = len(self.ids) - 1
        places = sorted({1 + (last - 1) * n // (PLACES - 1) for n in range(PLACES)})
        for place in places:
            next_ = written_of(self.ask(self.ids[:place], next=True).choice)["top_logprobs"][0]
            entry = self.entries[place]
            mine = {word(entry, i): p for i, p in self.rows[place - 1]}
            mine = {said: p for said, p in mine.items() if BROKEN not in said}
            if (gap := apart(mine, next_)) > NEAR:
                raise Failure(
                    f"its entry at token {place} and what it says next after the {place} before "
                    f"differ by {gap:.3f}: the entries stand at other places, or are of another "
                    "kind than those of written tokens"
                )
        return f"entries at {', '.join(map(str, places))} are what it says next there"
