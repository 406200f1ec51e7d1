"""Near-duplicates in a list of rows and against a pool: n-gram overlap (Jaccard), or ROUGE-L.

Both are exact: an index leaves out only pairs that cannot reach the bound, so nothing depends on
hashes or draws, and the answer is that of comparing all pairs.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from stillroom.data.rows import Row
from stillroom.failures import Failure
from stillroom.traces.texts import Dropped, Kept, noted, text_of
from stillroom.traces.words import grams, words

_SLACK = 1e-9
"""A bound that rounding moved must not cost a pair that meets it exactly."""


def without_duplicates(
    rows: Sequence[Row],
    pool: Sequence[str] = (),
    *,
    least: float = 0.7,
    n: int = 3,
    column: str = "prompt",
) -> Kept:
    """The first of each group of rows whose texts are alike, and none that is like the pool's.

    Alike are texts with ``|A & B| / |A | B|`` of their word n-grams at least ``least``; those with
    the same words (``words.words``: case, punctuation and how numbers are written aside) have 1. A
    row is compared with those that stay and with the pool: one like a dropped row alone stays.

    Args:
        rows: in the order in which they win.
        pool: texts that must not come again.
        least: Jaccard similarity from which on two texts count as one.
        n: words of an n-gram.
        column: the text of a row that is looked at.

    Raises:
        Failure: a row lacks the text, or a bound is out of range.
    """
    if not 0 < least <= 1 or n < 1:
        raise Failure(f"least is a share above 0 and n at least 1, got {least} and {n}")

    def alike(one: _Said, other: _Said) -> float:
        union = len(one.items | other.items)
        score = len(one.items & other.items) / union if union else 1.0
        return score if score >= least else 0.0

    def said(text: str) -> _Said:
        told = words(text)
        return _Said(told, frozenset(grams(told, n)))

    step = {"by": "duplicates", "column": column, "least": least, "n": n}
    return _first(rows, pool, said, _Compared(alike, least, f"Jaccard of {n}-grams"), step)


def unlike(
    rows: Sequence[Row], pool: Sequence[str] = (), *, most: float = 0.7, column: str = "prompt"
) -> Kept:
    """Rows whose highest ROUGE-L against the pool, and all rows kept before, is at most ``most``.

    ROUGE-L is ``2 LCS(a, b) / (|a| + |b|)`` of words, as ``evaluation/overlap.py`` has it from its
    library: runs of letters and digits, lower case, no stemmer. The rule for new instructions of
    Self-Instruct and Lion, which asks for less than 0.7; here 0.7 itself stays. Words in common
    bound the LCS from above, and only pairs that they let through are compared.

    Args:
        rows: in the order in which they win.
        pool: texts that were there before.
        most: the highest ROUGE-L of a row that stays.
        column: the text of a row that is looked at.

    Raises:
        Failure: a row lacks the text, or the bound is out of range.
    """
    if not 0 <= most <= 1:
        raise Failure(f"most is a share from 0 to 1, got {most}")

    def alike(one: _Said, other: _Said) -> float:
        score = rouge_l(one.told, other.told)
        return score if score > most else 0.0

    def said(text: str) -> _Said:
        told, seen = re.findall(r"[^\W_]+", text.lower()), Counter()
        items = []
        for word in told:
            items.append((word, seen[word]))
            seen[word] += 1
        return _Said(told, frozenset(items))

    # the LCS is a part of the words in common: 2 LCS / (a + b) > m means Jaccard > m / (2 - m)
    step = {"by": "rouge_l", "column": column, "most": most}
    return _first(rows, pool, said, _Compared(alike, most / (2 - most), "ROUGE-L"), step)


def rouge_l(one: Sequence[Hashable], other: Sequence[Hashable]) -> float:
    """F1 of the longest common subsequence; 0 where one is empty.

    The lengths of a row of the table of prefixes are kept as bits of one integer, which are set
    where the length does not grow, so that a word costs one addition of long integers.
    """
    if not one or not other:
        return 0.0
    places: dict[Hashable, int] = defaultdict(int)
    for i, word in enumerate(one):
        places[word] |= 1 << i
    every = (1 << len(one)) - 1
    same = every
    for word in other:
        if found := same & places.get(word, 0):
            same = ((same + found) | (same - found)) & every
    return 2 * (len(one) - same.bit_count()) / (len(one) + len(other))


@dataclass(frozen=True, slots=True)
class _Said:
    """A text as words, and as the set that bounds how alike two texts can be."""

    told: Sequence[str]
    items: frozenset[Any]


@dataclass(frozen=True)
class _Compared:
    """``alike`` of two texts, above 0 where one must go, and the Jaccard that it needs at least."""

    alike: Callable[[_Said, _Said], float]
    bound: float
    name: str


def _first(
    rows: Sequence[Row],
    pool: Sequence[str],
    said: Callable[[str], _Said],
    compared: _Compared,
    step: dict[str, Any],
) -> Kept:
    told = [said(text) for text in pool]
    own = [said(text_of(row, step["column"], f"row {i}")) for i, row in enumerate(rows)]
    index = _Index(compared.bound, [text.items for text in (*told, *own)])
    held = [*told]
    for text in told:
        index.add(text.items)
    kept, dropped = [], []
    for place, (row, text) in enumerate(zip(rows, own, strict=True)):
        scores = ((compared.alike(text, held[i]), -i) for i in index.candidates(text.items))
        score, other = max(scores, default=(0.0, 0))
        if score:
            kind = "pool" if -other < len(told) else "duplicate"
            why = f"{compared.name} {score:.2f} with {' '.join(held[-other].told)!r:.100}"
            dropped.append(Dropped(place, row, kind, why))
            continue
        index.add(text.items)
        held.append(text)
        kept.append(noted(row, step))
    return Kept(kept, dropped)


class _Index:
    """Sets that may have a Jaccard similarity of at least ``bound`` with another: no pair is lost.

    Such a pair shares ``ceil(bound |A|)`` items or more, so of the items in one order, rare ones
    first, the first ``|A| - ceil(bound |A|) + 1`` of both hold a common one (prefix filtering,
    Chaudhuri et al., 2006).
    """

    def __init__(self, bound: float, every: Sequence[Collection[Hashable]]) -> None:
        counts = Counter(item for items in every for item in items)
        ranked = sorted(counts, key=lambda item: (counts[item], str(item)))
        self._rank = {item: i for i, item in enumerate(ranked)}
        self._bound = bound
        self._where: dict[int, list[int]] = defaultdict(list)
        self._empty: list[int] = []
        self._size = 0

    def add(self, items: Collection[Hashable]) -> None:
        """Puts a set in; sets are numbered as they come."""
        for rank in self._prefix(items):
            self._where[rank].append(self._size)
        if not items:
            self._empty.append(self._size)
        self._size += 1

    def candidates(self, items: Collection[Hashable]) -> list[int]:
        """Numbers of the sets that must be compared."""
        found = {i for rank in self._prefix(items) for i in self._where.get(rank, ())}
        return sorted(found) if items else [*self._empty]

    def _prefix(self, items: Collection[Hashable]) -> Iterator[int]:
        needed = math.ceil(self._bound * len(items) - _SLACK)
        yield from sorted(self._rank[item] for item in items)[: len(items) - needed + 1]
