"""Any ``nn.Module`` that maps inputs to class scores, made to say signals."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import nn

from stillroom.core import Batch, Head, Signals
from stillroom.models.taps import last_linear, tapped


class Classifier(nn.Module):
    """``logits [B, C] = network(x)``, and what the layers in ``taps`` say, in their own shape.

    ``head``: weight and bias of the last ``nn.Linear``; absent where the network has none.
    """

    signals = frozenset({"logits", "maps", "weights", "gradient"})

    def __init__(self, network: nn.Module, taps: Sequence[str] = ()) -> None:
        super().__init__()
        self.network = network
        self.taps = tuple(taps)

    def forward(self, batch: Batch) -> Signals:
        with tapped(self.network, self.taps) as seen:
            logits = self.network(batch.x)
        said = Signals(logits=logits, **({"features": dict(seen)} if self.taps else {}))
        if (last := last_linear(self.network)) is not None:
            said["head"] = Head(last.weight, last.bias)
        return said

    def snapshot(self) -> Classifier:
        """A frozen copy in eval mode: the network as it stands now."""
        return copy.deepcopy(self).requires_grad_(False).eval()

    def save(self, folder: Path) -> None:
        """The network's weights as ``model.safetensors``."""
        folder.mkdir(parents=True, exist_ok=True)
        state = {k: v.contiguous() for k, v in self.network.state_dict().items()}
        save_file(state, folder / "model.safetensors")

    def load(self, folder: Path) -> None:
        """Takes the weights that ``save`` wrote."""
        self.network.load_state_dict(load_file(folder / "model.safetensors"))
