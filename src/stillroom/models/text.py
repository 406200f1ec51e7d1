"""Causal language models of Hugging Face that say signals about a batch."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint, noop_context_fn
from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForCausalLM, Cache, PreTrainedModel

from stillroom.catalogue import nearest
from stillroom.core import Batch, Failure, Head, Signals
from stillroom.models import windowed
from stillroom.models.bodies import Body, copied, entries, fresh, sizes_of, width_of
from stillroom.models.heads import View, few_logits, head_of, mode, probe
from stillroom.models.packing import Padded, pack
from stillroom.models.taps import EMBEDDING, LAST, tapped

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
__all__ = ["Body", "CausalLM", "mode", "windowed"]


class CausalLM(nn.Module):
    """A Hugging Face causal LM: hidden states at the rows that count, and its head.

    It says the features [N, d] of the layers in ``taps`` at the same rows: of modules by name,
    ``embedding`` and ``last``, the state that the head reads.

    At construction a probe compares ``hidden`` with what the model's head reads, and
    ``head.logits`` with the model's own logits of states scaled up until these are as large as
    those of trained models, so that a soft-cap cannot hide. Where either differs the model is
    called whole and ``hidden`` is not offered.

    Args:
        model: any causal LM of ``transformers``.
        stop_ids: ids that end an answer; by default all ``eos_token_id`` of ``generation_config``.
    """

    contexts: Callable[[], Any] = staticmethod(noop_context_fn)
    """Around a layer when it runs, and when it is computed again for the backward pass."""
    layout: type[Padded] = Padded
    """How the sequences of a batch stand in the rows that the model reads."""
    anywhere: Callable[[bool], bool] = staticmethod(bool)
    """Whether it is so in any process that must run the model whenever another does."""
    doors = ("states", "next_logits")
    """Methods beside ``forward`` in which the weights are used."""
    taps: tuple[str, ...] = ()

    def __init__(self, model: PreTrainedModel, stop_ids: Sequence[int] | None = None) -> None:
        super().__init__()
        self.model = model
        self.stop_ids = tuple(stop_ids) if stop_ids is not None else _stop_ids(model)
        self.head_known = probe(model)
        self.view: View | None = None

    @property
    def signals(self) -> frozenset[str]:
        said = {"hidden", "features"} if self.head_known else {"logits"}
        return frozenset({*said, "text", "weights"})

    @property
    def context(self) -> int | None:
        """The longest sequence that fits, where the config says it."""
        return getattr(self.model.config, "max_position_embeddings", None)

    @property
    def width(self) -> int:
        """Numbers of a state."""
        return width_of(self.model)

    @property
    def head(self) -> Head:
        whole = head_of(self.model)
        return whole if self.view is None else self.view.head(whole)

    def states(self, batch: Batch) -> Tensor:
        """[B, L, d] states after the last norm."""
        layout = self.layout(batch)
        return layout.everywhere(self.model.base_model(**layout.inputs).last_hidden_state)

    def forward(self, batch: Batch) -> Signals:
        layout = self.layout(batch)
        if not self.head_known:
            return Signals(logits=layout.at_rows(self.model(**layout.inputs).logits))
        inner = [layer for layer in self.taps if layer != LAST]
        others = {EMBEDDING: self.model.get_input_embeddings()}
        with tapped(self.model, inner, others) if inner else nullcontext({}) as seen:
            states = self.model.base_model(**layout.inputs).last_hidden_state
        said = Signals(hidden=layout.at_rows(states), head=self.head)
        if self.taps:
            every = {**seen, LAST: states}
            said["features"] = {k: _at_rows(layout, k, every.get(k)) for k in self.taps}
        return said

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
        return few_logits(self.head, self.model.base_model(**inputs).last_hidden_state[:, -1])

    def body(self, **changes: Any) -> Body | CausalLM:
        """A trunk of its own, with ``states`` and ``width``: a copy of this one.

        With ``changes`` of the config a fresh one of another size (``bodies.fresh``). It packs
        where this one does.
        """
        if not changes:
            return copied(self.model, self.layout)
        made = fresh(self.model, changes)
        if self.layout is not Padded:
            made.packing()
        return made

    def snapshot(self) -> CausalLM:
        """A frozen copy in eval mode: the model as it stands now; what is frozen is shared."""
        shared = {id(p): p for p in self.parameters() if not p.requires_grad}
        return copy.deepcopy(self, shared).requires_grad_(False).eval()

    def checkpointing(self) -> None:
        """From now on each layer is computed again in the backward pass of training.

        Less memory for about a third more time (arXiv 1604.06174).

        Raises:
            Failure: the architecture has no layers that know how.
        """
        model: Any = self.model
        if not model.supports_gradient_checkpointing:
            kind = type(model).__name__
            raise Failure(f"train.checkpointing: {kind} does not know how; leave it out")
        again = partial(checkpoint, use_reentrant=False, context_fn=self.contexts)
        model._set_gradient_checkpointing(enable=True, gradient_checkpointing_func=again)

    def packing(self) -> None:
        """From now on texts are read without padding; raises Failure as ``packing.pack`` does."""
        kind = "hidden" if self.head_known else "logits"
        pack(self, lambda batch: self(batch)[kind], self.model)

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
    if unknown := sorted(set(sizes) - entries(kind())):
        near = nearest(unknown[0], sorted(entries(kind())))
        raise Failure(f"student.lm: {kind.__name__} has no {', '.join(unknown)}{near}")
    words = {"eos_token_id": eos_token_id, "pad_token_id": pad_token_id, "bos_token_id": None}
    with sizes_of("student.lm"):
        config = AutoConfig.for_model(model_type, vocab_size=vocab_size, **words, **sizes)
        model = AutoModelForCausalLM.from_config(config)
    return CausalLM(model)


def _at_rows(layout: Padded, layer: str, said: Any) -> Tensor:
    if not isinstance(said, Tensor) or said.shape[:-1] != layout.inputs["input_ids"].shape:
        got = list(said.shape) if isinstance(said, Tensor) else "none"
        raise Failure(f"the layer {layer!r} says no state of each token, [.., .., d]: got {got}")
    return layout.at_rows(said)


def _stop_ids(model: PreTrainedModel) -> tuple[int, ...]:
    told = getattr(model.generation_config, "eos_token_id", None)
    told = model.config.eos_token_id if told is None else told
    if told is None:
        return ()
    return tuple(told) if isinstance(told, list | tuple) else (told,)
