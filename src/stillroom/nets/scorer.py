"""A scalar head on a trunk: the critic of adversarial methods, a reward or value model."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from stillroom.core import Batch


class Scorer(nn.Module):
    """``score [B] = w^T h_last + b``, read at the last real token of each sequence.

    Args:
        body: anything with ``states(batch) -> [B, L, d]`` and ``width``.
    """

    def __init__(self, body: Any) -> None:
        super().__init__()
        self.body = body
        example = next(body.parameters())
        self.head = nn.Linear(body.width, 1).to(example)
        nn.init.normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)

    def forward(self, batch: Batch) -> Tensor:
        states = self.body.states(batch)
        at_last = states[torch.arange(batch.size, device=states.device), batch.last]
        # scores are compared by their differences, for which bfloat16 has too few digits
        with torch.autocast(states.device.type, enabled=False):
            return self.head(at_last.to(self.head.weight)).squeeze(-1)
