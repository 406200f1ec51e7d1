"""Moving averages of a few numbers, kept with the other players."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Averages(nn.Module):
    """Exponential moving averages [k], without the bias of their start; ``steps`` counts.

    ``a_t = (1 - d) sum_i d^(t - i) x_i / (1 - d^t)``
    """

    values: Tensor
    steps: Tensor

    def __init__(self, count: int, decay: float) -> None:
        super().__init__()
        self.decay = decay
        self.register_buffer("values", torch.zeros(count, dtype=torch.float64))
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))

    @torch.no_grad()
    def forward(self, new: Tensor) -> Tensor:
        self.steps += 1
        self.values.lerp_(new.to(self.values), 1 - self.decay)
        return self.values / (1 - self.decay ** int(self.steps))
