"""A table with one row for each training sample."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Bank(nn.Module):
    """Values [samples, ...] by sample id, and which ids have been written; saved as buffers."""

    values: Tensor
    written: Tensor

    def __init__(self, samples: int, *shape: int, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.register_buffer("values", torch.zeros(samples, *shape, dtype=dtype))
        self.register_buffer("written", torch.zeros(samples, dtype=torch.bool))

    def read(self, id: Tensor, default: Tensor) -> Tensor:
        """The rows of these ids; ``default`` where nothing was written yet."""
        known = self.written[id].view(-1, *[1] * (self.values.dim() - 1))
        return torch.where(known, self.values[id], default)

    @torch.no_grad()
    def write(self, id: Tensor, values: Tensor) -> None:
        self.values[id] = values.to(self.values)
        self.written[id] = True
