"""Any ``nn.Module`` that maps inputs to class scores, made to say signals."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import nn

from stillroom.core import Batch, Failure, Head, Signals
from stillroom.models import pretrained
from stillroom.models.networks import TOLD, describe, rebuilt
from stillroom.models.taps import last_linear, tapped
from stillroom.models.two_heads import grown, held


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
        """The network's weights as ``model.safetensors``, and what ``load`` makes it from."""
        folder.mkdir(parents=True, exist_ok=True)
        if isinstance(self.network, pretrained.Worded):
            return self.network.save(folder)
        state = {k: v.contiguous() for k, v in self.network.state_dict().items()}
        save_file(state, folder / "model.safetensors")
        describe(self.network, folder)

    def load(self, folder: Path) -> None:
        """Takes the weights that ``save`` wrote; a second head, where they have one, is grown."""
        if isinstance(self.network, pretrained.Worded):
            said = pretrained.network(str(folder))
            self.network.load_state_dict(said.state_dict())
            return
        state = load_file(folder / "model.safetensors")
        if held(state):
            grown(self)
        self.network.load_state_dict(state)


def load(folder: Path) -> Classifier:
    """A classifier from the folder that ``Classifier.save`` wrote, or one that others made.

    Raises:
        Failure: the folder does not tell how the network is made, as of one given as an object.
    """
    if pretrained.known(str(folder)):
        return Classifier(pretrained.network(str(folder)))
    if not (folder / TOLD).is_file():
        raise Failure(
            f"{folder} has no {TOLD}, which tells how the network is made: make the network in "
            "Python and call Classifier(network).load(folder)"
        )
    told = json.loads((folder / TOLD).read_text(encoding="utf-8"))
    made = Classifier(rebuilt(told))
    made.load(folder)
    return made


def saved(folder: str | Path) -> bool:
    """Whether a folder holds a classifier that ``load`` can make, or a name is timm's."""
    return (Path(folder) / TOLD).is_file() or pretrained.known(str(folder))
