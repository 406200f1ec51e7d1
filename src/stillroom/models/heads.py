"""The LM head of a Hugging Face model as a formula, and the probe that says whether it is one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from stillroom.core import Head


@contextmanager
def mode(network: nn.Module, *, training: bool) -> Iterator[None]:
    """Train or eval mode for a while; every submodule gets its own flag back."""
    flags = [(module, module.training) for module in network.modules()]
    network.train(training)
    try:
        yield
    finally:
        for module, flag in flags:
            module.training = flag


def head_of(model: PreTrainedModel) -> Head:
    """What the config tells of the output layer: weight, bias, scale, soft-cap."""
    config: Any = model.config.get_text_config()
    out: Any = model.get_output_embeddings()
    divisor = getattr(config, "logits_scaling", None)  # Granite divides, Cohere multiplies
    scale = 1.0 / divisor if divisor else getattr(config, "logit_scale", None) or 1.0
    cap = getattr(config, "final_logit_softcapping", None)
    return Head(out.weight, getattr(out, "bias", None), scale=float(scale), soft_cap=cap)


def few_logits(head: Head, hidden: Tensor) -> Tensor:
    """``head.logits`` of a few states [n, d] where no gradient is wanted.

    On a CPU by oneDNN's product: with a vocabulary of 32,000 or more, 1 to 32 rows took 0.45 to 0.7
    times as long as by torch's own ``linear`` (an AMD CPU, one thread, float32). A head of less
    than a million weights gains nothing.
    """
    plain = hidden.device.type == "cpu" and hidden.dtype == torch.float32
    wanted = plain and head.weight.numel() >= 2**20 and not torch.is_grad_enabled()
    if not wanted or not torch.backends.mkldnn.is_available():
        return head.logits(hidden)
    weight = head.weight.to(hidden.dtype)
    product: Any = torch.ops.mkldnn._linear_pointwise  # has no gradient, and no public name
    return head.finished(product(hidden, weight, None, "none", [], ""))


class View:
    """Some tokens of the vocabulary, and what a head is for them alone while the view is ``on``.

    The rows are copied at the first use and again only where the head's weight was written to:
    they are frozen, and no part of a saved state.

    Args:
        ids: [n] the tokens, rising.
    """

    def __init__(self, ids: Tensor) -> None:
        self.ids, self.on = ids, False
        self._of: Any = None
        self._rows: Head | None = None

    def head(self, whole: Head) -> Head:
        if not self.on:
            return whole
        weight = whole.weight
        state = (id(weight), weight._version, weight.dtype, weight.device)
        if self._rows is None or state != self._of:
            self._of, self._rows = state, whole.narrowed(self.ids.to(weight.device))
        return self._rows


@torch.no_grad()
def probe(model: PreTrainedModel) -> bool:
    """Whether the head is the matrix, bias, scale and soft-cap that the config tells of."""
    out = model.get_output_embeddings()
    if out is None or type(out) is not nn.Linear or model.base_model is model:
        return False
    ids = torch.arange(8, device=model.device)[None] % model.config.get_text_config().vocab_size
    inputs = {"input_ids": ids, "position_ids": torch.arange(8, device=model.device)[None]}
    read: list[Tensor] = []
    large: list[Tensor] = []

    def enlarge(_module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        size = nn.functional.linear(args[0], out.weight, out.bias).abs().max().clamp_min(1e-6)
        read.append(args[0])
        large.append(args[0] * (60.0 / size))
        return (large[-1],)

    with mode(model, training=False):
        plain = model.base_model(**inputs, use_cache=False).last_hidden_state
        handle = out.register_forward_pre_hook(enlarge)
        try:
            logits = model(**inputs, use_cache=False).logits
        finally:
            handle.remove()
    if len(read) != 1 or read[0].shape != plain.shape:
        return False
    return close(plain, read[0]) and close(head_of(model).logits(large[0]), logits)


def close(mine: Tensor, theirs: Tensor) -> bool:
    """Whether two tensors agree to 1e-4 of the largest entry, 3e-2 in half precision."""
    loose = 1e-4 if theirs.dtype in (torch.float32, torch.float64) else 3e-2
    return torch.allclose(
        mine.float(), theirs.float(), rtol=loose, atol=loose * float(theirs.abs().max())
    )
