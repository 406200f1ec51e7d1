"""Chances under guessing, exact, and their adjustment where several are read together."""

from __future__ import annotations

import math
from collections.abc import Sequence


def tail(right: int, items: int, options: int) -> float:
    """Chance to have so many right of ``items`` or more by guessing: ``P(X >= right)``.

    X ~ Binomial(items, 1 / options). Exact: whole numbers are summed, and divided once.

    >>> tail(2, 2, 4)
    0.0625
    """
    ways = (math.comb(items, i) * (options - 1) ** (items - i) for i in range(right, items + 1))
    return sum(ways) / options**items


def holm(chances: Sequence[float]) -> list[float]:
    """p-values of several tests, adjusted so that all errors together stay at the level (Holm).

    The i-th smallest of m is multiplied by ``m - i + 1``; none is below a smaller one's, nor above
    1. In the order given.

    >>> holm([0.5, 0.125])
    [0.5, 0.25]
    """
    adjusted, least = [0.0] * len(chances), 0.0
    order = sorted(range(len(chances)), key=chances.__getitem__)
    for rank, place in enumerate(order):
        least = max(least, min(1.0, chances[place] * (len(chances) - rank)))
        adjusted[place] = least
    return adjusted
