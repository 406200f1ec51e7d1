"""Trunks of language models: what reads the text, without the head."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from stillroom.core import Batch, Failure
from stillroom.models.packing import Padded, pack


class Body(nn.Module):
    """The trunk of a language model: states of every position, without a head."""

    layout: type[Padded] = Padded
    """How the sequences of a batch stand in the rows that the network reads."""

    def __init__(self, network: nn.Module, width: int) -> None:
        super().__init__()
        self.network = network
        self.width = width

    def states(self, batch: Batch) -> Tensor:
        """[B, L, d] states after the last norm."""
        layout = self.layout(batch)
        return layout.everywhere(self.network(**layout.inputs).last_hidden_state)

    def packing(self) -> None:
        """From now on texts are read without padding; raises Failure as ``packing.pack`` does."""
        network: Any = self.network
        pack(self, lambda batch: self.states(batch).flatten(0, 1)[batch.rows], network)


def width_of(model: PreTrainedModel) -> int:
    """Numbers of a state."""
    return model.config.get_text_config().hidden_size


def copied(model: PreTrainedModel, layout: type[Padded]) -> Body:
    """A copy of a model's trunk."""
    made = Body(copy.deepcopy(model.base_model), width_of(model))
    made.layout = layout
    return made


def fresh(model: PreTrainedModel, changes: Mapping[str, Any]) -> Body:
    """A trunk with fresh weights, of a model's config with ``changes``.

    Lists with an entry a layer (which layers slide a window) repeat for further layers.

    Raises:
        Failure: a change names nothing in the config, or makes sizes that do not fit.
    """
    trunk: Any = model.base_model
    config = copy.deepcopy(trunk.config)
    if unknown := sorted(set(changes) - entries(config)):
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
    with sizes_of("critic"):  # a config checks its values when it is made, not when changed
        config = type(config).from_dict(config.to_dict(), attn_implementation=attention)
        made = type(trunk)(config).to(model.device, model.dtype)
    return Body(made, config.get_text_config().hidden_size)


def entries(config: Any) -> set[str]:
    """Names that a config knows, those that it maps to its own included."""
    return {*config.to_dict(), *config.attribute_map}


@contextmanager
def sizes_of(field: str) -> Iterator[None]:
    """What an architecture says of impossible sizes, whatever kind of error it is, as a Failure."""
    try:
        yield
    except Exception as error:
        raise Failure(f"{field}: these sizes make no model: {error}") from error
