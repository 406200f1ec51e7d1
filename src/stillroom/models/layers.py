"""What layers a network has: names, kinds, and the shape of what each says."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from stillroom.core import Batch, Failure
from stillroom.models.classes import Classifier
from stillroom.models.taps import EMBEDDING, LAST, MAP, SCORES
from stillroom.models.text import CausalLM, mode

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Layer:
    """A name that methods read features by; ``shape`` None of one that did not speak."""

    name: str
    kind: str
    shape: Shape | None


def layers(model: Classifier | CausalLM, batch: Batch) -> list[Layer]:
    """Every layer that features can be read of, in the network's order, then further names.

    Shapes are those of the layer's own output, of a batch of these examples, as it passes on. The
    model is run in eval mode without gradient, and no hook stays.
    """
    network: nn.Module = model.network if isinstance(model, Classifier) else model.model
    shapes: dict[str, Shape] = {}

    def keeps(name: str) -> Callable[..., None]:
        def keep(_module: nn.Module, _args: object, output: Any) -> None:
            first = output[0] if isinstance(output, tuple) else output
            if isinstance(first, Tensor):
                shapes[name] = tuple(first.shape)

        return keep

    named = [(name, one) for name, one in network.named_modules() if name]
    handles = [one.register_forward_hook(keeps(name)) for name, one in named]
    try:
        with torch.no_grad(), mode(model, training=False):
            model(batch)
    finally:
        for handle in handles:
            handle.remove()
    found = [Layer(name, type(one).__name__, shapes.get(name)) for name, one in named]
    return [*found, *_further(model, batch)]


def _further(model: Classifier | CausalLM, batch: Batch) -> Iterator[Layer]:
    """The names that are no module's: those of ``taps`` that this network has."""
    told = {LAST: "read by the last linear layer", SCORES: "said by the last linear layer"}
    told[MAP] = "last map or tokens"
    if isinstance(model, CausalLM):
        told = {EMBEDDING: "said of the input's tokens", LAST: "read by the head"}
    before = model.taps
    for name, kind in told.items():
        try:
            model.taps = (name,)
            with torch.no_grad(), mode(model, training=False):
                said = model(batch)
        except Failure:
            continue  # it has no linear layer, or its head is not known
        finally:
            model.taps = before
        if name in said.get("features", {}):
            yield Layer(name, kind, tuple(said.features[name].shape))
