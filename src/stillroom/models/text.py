"""Causal language models of Hugging Face that say signals about a batch."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, Cache, PreTrainedModel

from stillroom.core import Batch, Failure, Head, Signals
from stillroom.models import windowed

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
__all__ = ["Body", "CausalLM", "windowed"]


class Body(nn.Module):
    """The trunk of a language model: states of every position, without a head."""

    def __init__(self, network: nn.Module, width: int) -> None:
        super().__init__()
        self.network = network
        self.width = width

    def states(self, batch: Batch) -> Tensor:
        """[B, L, d] states after the last norm."""
        out = self.network(
            input_ids=batch.ids,
            attention_mask=batch.real.long(),
            position_ids=batch.positions,
            use_cache=False,
        )
        return out.last_hidden_state


class CausalLM(nn.Module):
    """A Hugging Face causal LM: hidden states at the rows that count, and its head.

    At construction a probe compares ``head.logits(hidden)`` with the model's own logits, with
    states scaled up until the logits are as large as those of trained models, so that a soft-cap
    or a scale cannot hide. Where they differ the model is called whole and ``hidden`` is not
    offered.

    Args:
        model: any causal LM of ``transformers``.
        stop_ids: ids that end an answer; by default all ``eos_token_id`` of ``generation_config``.
    """

    def __init__(self, model: PreTrainedModel, stop_ids: Sequence[int] | None = None) -> None:
        super().__init__()
        self.model = model
        self.stop_ids = tuple(stop_ids) if stop_ids is not None else _stop_ids(model)
        self.head_known = _probe(model)
        self.signals = frozenset({"hidden" if self.head_known else "logits", "text", "weights"})

    @property
    def context(self) -> int | None:
        """The longest sequence that fits, where the config says it."""
        return getattr(self.model.config, "max_position_embeddings", None)

    @property
    def head(self) -> Head:
        return _head(self.model)

    def forward(self, batch: Batch) -> Signals:
        inputs = {
            "input_ids": batch.ids,
            "attention_mask": batch.real.long(),
            "position_ids": batch.positions,
            "use_cache": False,
        }
        if not self.head_known:
            return Signals(logits=self.model(**inputs).logits.flatten(0, 1)[batch.rows])
        states = self.model.base_model(**inputs).last_hidden_state
        return Signals(hidden=states.flatten(0, 1)[batch.rows], head=self.head)

    def next_logits(self, ids: Tensor, positions: Tensor, real: Tensor, cache: Cache) -> Tensor:
        """[B, V] logits of the token after the last column; ``cache`` grows by these columns."""
        inputs: dict[str, Any] = {
            "input_ids": ids,
            "attention_mask": real.long(),
            "position_ids": positions,
            "past_key_values": cache,
            "use_cache": True,
        }
        if not self.head_known:
            return self.model(**inputs).logits[:, -1]
        return self.head.logits(self.model.base_model(**inputs).last_hidden_state[:, -1])

    def body(self, **changes: Any) -> Body:
        """A copy of the trunk; with ``changes`` of the config, a fresh one of another size.

        Raises:
            Failure: a change names nothing in the config.
        """
        trunk = self.model.base_model
        if not changes:
            return Body(copy.deepcopy(trunk), _width(self.model.config))
        config = copy.deepcopy(self.model.config)
        for name, value in changes.items():
            if not hasattr(config, name):
                raise Failure(
                    f"critic.{name}: {type(config).__name__} has no such entry; "
                    f"it has {sorted(config.to_dict())}"
                )
            setattr(config, name, value)
        fresh = type(trunk)(config).to(self.model.device, self.model.dtype)
        return Body(fresh, _width(config))

    def save(self, folder: Path) -> None:
        """Weights as safetensors and the config; ``from_pretrained`` loads them."""
        self.model.save_pretrained(folder)

    def load(self, folder: Path) -> None:
        """Takes the weights that ``save`` wrote."""
        kind: Any = type(self.model)
        self.model.load_state_dict(kind.from_pretrained(folder).state_dict())


def load(
    name: str,
    *,
    dtype: str = "float32",
    revision: str | None = None,
    device_map: str | None = None,
    trust_remote_code: bool = False,
) -> CausalLM:
    """A causal LM by hub name or folder. Options go to ``from_pretrained`` as they are."""
    options = {"revision": revision, "device_map": device_map}
    try:
        model = AutoModelForCausalLM.from_pretrained(
            name,
            dtype=DTYPES[dtype],
            trust_remote_code=trust_remote_code,
            **{k: v for k, v in options.items() if v is not None},
        )
    except (OSError, ValueError) as error:
        raise Failure(f"cannot load the model {name!r}: {error}") from error
    return CausalLM(model)


def build(model_type: str, vocab_size: int, eos_token_id: int, pad_token_id: int, **sizes: Any):
    """A causal LM with fresh weights from a config: ``llama`` with ``hidden_size`` and so on."""
    try:
        config = AutoConfig.for_model(
            model_type,
            vocab_size=vocab_size,
            eos_token_id=eos_token_id,
            pad_token_id=pad_token_id,
            bos_token_id=None,
            **sizes,
        )
    except ValueError as error:
        raise Failure(
            f"student.lm.model_type: {model_type!r} is unknown to transformers"
        ) from error
    if unknown := [k for k in sizes if k not in type(config)().to_dict()]:
        raise Failure(f"student.lm: {type(config).__name__} has no {', '.join(unknown)}")
    return CausalLM(AutoModelForCausalLM.from_config(config))


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


def _stop_ids(model: PreTrainedModel) -> tuple[int, ...]:
    told = getattr(model.generation_config, "eos_token_id", None)
    told = model.config.eos_token_id if told is None else told
    if told is None:
        return ()
    return tuple(told) if isinstance(told, list | tuple) else (told,)


def _width(config: Any) -> int:
    return config.get_text_config().hidden_size


def _head(model: PreTrainedModel) -> Head:
    config: Any = model.config.get_text_config()
    out: Any = model.get_output_embeddings()
    divisor = getattr(config, "logits_scaling", None)  # Granite divides, Cohere multiplies
    scale = 1.0 / divisor if divisor else getattr(config, "logit_scale", None) or 1.0
    cap = getattr(config, "final_logit_softcapping", None)
    return Head(out.weight, getattr(out, "bias", None), scale=float(scale), soft_cap=cap)


@torch.no_grad()
def _probe(model: PreTrainedModel) -> bool:
    """Whether the head is the matrix, bias, scale and soft-cap that the config tells of."""
    out = model.get_output_embeddings()
    if out is None or type(out) is not nn.Linear or model.base_model is model:
        return False
    ids = torch.arange(8, device=model.device)[None] % model.config.get_text_config().vocab_size
    inputs = {"input_ids": ids, "position_ids": torch.arange(8, device=model.device)[None]}
    seen: list[Tensor] = []

    def enlarge(_module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        size = nn.functional.linear(args[0], out.weight, out.bias).abs().max().clamp_min(1e-6)
        seen.append(args[0] * (60.0 / size))
        return (seen[-1],)

    with mode(model, training=False):
        plain = model.base_model(**inputs, use_cache=False).last_hidden_state
        handle = out.register_forward_pre_hook(enlarge)
        try:
            logits = model(**inputs, use_cache=False).logits
        finally:
            handle.remove()
    if len(seen) != 1 or seen[0].shape != plain.shape:
        return False
    loose = 1e-4 if plain.dtype in (torch.float32, torch.float64) else 3e-2
    direction = nn.functional.cosine_similarity(plain.float(), seen[0].float(), dim=-1)
    mine = _head(model).logits(seen[0])
    return bool((direction > 1 - loose).all()) and torch.allclose(
        mine.float(), logits.float(), rtol=loose, atol=loose * 60
    )
