"""Saved LoRA adapters in peft's format: written, read, and held against the model they meet."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from stillroom.catalogue import nearest
from stillroom.core import Failure
from stillroom.extras import extra

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
"""Before each name in peft's files: there the model is wrapped twice."""
PLAIN = {"r", "lora_alpha", "lora_dropout", "target_modules", "rank_pattern", "alpha_pattern"}
PLAIN |= {"use_rslora", "fan_in_fan_out", "layers_to_transform", "layers_pattern"}
PLAIN |= {"exclude_modules", "task_type", "inference_mode", "base_model_name_or_path", "revision"}
PLAIN |= {"peft_version", "auto_mapping", "peft_type"}
"""Settings that leave LoRA what it is: ``W x + scale * B A x`` on linear layers."""
SAMPLED = 64
"""Numbers of each weight that tell one base model from another."""
NAMED = 3
"""Differences that an error lists."""


def peft() -> Any:
    """The library, or what to install."""
    return extra("peft", "lora", "LoRA")


def config_of(folder: str) -> Any:
    """The ``LoraConfig`` of a saved adapter.

    Raises:
        Failure: no adapter is there, or one that is more than low-rank updates of linear layers.
    """
    place = Path(folder)
    if missing := [name for name in (CONFIG, WEIGHTS) if not (place / name).is_file()]:
        raise Failure(
            f"{folder} holds no adapter: {' and '.join(missing)} missing; give a folder that peft "
            "saved, or the 'student/adapter' of a run"
        )
    try:
        config = peft().PeftConfig.from_pretrained(folder)
    except (ValueError, TypeError, KeyError) as error:
        raise Failure(f"{place / CONFIG} is no config of peft: {error}") from error
    if not isinstance(config, peft().LoraConfig):
        raise Failure(f"{folder}: expected a LoRA adapter, got one of kind {config.peft_type}")
    usual = peft().LoraConfig()
    told = {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}
    odd = {k: v for k, v in told.items() if k not in PLAIN and v and v != getattr(usual, k, None)}
    if odd:
        raise Failure(
            f"{folder}: only plain LoRA of linear layers is known here, and this adapter says "
            f"{', '.join(f'{k}={v!r}' for k, v in odd.items())}"
        )
    return config


def check_targets(model: PreTrainedModel, targets: Iterable[str]) -> None:
    """Raises Failure where one of the names (a layer's, or how it ends) is no linear layer's."""
    linear = peft().tuners.lora.Linear
    kinds = (torch.nn.Linear, linear, Conv1D)
    inside = tuple(f"{n}." for n, m in model.named_modules() if isinstance(m, linear))
    names = [n for n, m in model.named_modules() if isinstance(m, kinds)]
    names = [name for name in names if not name.startswith(inside)]
    for target in targets:
        if not any(name == target or name.endswith(f".{target}") for name in names):
            known = sorted({name.rpartition(".")[2] for name in names})
            raise Failure(
                f"targets: {type(model).__name__} has no linear layer {target!r}"
                f"{nearest(target, known)}; it has {', '.join(known)}"
            )


def write(folder: Path, config: Any, weights: Mapping[str, Tensor], base: PreTrainedModel) -> None:
    """Saves an adapter as peft does, and with it by which base model it was made."""
    config = copy.deepcopy(config)
    config.inference_mode = True
    config.base_model_name_or_path = base.name_or_path or None
    if not isinstance(config.target_modules, str):
        config.target_modules = sorted(config.target_modules)  # a set has an order of its own
    config.save_pretrained(str(folder))
    tensors = {PREFIX + name: value.detach().cpu().contiguous() for name, value in weights.items()}
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt", "base": fingerprint(base)})


def read(folder: Path, weights: Mapping[str, Tensor], base: PreTrainedModel) -> None:
    """Fills the weights of an adapter from a folder.

    Raises:
        Failure: they have other names or shapes, or were made for another base model.
    """
    try:
        with safe_open(folder / WEIGHTS, framework="pt") as file:
            made_for = (file.metadata() or {}).get("base")
            names = file.keys()
            told = {name.removeprefix(PREFIX): file.get_tensor(name) for name in names}
    except (OSError, SafetensorError) as error:
        raise Failure(f"{folder / WEIGHTS} cannot be read: {error}") from error
    if differences := [*_differences(told, weights)]:
        raise Failure(
            f"{folder}: the adapter does not fit {type(base).__name__}: {'; '.join(differences)}"
        )
    _check_base(folder, made_for, base)
    with torch.no_grad():
        for name, value in weights.items():
            value.copy_(told[name])


def _differences(told: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> Iterable[str]:
    lists = {
        "it has no": sorted(set(wanted) - set(told)),
        "it has, and the model has not,": sorted(set(told) - set(wanted)),
        "of other shapes are": [
            f"{name} ({list(told[name].shape)}, here {list(wanted[name].shape)})"
            for name in sorted(set(told) & set(wanted))
            if told[name].shape != wanted[name].shape
        ],
    }
    for words, names in lists.items():
        if names:
            more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
            yield f"{words} {', '.join(names[:NAMED])}{more}"


def _check_base(folder: Path, made_for: str | None, base: PreTrainedModel) -> None:
    """Whether the base is the one that the adapter was made for, as far as either tells."""
    named = peft().PeftConfig.from_pretrained(str(folder)).base_model_name_or_path
    names = [named or "a model without a name", base.name_or_path or "a model without a name"]
    hub = [bool(re.fullmatch(r"[\w.-]+/[\w.-]+", n)) and not Path(n).exists() for n in names]
    if made_for is None and not (all(hub) and names[0] != names[1]):
        return
    if made_for is None or made_for != fingerprint(base):
        raise Failure(
            f"{folder}: the adapter was made for other base weights ({names[0]}) than these "
            f"({names[1]}); give it its own base model"
        )


def fingerprint(base: PreTrainedModel) -> str:
    """Tells base weights apart, adapters left out; the same in float32 and bfloat16."""
    told = hashlib.sha256()
    for name, value in sorted(base.named_parameters()):
        if ".lora_" not in name:
            some = value.detach().flatten()[:: max(1, value.numel() // SAMPLED)][:SAMPLED]
            told.update(f"{name.replace('.base_layer', '')} {list(value.shape)}".encode())
            told.update(some.cpu().bfloat16().view(torch.int16).numpy().tobytes())
    return told.hexdigest()[:32]
