"""A frozen language model that several speakers share, each with an adapter of its own or none."""

from __future__ import annotations

import copy
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from stillroom.core import Failure
from stillroom.models.adapter_files import check_targets, peft

MENDED = ("Model has `tie_word_embeddings", "fan_in_fan_out is set to")
"""Warnings of peft about what is right here: the merged head is untied, the layout is known."""


class Shared:
    """A frozen model, its adapters by name, and the ``state``: (adapter that is on, trains)."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model.requires_grad_(False).eval()
        self.configs: dict[str, Any] = {}
        self.layers: dict[str, Any] = {}
        self.state: tuple[str | None, bool] = (None, False)

    def add(self, config: Any) -> str:
        """A fresh adapter's name; the model says what it said before.

        Raises:
            Failure: the config targets no layers of this model, or such as are not linear.
        """
        name, config = f"adapter_{len(self.configs)}", copy.deepcopy(config)
        if not isinstance(config.target_modules, str):
            check_targets(self.model, config.target_modules)
        before = [(p, p.requires_grad) for p in self.model.parameters()]
        with warnings.catch_warnings():
            for said in MENDED:
                warnings.filterwarnings("ignore", said)
            try:
                peft().inject_adapter_in_model(config, self.model, name)
            except (ValueError, re.error) as error:
                raise Failure(f"targets {config.target_modules!r}: {error}") from error
        del self.model.peft_config  # kept here: the model's own saving and a next one look at it
        lora = peft().tuners.lora
        found = {k: m for k, m in self.model.named_modules() if isinstance(m, lora.LoraLayer)}
        if odd := [path for path, layer in found.items() if type(layer) is not lora.Linear]:
            raise Failure(f"targets {config.target_modules!r}: {odd[0]} is no linear layer")
        for parameter, moves in before:
            parameter.requires_grad_(moves)
        for parameter in self.weights(name).values():
            if parameter.dtype in (torch.bfloat16, torch.float16):
                parameter.data = parameter.data.float()  # small steps would be lost
            parameter.requires_grad_(True)
        self.configs[name], self.layers = config, found
        self._switch(*self.state)
        return name

    def weights(self, name: str | None) -> dict[str, nn.Parameter]:
        """The matrices of one adapter by layer; none of the base, which is no adapter."""
        mark = f".{name}."
        named = self.model.named_parameters()
        return {key.replace(mark, "."): value for key, value in named if mark in key}

    def set(self, name: str | None, training: bool) -> None:
        if self.state != (name, training):
            self._switch(name, training)

    def _switch(self, name: str | None, training: bool) -> None:
        for layer in self.layers.values():
            # peft's set_adapter would also freeze the others, whose gradients may be awaited
            layer._active_adapter = [name] if name else []
        self.model.train(training)
        self.state = (name, training)

    @contextmanager
    def merged(self, name: str | None) -> Iterator[PreTrainedModel]:
        """The plain model while the block runs: ``W + (alpha / rank) B A``, in the base's dtype."""
        config, weights = self.model.config, {}
        tied = config.tie_word_embeddings
        try:
            for path, layer in self.layers.items():
                base = layer.get_base_layer()
                weights[path] = base.weight
                if name in layer.lora_A:
                    whole = (base.weight + layer.get_delta_weight(name)).to(base.weight)
                    base.weight = nn.Parameter(whole.detach(), requires_grad=False)
                    config.tie_word_embeddings &= layer is not self.model.get_output_embeddings()
                self.model.set_submodule(path, base)
            yield self.model
        finally:
            config.tie_word_embeddings = tied
            for path, weight in weights.items():
                self.layers[path].get_base_layer().weight = weight
                self.model.set_submodule(path, self.layers[path])


class On:
    """While it is open an adapter is on, or none; may be opened again, as a second backward does.

    The state is that of ``shared`` when this is made, unless it is given.
    """

    def __init__(self, shared: Shared, state: tuple[str | None, bool] | None = None) -> None:
        self.shared, self.state = shared, state or shared.state
        self._before: list[tuple[str | None, bool]] = []

    def __enter__(self) -> None:
        self._before.append(self.shared.state)
        self.shared.set(*self.state)

    def __exit__(self, *_: Any) -> None:
        self.shared.set(*self._before.pop())
