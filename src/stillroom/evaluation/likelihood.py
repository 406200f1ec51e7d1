"""How likely the reference text is to the student, token by token."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from stillroom.core import Batch, Signals
from stillroom.data.text import Renderer
from stillroom.evaluation.suite import View, mean
from stillroom.losses.per_row import per_row
from stillroom.losses.policy import label_logp

GIVEN = True
"""Reads what the student says of given text, and samples nothing."""
COLUMNS = {
    "nll": ("nats a token of the reference text", "lower"),
    "perplexity": ("perplexity of the reference text", "lower"),
    "token_accuracy": ("the reference's token is the likeliest", "higher"),
    "bits_per_byte": ("bits a byte of the reference text", "lower"),
}


def measure(view: View) -> dict[str, float]:
    """Mean negative log-likelihood of the reference text, its exponential, top-1 accuracy.

    The reference is what a recorded teacher wrote, or the data's answer. In nats a supervised
    token, each token after the reference's own prefix. ``bits_per_byte`` is the whole of it, end
    tokens included, over ln 2 and the UTF-8 bytes of the supervised text: the one of these numbers
    that compares models with different tokenizers. A made-up world has no bytes.
    """
    return _described(view, view.student)


def teacher(view: View) -> dict[str, float]:
    """The same of a live teacher; nothing for one that gives no logits."""
    return {} if view.live is None else _described(view, view.live)


def _described(view: View, speaker: Callable[[Batch], Signals]) -> dict[str, float]:
    said = [per_row(_both, speaker(batch), None, batch.labels) for batch in view.batches()]
    nll = -mean([s[:, 0] for s in said])
    told = {
        "nll": nll,
        "perplexity": math.exp(min(nll, 700.0)),
        "token_accuracy": mean([s[:, 1] for s in said]),
    }
    if view.renderer is not None and view.world is None:
        bits = nll * sum(map(len, said)) / math.log(2)
        told["bits_per_byte"] = bits / max(1, sum(_bytes(b, view.renderer) for b in view.batches()))
    return told


def _bytes(batch: Batch, renderer: Renderer) -> int:
    """UTF-8 bytes of the supervised text of a batch, special tokens left out."""
    texts = [batch.labels[batch.owner == i] for i in range(batch.size)]
    return sum(len(renderer.decode(ids.tolist()).encode()) for ids in texts)


def _both(student: Tensor, _teacher: Tensor | None, labels: Tensor) -> Tensor:
    hit = (student.argmax(-1) == labels).to(student.dtype)
    return torch.stack([label_logp(student, labels), hit], -1)
