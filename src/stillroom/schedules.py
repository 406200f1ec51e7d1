"""Learning rates as functions of the step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Gt


@dataclass(frozen=True, kw_only=True)
class Rate:
    """One stretch of a learning-rate schedule: linear warm-up to ``peak``, then decay.

    Args:
        peak: the largest rate.
        warmup: steps of linear growth at the start of the stretch.
        decay: shape between the warm-up and the end of the stretch.
        end: the last rate as a share of ``peak`` (``cosine`` and ``linear``).
        until: the step at which the next stretch starts; the last runs to the end.
    """

    peak: Annotated[float, Gt(0)]
    warmup: Annotated[int, Ge(0)] = 0
    decay: Literal["constant", "linear", "cosine"] = "constant"
    end: Annotated[float, Ge(0)] = 0.0
    until: Annotated[int, Ge(1)] | None = None


def rate_at(stretches: Sequence[Rate], step: int, steps: int) -> float:
    """The rate of ``step`` (from 0) in a run of ``steps``."""
    start = 0
    for rate in stretches[:-1]:
        if rate.until is None or step < rate.until:
            return _within(rate, step - start, (rate.until or steps) - start)
        start = rate.until
    return _within(stretches[-1], step - start, steps - start)


def _within(rate: Rate, step: int, steps: int) -> float:
    if step < rate.warmup:
        return rate.peak * (step + 1) / rate.warmup
    if rate.decay == "constant":
        return rate.peak
    done = (step - rate.warmup) / max(1, steps - rate.warmup)
    left = (1 + math.cos(math.pi * done)) / 2 if rate.decay == "cosine" else 1 - done
    return rate.peak * (rate.end + (1 - rate.end) * left)
