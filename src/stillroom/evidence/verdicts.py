"""The 95 % interval of a paired difference, and what it says of a claim."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Literal

from stillroom.core import Failure
from stillroom.extras import extra

LEVEL = 0.95


@dataclass(frozen=True)
class Interval:
    """Mean and two-sided 95 % t interval of differences, in the metric's unit."""

    mean: float
    low: float
    high: float


def interval(differences: Sequence[float]) -> Interval:
    """Student's interval of paired differences: ``mean +- t(0.975, n - 1) * sd / sqrt(n)``.

    ``sd`` divides by n - 1. Assumes that the differences are about normal.

    Raises:
        Failure: fewer than two, which tell nothing of the spread.
    """
    n = len(differences)
    if n < 2:
        raise Failure(f"an interval needs at least 2 seeds, got {n}")
    stats = extra("scipy.stats", "claims", "the interval of a claim")
    reach = float(stats.t.ppf((1 + LEVEL) / 2, n - 1)) * stdev(differences) / math.sqrt(n)
    mean = fmean(differences)
    return Interval(mean, mean - reach, mean + reach)


def verdict(
    found: Interval, sign: Literal["higher", "lower"], margin: float
) -> Literal["held", "not held", "undecided"]:
    """Whether the claim "beyond ``margin`` on the side of ``sign``" held.

    ``held``: the whole interval lies beyond the margin. ``not held``: none of it does; it lies on
    the other side or inside the margin. ``undecided``: the margin's edge is within the interval.
    """
    low, high = found.low, found.high
    if sign == "lower":
        low, high = -high, -low
    if low > margin:
        return "held"
    return "not held" if high <= margin else "undecided"
