"""What a network says about a batch, and the head that turns its last state into logits."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from stillroom.core.batch import Bag
from stillroom.failures import Failure

SMALL_LOGITS = 2**24
"""Elements of a [rows, vocabulary] tensor that ``Signals.logits`` still makes on text."""


@dataclass(frozen=True)
class Head:
    """From what the LM head reads (the state after the last norm) to logits.

    ``logits(h) = soft_cap * tanh(scale * (h W^T + b) / soft_cap)``; without a soft-cap the
    ``tanh`` is left out. ``weight`` [V, d], ``bias`` [V]. ``ids`` [V], rising: the tokens that the
    rows stand for, where these are some of the vocabulary; None where row ``v`` is token ``v``.
    """

    weight: Tensor
    bias: Tensor | None = None
    scale: float = 1.0
    soft_cap: float | None = None
    ids: Tensor | None = None

    def logits(self, hidden: Tensor) -> Tensor:
        return self.finished(nn.functional.linear(hidden, self.weight.to(hidden.dtype)))

    def finished(self, products: Tensor) -> Tensor:
        """Logits of ``h W^T`` [n, V], or of its first columns."""
        out = products
        if self.bias is not None:
            out = out + self.bias[: out.shape[-1]].to(out.dtype)
        if self.scale != 1.0:
            out = out * self.scale
        return out if self.soft_cap is None else self.soft_cap * torch.tanh(out / self.soft_cap)

    def narrowed(self, ids: Tensor) -> Head:
        """This head for the tokens ``ids`` [n], rising, alone: a copy of their rows, frozen."""
        bias = None if self.bias is None else self.bias.detach()[ids]
        return replace(self, weight=self.weight.detach()[ids], bias=bias, ids=ids)

    def columns(self, labels: Tensor) -> Tensor:
        """Where tokens stand among the logits; raises Failure for one that has no row."""
        if self.ids is None:
            return labels
        at = torch.searchsorted(self.ids, labels).clamp_max(len(self.ids) - 1)
        if (strange := labels[self.ids[at] != labels]).numel():
            raise Failure(
                f"{strange.numel()} of {labels.numel()} labels are outside the view of the "
                f"vocabulary ({len(self.ids)} ids), such as {int(strange[0])}; it holds what "
                "occurs in the training text: train with 'vocab: full', or add such rows to it"
            )
        return at


class Sparse(Bag):
    """Some tokens of each row's distribution over a vocabulary of ``vocab`` tokens.

    The largest (signal ``topk``): ``ids`` [N, k], log-probabilities ``logp`` [N, k], and ``tail``
    [N], the log of what all other tokens have together. Draws (``sampled``), where ``tail`` is
    absent: ``logp`` are logs of weights, which estimate the probabilities without bias. A place
    without a token has ``logp`` -inf.
    """

    requires_grad = False

    @property
    def drawn(self) -> bool:
        return "tail" not in self

    @property
    def shape(self) -> tuple[int, int]:
        """Of the logits that it stands for: rows, tokens of the vocabulary."""
        return len(self["ids"]), self["vocab"]

    def __getitem__(self, what: Any) -> Any:
        """An entry by name, or some rows by a slice."""
        if not isinstance(what, slice):
            return super().__getitem__(what)
        return Sparse({k: v[what] if isinstance(v, Tensor) else v for k, v in self.items()})

    def split(self, size: int) -> list[Sparse]:
        """Blocks of so many rows."""
        return [self[i : i + size] for i in range(0, max(1, self.shape[0]), size)]

    def below(self, vocab: int) -> Sparse:
        """What it says of the first ``vocab`` tokens; the others' places become empty."""
        logp = self["logp"].masked_fill(self["ids"] >= vocab, -torch.inf)
        return Sparse(
            {**self, "ids": self["ids"].clamp_max(vocab - 1), "logp": logp, "vocab": vocab}
        )

    def __truediv__(self, temperature: float) -> Sparse:
        """The same at temperature 1; at any other it would take the logits of all tokens."""
        if temperature == 1:
            return self
        raise Failure(
            f"a temperature of {temperature:g} softens all scores, and this teacher gives "
            f"{'draws' if self.drawn else 'the largest'} alone: set it to 1, or take a teacher "
            "that gives logits"
        )


class Signals(Bag):
    """What a network says about a batch.

    ``hidden`` [N, d] with ``head`` (text, at ``rows``), ``logits`` [B, C] (classes), or ``sparse``
    (text), and ``features`` {layer: [B, ...] as the layer gives it, on text [N, d] at ``rows``}.
    Of a classifier ``head`` is its last linear layer. On text ``logits`` is made from ``hidden``
    only while it is small.
    """

    def __getattr__(self, name: str) -> Any:
        if name == "logits" and "hidden" in self and "logits" not in self:
            size = len(self["hidden"]) * len(self["head"].weight)
            if self["head"].ids is not None:
                raise Failure(
                    "the columns of logits in a view of the vocabulary are not token ids; put the "
                    "formula into an objective and call per_row(objective, student, teacher, "
                    "labels), or train with 'vocab: full'"
                )
            if size > SMALL_LOGITS:
                raise Failure(
                    f"logits of {len(self['hidden'])} rows by {len(self['head'].weight)} tokens "
                    "are too large to hold; put the formula into an objective and call "
                    "per_row(objective, student, teacher, labels)"
                )
            return self["head"].logits(self["hidden"])
        return super().__getattr__(name)
