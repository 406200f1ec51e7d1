"""Causal language models of Hugging Face that say signals about a batch."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForCausalLM, Cache, PreTrainedModel

from stillroom.catalogue import nearest
from stillroom.core import Batch, Failure, Head, Signals
from stillroom.models import windowed
from stillroom.models.heads import head_of, mode, probe

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
__all__ = ["Body", "CausalLM", "mode", "windowed"]


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

    At construction a probe compares ``hidden`` with what the model's head reads, and
    ``head.logits`` with the model's own logits of states scaled up until these are as large as
    those of trained models, so that a soft-cap cannot hide. Where either differs the model is
    called whole and ``hidden`` is not offered.

    Args:
        model: any causal LM of ``transformers``.
        stop_ids: ids that end an answer; by default all ``eos_token_id`` of ``generation_config``.
    """

    def __init__(self, model: PreTrainedModel, stop_ids: Sequence[int] | None = None) -> None:
        super().__init__()
        self.model = model
        self.stop_ids = tuple(stop_ids) if stop_ids is not None else _stop_ids(model)
        self.head_known = probe(model)
        self.signals = frozenset({"hidden" if self.head_known else "logits", "text", "weights"})

    @property
    def context(self) -> int | None:
        """The longest sequence that fits, where the config says it."""
        return getattr(self.model.config, "max_position_embeddings", None)

    @property
    def head(self) -> Head:
        return head_of(self.model)

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

        Lists with an entry a layer (which layers slide a window) repeat for further layers.

        Raises:
            Failure: a change names nothing in the config, or makes sizes that do not fit.
        """
        trunk: Any = self.model.base_model
        if not changes:
            return Body(copy.deepcopy(trunk), _width(trunk.config))
        config = copy.deepcopy(trunk.config)
        if unknown := sorted(set(changes) - _entries(config)):
            raise Failure(
                f"critic: {type(config).__name__} has no {', '.join(unknown)}; "
                f"it has {sorted(config.to_dict())}"
            )
        layers = getattr(config, "num_hidden_layers", 0)
        for name, value in changes.items():
            setattr(config, name, value)
        for name, value in config.to_dict().items():
            if "layer" in name and isinstance(value, list) and len(value) == layers:
                repeated = [value[i % layers] for i in range(config.num_hidden_layers)]
                setattr(config, name, repeated)
        attention = config._attn_implementation
        with _sizes_of("critic"):  # a config checks its values when it is made, not when changed
            config = type(config).from_dict(config.to_dict(), attn_implementation=attention)
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
    if dtype not in DTYPES:
        raise Failure(f"dtype: there is no {dtype!r}{nearest(dtype, list(DTYPES))}; {[*DTYPES]}")
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
    if model_type not in CONFIG_MAPPING:
        near = nearest(model_type, list(CONFIG_MAPPING))
        raise Failure(f"student.lm.model_type: {model_type!r} is unknown to transformers{near}")
    kind: Any = CONFIG_MAPPING[model_type]
    if unknown := sorted(set(sizes) - _entries(kind())):
        near = nearest(unknown[0], sorted(_entries(kind())))
        raise Failure(f"student.lm: {kind.__name__} has no {', '.join(unknown)}{near}")
    words = {"eos_token_id": eos_token_id, "pad_token_id": pad_token_id, "bos_token_id": None}
    with _sizes_of("student.lm"):
        config = AutoConfig.for_model(model_type, vocab_size=vocab_size, **words, **sizes)
        model = AutoModelForCausalLM.from_config(config)
    return CausalLM(model)


def _entries(config: Any) -> set[str]:
    """Names that a config knows, those that it maps to its own included."""
    return {*config.to_dict(), *config.attribute_map}


@contextmanager
def _sizes_of(field: str) -> Iterator[None]:
    """What an architecture says of impossible sizes, whatever kind of error it is, as a Failure."""
    try:
        yield
    except Exception as error:
        raise Failure(f"{field}: these sizes make no model: {error}") from error


def _stop_ids(model: PreTrainedModel) -> tuple[int, ...]:
    told = getattr(model.generation_config, "eos_token_id", None)
    told = model.config.eos_token_id if told is None else told
    if told is None:
        return ()
    return tuple(told) if isinstance(told, list | tuple) else (told,)


def _width(config: Any) -> int:
    return config.get_text_config().hidden_size
