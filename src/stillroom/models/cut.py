"""Students cut from a language model: some of its layers, and the search for which."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from stillroom.core import Batch, Failure, Signals
from stillroom.losses.divergences import forward_kl
from stillroom.losses.per_row import per_row
from stillroom.models.text import CausalLM, mode

SIDE_BY_SIDE = 4
"""Examples of the training text that a search reads at once."""


def cut(model: PreTrainedModel, layers: Sequence[int]) -> PreTrainedModel:
    """A model with the given layers of another, renumbered from 0; nothing is shared.

    What the config lists an entry a layer for (which ones slide a window) is cut along.

    Raises:
        Failure: the layers are none, unknown, twice or out of order.
    """
    _, stack = _stack(model)
    count = len(stack)
    if not layers or list(layers) != sorted(set(layers) & set(range(count))):
        raise Failure(
            f"cut.layers: expected some of 0 to {count - 1} in rising order, got {list(layers)}"
        )
    made = copy.deepcopy(model)
    name, stack = _stack(made)
    kept = nn.ModuleList(stack[i] for i in layers)
    made.set_submodule(name, kept)
    for index, layer in enumerate(kept):
        parts: Iterator[Any] = layer.modules()
        for part in parts:
            if "layer_idx" in vars(part):
                part.layer_idx = index  # the place of its keys and values in a cache
    told = made.config.get_text_config()
    for key, value in vars(told).items():
        if "layer" in key and isinstance(value, list | tuple) and len(value) == count:
            setattr(told, key, type(value)(value[i] for i in layers))
    told.num_hidden_layers = len(layers)
    return made


@torch.no_grad()
def same(made: CausalLM, loaded: CausalLM) -> None:
    """Raises Failure where a cut model, saved and loaded, is another one.

    That is so for architectures that say by number what a layer is, in words unknown here.
    """
    words = made.model.config.get_text_config().vocab_size
    ids = torch.arange(16, device=made.model.device)[None] % words
    with mode(made, training=False), mode(loaded, training=False):
        mine, theirs = (m.model(input_ids=ids).logits for m in (made, loaded))
    if not torch.allclose(mine, theirs, rtol=1e-3, atol=1e-3 * float(mine.abs().max())):
        raise Failure(
            f"{type(made.model).__name__} takes its layers by number in a way that a cut does not "
            "know: the model that was saved is not the one that was cut"
        )


class Uniform(nn.Module):
    """Gives every token the same probability: what a cut student is held against."""

    def __init__(self, like: CausalLM) -> None:
        super().__init__()
        self.like = like

    def forward(self, batch: Batch) -> Signals:
        head = replace(self.like.head, bias=None)
        return Signals(
            hidden=head.weight.new_zeros(len(batch.rows), head.weight.shape[1]), head=head
        )


def search(model: CausalLM, data: Any, *, keep: int, tokens: int) -> dict[str, Any]:
    """Which ``keep`` layers to leave: greedy removal by the divergence that it costs.

    Again and again the layer goes whose removal leaves the smallest ``KL(whole || rest)``, the
    mean over about ``tokens`` supervised tokens of the first examples of ``data``, which must be
    training text: the choice is a fit to it.

    Returns:
        ``layers`` that stay, ``removed`` in the order of removal, ``kl`` after each removal.
    """
    _, stack = _stack(model.model)
    if not keep < len(stack):
        raise Failure(f"cut.keep: the model has {len(stack)} layers, so keep fewer than {keep}")
    batches = list(_some(data, tokens, model.model.device))
    left, removed, costs = list(range(len(stack))), [], []
    with torch.no_grad(), mode(model, training=False):
        whole = [model(batch) for batch in batches]
        while len(left) > keep:
            cost = {}
            for layer in left:
                with skipped(model.model, [*removed, layer]):
                    values = [
                        per_row(_kl, model(batch), said, batch.labels)
                        for batch, said in zip(batches, whole, strict=True)
                    ]
                cost[layer] = float(torch.cat(values).double().mean())
            worst = min(cost, key=lambda layer: cost[layer])
            left.remove(worst)
            removed.append(worst)
            costs.append(cost[worst])
    return {"layers": left, "removed": removed, "kl": costs}


def _kl(student: torch.Tensor, teacher: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return forward_kl(student, teacher)


def _some(data: Any, tokens: int, device: Any) -> Iterator[Batch]:
    seen, start = 0, 0
    while seen < tokens and start < len(data):
        batch = data.batch(range(start, min(start + SIDE_BY_SIDE, len(data)))).to(device)
        seen, start = seen + len(batch.rows), start + SIDE_BY_SIDE
        yield batch


@contextmanager
def skipped(model: PreTrainedModel, layers: Sequence[int]) -> Iterator[None]:
    """The model without some layers while the block runs: they hand on what they are given."""
    _, stack = _stack(model)
    kept = {i: stack[i] for i in layers}
    try:
        for i, layer in kept.items():
            stack[i] = _Through(layer)
        yield
    finally:
        for i, layer in kept.items():
            stack[i] = layer


class Early(nn.Module):
    """The first layers of a language model, and its last norm: read in place, nothing is copied.

    Args:
        model: which.
        layers: how many; None: all.

    Raises:
        Failure: it has fewer.
    """

    def __init__(self, model: CausalLM, layers: int | None) -> None:
        super().__init__()
        count = len(_stack(model.model)[1])
        if layers is not None and layers > count:
            raise Failure(f"layers: the model has {count}, so its first {layers} cannot be read")
        self.lm, self.rest = model, range(count if layers is None else layers, count)
        self.width = model.width

    def states(self, batch: Batch) -> torch.Tensor:
        """[B, L, d] states after the last norm."""
        with skipped(self.lm.model, self.rest):
            return self.lm.states(batch)


class _Through(nn.Module):
    """Stands for a layer, with its attributes, and changes nothing."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self._told = [layer]  # in a list: not a submodule

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self._told[0], name)

    def forward(self, hidden: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        return hidden


def _stack(model: PreTrainedModel) -> tuple[str, nn.ModuleList]:
    """The list of layers, and its name."""
    count = model.config.get_text_config().num_hidden_layers
    found = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == count
    ]
    if len(found) != 1:
        raise Failure(
            f"{type(model).__name__} has {len(found)} lists of {count} layers, so it is unclear "
            "what to cut: cut it yourself and give the folder"
        )
    return found[0]
