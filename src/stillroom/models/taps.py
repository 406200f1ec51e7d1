"""Features of a network by layer name, read by hooks that are removed again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from stillroom.catalogue import nearest
from stillroom.core import Failure
from stillroom.models.two_heads import two_heads

LAST = "last"
"""What the last linear layer reads: the embedding before the classifier."""
SCORES = "scores"
"""What the last linear layer says: the logits, or what these are made from."""
MAP = "map"
"""The last feature map, or the last tokens: what is pooled before the classifier."""
HEADS = "heads"
"""What each of two heads says, where a network has two: [B, 2, classes]."""
EMBEDDING = "embedding"
"""What the embedding of a language model's input says."""


@contextmanager
def tapped(
    network: nn.Module, layers: Sequence[str], others: Mapping[str, nn.Module] | None = None
) -> Iterator[dict[str, Tensor]]:
    """The outputs of the named layers while the block runs, filled by a forward pass in it.

    ``others``: layers that have a further name.
    """
    seen: dict[str, Tensor] = {}
    modules = {**dict(network.named_modules()), **(others or {})}
    handles = []
    try:
        for layer in layers:
            if layer in (LAST, SCORES):
                handles.append(_at_last(seen, network, layer))
            elif layer == MAP:
                inner = [m for m in network.modules() if not [*m.children()]]
                handles += [m.register_forward_hook(_keep_map(seen)) for m in inner]
            elif layer == HEADS and (heads := two_heads(network)) is not None:
                handles.append(heads.both.register_forward_hook(_keep(seen, layer)))
            elif layer in modules:
                handles.append(modules[layer].register_forward_hook(_keep(seen, layer)))
            else:
                known = [name for name in modules if name]
                raise Failure(
                    f"there is no layer {layer!r}{nearest(layer, known)}; layers: {known}"
                )
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _keep(seen: dict[str, Tensor], layer: str):
    def hook(_module: nn.Module, _args: object, output: Any) -> None:
        seen[layer] = output[0] if isinstance(output, tuple) else output  # of what else it gives

    return hook


def _at_last(seen: dict[str, Tensor], network: nn.Module, layer: str) -> Any:
    if (final := last_linear(network)) is None:
        raise Failure(f"the network has no nn.Linear, so {layer!r} names nothing: name a layer")
    if layer == SCORES:
        return final.register_forward_hook(_keep(seen, SCORES))
    return final.register_forward_pre_hook(lambda _m, args: seen.update({LAST: args[0]}))


def _keep_map(seen: dict[str, Tensor]):
    def hook(_module: nn.Module, _args: object, output: Any) -> None:
        # [B, channels, ...] or [B, tokens, width]; one place alone is what pooling left
        if isinstance(output, Tensor) and output.dim() > 2 and output.shape[2:].numel() > 1:
            seen[MAP] = output

    return hook


def last_linear(network: nn.Module) -> nn.Linear | None:
    """The linear layer that comes last in the network's own order, as classifiers have it."""
    found = [module for module in network.modules() if isinstance(module, nn.Linear)]
    return found[-1] if found else None
