"""Lists of rows mixed by shares or by caps: hard beside easy, a replay of older rounds.

The same seed gives the same rows; shares come out exact to one row (largest remainder).
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

from stillroom.data.rows import Row
from stillroom.failures import Failure


@dataclass(frozen=True)
class Mixed:
    """The rows, in one shuffled order, and how many came of each source."""

    rows: Sequence[Row]
    counts: Mapping[str, int]


def mixed(
    sources: Mapping[str, Sequence[Row]],
    shares: Mapping[str, float],
    count: int | None = None,
    *,
    seed: int = 0,
    repeat: bool = False,
) -> Mixed:
    """So many rows of several sources, in proportion to ``shares``, without replacement.

    Args:
        sources: rows by name.
        shares: weights by the same names; they need not sum to 1.
        count: rows of the mix; None takes the most that the shares allow without repeating a row.
        seed: of what is drawn and of the order.
        repeat: where a source is too small, give all of it as often as fits, then draw the rest.

    Raises:
        Failure: names differ, a share is not above 0, or a source is too small.
    """
    _same_names(sources, shares)
    if bad := [name for name, share in shares.items() if not 0 < share < math.inf]:
        raise Failure(f"{bad[0]}: a share is a number above 0, got {shares[bad[0]]}")
    sizes = {name: len(rows) for name, rows in sources.items()}
    if count is None:
        if repeat:
            raise Failure("repeating rows has no natural end: say how many rows the mix shall have")
        count = _most(sizes, shares)
    if count < 1:
        raise Failure(f"a mix of {count} rows of sources of {sizes}: ask for at least 1, from more")
    counts = split(count, shares)
    for name, wanted in counts.items():
        if wanted > sizes[name] and not (repeat and sizes[name]):
            raise Failure(
                f"{name} has {sizes[name]} rows, and {wanted} are its share of {count}: ask for "
                "fewer rows, change the shares, or allow repeats"
            )
    return _drawn(sources, counts, seed)


def capped(
    sources: Mapping[str, Sequence[Row]], caps: Mapping[str, int], *, seed: int = 0
) -> Mixed:
    """At most so many rows of each source, drawn without replacement; all where it has fewer.

    Raises:
        Failure: names differ, a cap is below 1, or no rows are there.
    """
    _same_names(sources, caps)
    if bad := [name for name, cap in caps.items() if cap < 1]:
        raise Failure(f"{bad[0]}: a cap is at least 1 row, got {caps[bad[0]]}")
    counts = {name: min(cap, len(sources[name])) for name, cap in caps.items()}
    if not any(counts.values()):
        raise Failure("no source has a row to mix")
    return _drawn(sources, counts, seed)


def split(count: int, shares: Mapping[str, float]) -> dict[str, int]:
    """``count`` parted by shares: floors, and one more to the largest remainders.

    >>> split(10, {"hard": 1, "easy": 1, "old": 1})
    {'hard': 4, 'easy': 3, 'old': 3}

    Of equal remainders the first comes first.
    """
    exact = {name: _exact(share) for name, share in shares.items()}
    whole = sum(exact.values())
    quotas = {name: count * share / whole for name, share in exact.items()}
    counts = {name: math.floor(quota) for name, quota in quotas.items()}
    left = count - sum(counts.values())
    behind = sorted(quotas, key=lambda name: counts[name] - quotas[name])
    return {name: counts[name] + (name in behind[:left]) for name in quotas}


def _most(sizes: Mapping[str, int], shares: Mapping[str, float]) -> int:
    """The largest count of which no share is above what its source has."""
    whole = sum(map(_exact, shares.values()))
    return min(math.floor(sizes[name] * whole / _exact(share)) for name, share in shares.items())


def _exact(share: float) -> Fraction:
    return Fraction(str(share))  # 0.3 as it was written: 3 of 3 rows are three tenths of 10


def _drawn(sources: Mapping[str, Sequence[Row]], counts: Mapping[str, int], seed: int) -> Mixed:
    rows: list[Row] = []
    for i, (name, wanted) in enumerate(counts.items()):
        every = sources[name]
        times, rest = divmod(wanted, len(every)) if wanted else (0, 0)
        # its own stream of draws a source: another's size must not change what is taken here
        drawn = random.Random(f"{seed} {i}").sample(range(len(every)), rest)
        rows += [_noted(every[k], name) for k in [*range(len(every))] * times + sorted(drawn)]
    random.Random(f"{seed} order").shuffle(rows)
    return Mixed(rows, dict(counts))


def _noted(row: Row, source: str) -> Row:
    return {**row, "provenance": {**(row.get("provenance") or {}), "mixed": {"source": source}}}


def _same_names(sources: Mapping[str, Sequence[Row]], told: Mapping[str, float]) -> None:
    if not sources or set(sources) != set(told):
        raise Failure(f"sources {sorted(sources)} and numbers for {sorted(told)} do not fit")
