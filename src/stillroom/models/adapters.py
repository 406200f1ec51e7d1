"""Low-rank adapters (LoRA) on a frozen language model that student, critic and teacher share.

``W x + (alpha / rank) B A x`` on linear layers, with B = 0 at the start (arXiv 2106.09685). The
matrices are peft's. Which adapter is on, and whether layers train, is not left switched as in
peft (which also switches what has gradients): each speaker sets both while it speaks.
"""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from transformers import Cache

from stillroom.core import Batch, Failure, Signals
from stillroom.models.adapter_files import config_of, peft, read, write
from stillroom.models.bodies import Body
from stillroom.models.heads import probe
from stillroom.models.shared import On, Shared
from stillroom.models.text import CausalLM


class AdaptedLM(CausalLM):
    """A language model whose own weights are an adapter's, on a base that it shares.

    Its parameters and state are those of the adapter alone (none: the base itself).

    Args:
        shared: base and adapters.
        adapter: name of the one that is on when this model speaks.
        like: the model whose stop ids and view of the vocabulary it has.
    """

    def __init__(self, shared: Shared, adapter: str | None, like: CausalLM) -> None:
        nn.Module.__init__(self)
        object.__setattr__(self, "model", shared.model)  # no submodule: the base is nobody's own
        self.shared, self.adapter = shared, adapter
        own = shared.weights(adapter)
        self.weights = nn.ParameterDict({k.replace(".", "/"): v for k, v in own.items()})
        self.stop_ids, self.view, self.layout = like.stop_ids, like.view, like.layout
        with self.on():
            self.head_known = probe(self.model)

    def on(self) -> On:
        """Its adapter on, the others off, layers in this module's own mode."""
        return On(self.shared, (self.adapter, self.training))

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        self.model._apply(fn, recurse)  # to a device, with the base
        return super()._apply(fn, recurse)

    def forward(self, batch: Batch) -> Signals:
        with self.on():
            return super().forward(batch)

    def states(self, batch: Batch) -> Tensor:
        with self.on():
            return super().states(batch)

    def next_logits(self, ids: Tensor, positions: Tensor, real: Tensor, cache: Cache) -> Tensor:
        with self.on():
            return super().next_logits(ids, positions, real, cache)

    def body(self, **changes: Any) -> Body | CausalLM:
        """A copy of the adapter on the same base; with ``changes``, as of any model."""
        return super().body(**changes) if changes else self._copy()

    def snapshot(self) -> CausalLM:
        """A frozen copy of the adapter on the same base."""
        return self._copy().requires_grad_(False).eval()

    def _copy(self) -> AdaptedLM:
        if self.adapter is None:
            raise Failure("the base without an adapter has nothing of its own to copy")
        made = AdaptedLM(self.shared, self.shared.add(self.shared.configs[self.adapter]), self)
        made.load_state_dict(self.state_dict())
        return made

    def base(self) -> AdaptedLM:
        """The model without any adapter."""
        return AdaptedLM(self.shared, None, self)

    def other(self, folder: str) -> AdaptedLM:
        """The model with a saved adapter instead.

        Raises:
            Failure: it does not fit this base.
        """
        name = self.shared.add(config_of(folder))
        read(Path(folder), self.shared.weights(name), self.model)
        return AdaptedLM(self.shared, name, self)

    def contexts(self) -> tuple[Any, Any]:
        """What is computed again has the adapter and the mode of the first time."""
        return nullcontext(), On(self.shared)

    def save(self, folder: Path) -> None:
        """The merged model, which needs no peft, and beside it ``adapter/`` in peft's format."""
        with self.shared.merged(self.adapter) as plain:
            plain.save_pretrained(folder)
        config, weights = self.shared.configs[str(self.adapter)], self.shared.weights(self.adapter)
        write(folder / "adapter", config, weights, self.model)

    def load(self, folder: Path) -> None:
        """Takes the adapter that ``save`` wrote."""
        read(folder / "adapter", self.shared.weights(self.adapter), self.model)


def adapted(
    lm: CausalLM,
    *,
    rank: int = 16,
    alpha: float = 32.0,
    dropout: float = 0.0,
    targets: str | list[str] = "all-linear",
    adapter: str | None = None,
) -> AdaptedLM:
    """A model that trains a low-rank adapter (LoRA); ``lm`` becomes its frozen base.

    A saved ``adapter`` brings its own rank, alpha and targets.

    Raises:
        Failure: peft is not installed, targets name no linear layer, or the adapter does not fit.
    """
    config = (
        config_of(adapter)
        if adapter
        else peft().LoraConfig(r=rank, lora_alpha=alpha, target_modules=targets)
    )
    config.lora_dropout = dropout
    shared = Shared(lm.model)
    name = shared.add(config)
    if adapter:
        read(Path(adapter), shared.weights(name), shared.model)
    shared.set(name, False)
    return AdaptedLM(shared, name, lm)
