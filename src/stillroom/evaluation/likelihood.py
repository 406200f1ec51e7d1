"""How likely the teacher's text is to the student, token by token."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from stillroom.core import Batch, Signals
from stillroom.evaluation.suite import View, mean
from stillroom.losses.per_row import per_row
from stillroom.losses.policy import label_logp

COLUMNS = {
    "nll": ("nats a token of the teacher's text", "lower"),
    "perplexity": ("perplexity of the teacher's text", "lower"),
    "token_accuracy": ("teacher's token is the likeliest", "higher"),
}


def measure(view: View) -> dict[str, float]:
    """Mean negative log-likelihood of the teacher's text, its exponential, top-1 accuracy.

    In nats a supervised token, each token after the teacher's own prefix.
    """
    return _described(view, view.student)


def teacher(view: View) -> dict[str, float]:
    """The same of a live teacher; nothing for one that gives no logits."""
    live = view.teachers.get("teacher")
    return {} if live is None or "logits" not in live.signals else _described(view, live)


def _described(view: View, speaker: Callable[[Batch], Signals]) -> dict[str, float]:
    said = [per_row(_both, speaker(batch), None, batch.labels) for batch in view.batches()]
    nll = -mean([s[:, 0] for s in said])
    return {
        "nll": nll,
        "perplexity": math.exp(min(nll, 700.0)),
        "token_accuracy": mean([s[:, 1] for s in said]),
    }


def _both(student: Tensor, _teacher: Tensor | None, labels: Tensor) -> Tensor:
    hit = (student.argmax(-1) == labels).to(student.dtype)
    return torch.stack([label_logp(student, labels), hit], -1)
