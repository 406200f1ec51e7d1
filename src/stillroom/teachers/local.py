"""A network in this process as teacher."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from stillroom.catalogue import closure
from stillroom.core import Batch, Signals


class Local:
    """A frozen network in eval mode; gradients pass through to its input where asked.

    Args:
        network: a ``CausalLM``, a ``Classifier``, or anything with ``signals`` that maps a batch
            to signals.
    """

    fresh = True

    def __init__(self, network: Any) -> None:
        self.network: nn.Module = network.eval().requires_grad_(False)
        self.signals = closure(network.signals)

    def __call__(self, batch: Batch, *, grad: bool = False) -> Signals:
        with torch.set_grad_enabled(grad and torch.is_grad_enabled()):
            return self.network(batch)
