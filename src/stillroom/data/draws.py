"""Random numbers that depend on their counters alone."""

from __future__ import annotations

import torch
from torch import Tensor

_GOLDEN, _MIX1, _MIX2 = (-7046029254386353131, -4658895280553007687, -7723592293110705685)


def uniform(seed: int, *counters: Tensor | int) -> Tensor:
    """Uniform numbers in [0, 1), a pure function of seed and counters (they broadcast).

    The finaliser of SplitMix64 (Steele, Lea and Flood, 2014) over each counter in turn; so one
    draw does not depend on the batch, the process or the order in which others are made.
    """
    state = _mix(torch.tensor(seed, dtype=torch.int64) + _GOLDEN)
    for counter in counters:
        state = _mix(state + torch.as_tensor(counter, dtype=torch.int64) * _GOLDEN + _GOLDEN)
    return _shift(state, 11).double() * 2.0**-53


def _shift(x: Tensor, bits: int) -> Tensor:
    """Logical shift to the right (torch's is arithmetic)."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _mix(x: Tensor) -> Tensor:
    x = (x ^ _shift(x, 30)) * _MIX1
    x = (x ^ _shift(x, 27)) * _MIX2
    return x ^ _shift(x, 31)
