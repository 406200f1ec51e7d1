"""What a network says about a batch, and the head that turns its last state into logits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from stillroom.core.batch import Bag
from stillroom.failures import Failure

SMALL_LOGITS = 2**24
"""Elements of a [rows, vocabulary] tensor that ``Signals.logits`` still makes on text."""


@dataclass(frozen=True)
class Head:
    """From what the LM head reads (the state after the last norm) to logits.

    ``logits(h) = soft_cap * tanh(scale * (h W^T + b) / soft_cap)``; without a soft-cap the
    ``tanh`` is left out. ``weight`` [V, d], ``bias`` [V].
    """

    weight: Tensor
    bias: Tensor | None = None
    scale: float = 1.0
    soft_cap: float | None = None

    def logits(self, hidden: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.to(hidden.dtype)
        out = nn.functional.linear(hidden, self.weight.to(hidden.dtype), bias)
        if self.scale != 1.0:
            out = out * self.scale
        return out if self.soft_cap is None else self.soft_cap * torch.tanh(out / self.soft_cap)


class Signals(Bag):
    """What a network says about a batch.

    ``hidden`` [N, d] with ``head`` (text, at ``rows``), or ``logits`` [B, C] (classes), and
    ``features`` {layer: [B, d]}. On text ``logits`` is made from ``hidden`` only while it is small.
    """

    def __getattr__(self, name: str) -> Any:
        if name == "logits" and "hidden" in self and "logits" not in self:
            size = len(self["hidden"]) * len(self["head"].weight)
            if size > SMALL_LOGITS:
                raise Failure(
                    f"logits of {len(self['hidden'])} rows by {len(self['head'].weight)} tokens "
                    "are too large to hold; put the formula into an objective and call "
                    "per_row(objective, student, teacher, labels)"
                )
            return self["head"].logits(self["hidden"])
        return super().__getattr__(name)
