"""Shares with an interval: Wilson's for a proportion, and one for a difference of two of a kind."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

Z = 1.959964
"""The two-sided 95 % point of the normal distribution."""


@dataclass(frozen=True)
class Share:
    """A share of ``n``, with its 95 % interval; all three are None where n is 0."""

    value: float | None
    n: int
    low: float | None = None
    high: float | None = None

    def told(self) -> dict[str, Any]:
        """In plain values."""
        return asdict(self)

    def __str__(self) -> str:
        if self.value is None or self.low is None or self.high is None:
            return f"- (n = {self.n})"
        return f"{self.value:.3f} ({self.low:.3f} to {self.high:.3f}, n = {self.n})"


def share(hits: Iterable[bool]) -> Share:
    """The share of trues, with Wilson's score interval.

    ``(p + z^2 / 2n +- z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n)``: it stays within 0 and
    1, and has a width where none or all are true.

    >>> print(share([True] * 8 + [False] * 2))
    0.800 (0.490 to 0.943, n = 10)
    """
    told = list(hits)
    if not (n := len(told)):
        return Share(None, 0)
    p = sum(told) / n
    middle = p + Z * Z / (2 * n)
    reach = Z * math.sqrt(p * (1 - p) / n + Z * Z / (4 * n * n))
    scale = 1 + Z * Z / n
    return Share(p, n, max(0.0, (middle - reach) / scale), min(1.0, (middle + reach) / scale))


def difference(signs: Iterable[int]) -> Share:
    """The share of +1 minus that of -1, among +1, 0 and -1 that exclude each other.

    Interval of Agresti and Min (2005) for matched proportions: Wald's, after half a case is added
    to each of the four cells. With b of +1 and c of -1, each plus 1/2, and N = n + 2:
    ``(b - c) / N +- z sqrt(b + c - (b - c)^2 / N) / N``. ``value`` is the plain difference.
    """
    told = list(signs)
    if not (n := len(told)):
        return Share(None, 0)
    b, c = told.count(1) + 0.5, told.count(-1) + 0.5
    middle = (b - c) / (n + 2)
    reach = Z * math.sqrt(b + c - (b - c) ** 2 / (n + 2)) / (n + 2)
    return Share(sum(told) / n, n, max(-1.0, middle - reach), min(1.0, middle + reach))
