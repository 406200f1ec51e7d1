"""Any ``nn.Module`` that maps inputs to class scores, made to say signals."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import nn

from stillroom.core import Batch, Signals
from stillroom.models.taps import tapped


class Classifier(nn.Module):
    """``logits [B, C] = network(x)``, and the features of the layers in ``taps``, flattened."""

    signals = frozenset({"logits", "features", "weights", "gradient"})

    def __init__(self, network: nn.Module, taps: Sequence[str] = ()) -> None:
        super().__init__()
        self.network = network
        self.taps = tuple(taps)

    def forward(self, batch: Batch) -> Signals:
        if not self.taps:
            return Signals(logits=self.network(batch.x))
        with tapped(self.network, self.taps) as seen:
            logits = self.network(batch.x)
        return Signals(logits=logits, features={k: v.flatten(1) for k, v in seen.items()})

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
