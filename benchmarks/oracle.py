"""The same loss and gradients in float64 from the plain formula: what every arm is held against."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

ROWS, WORDS = 32, 16384
"""Rows and tokens that are worked on at once; float64 takes twice the memory."""
BOUNDS = {torch.float32: 1e-4, torch.bfloat16: 0.1}
"""Largest relative error of value and gradients (in norm) that an arm may have and be timed."""


@dataclass(frozen=True)
class Inputs:
    """Hidden states [N, d], heads [V, d] of student and teacher, labels [N]."""

    hidden: Tensor
    weight: Tensor
    their_hidden: Tensor
    their_weight: Tensor
    labels: Tensor


def inputs(rows: int, vocab: int, width: int, dtype: str, seed: int = 0) -> Inputs:
    """Random states and heads whose logits spread by 3, as of trained models; the two correlate."""
    draw = torch.Generator().manual_seed(seed)
    kind = getattr(torch, dtype)

    def pair(size: int, spread: float) -> tuple[Tensor, Tensor]:
        mine, theirs = (torch.empty(size, width, dtype=kind) for _ in range(2))
        mine.normal_(0, spread, generator=draw)
        theirs.normal_(0, 0.6 * spread, generator=draw).add_(mine, alpha=0.8)
        return mine, theirs

    hidden, their_hidden = pair(rows, 1.0)
    weight, their_weight = pair(vocab, 3 / width**0.5)
    labels = torch.randint(vocab, (rows,), generator=draw)
    hidden.requires_grad_()
    weight.requires_grad_()
    return Inputs(hidden, weight, their_hidden, their_weight, labels)


@dataclass(frozen=True)
class Truth:
    """The mean over rows, and its gradients, in float64."""

    value: float
    d_hidden: Tensor
    d_head: Tensor

    def errors(self, value: Tensor, d_hidden: Tensor, d_head: Tensor) -> dict[str, float]:
        """Relative errors: of the value, and of the gradients in norm."""
        gaps = zip(d_head.split(WORDS), self.d_head.split(WORDS), strict=True)
        square = sum(float((mine.double() - true).square().sum()) for mine, true in gaps)
        return {
            "value": abs(float(value.detach()) - self.value) / abs(self.value),
            "d_hidden": float((d_hidden.double() - self.d_hidden).norm() / self.d_hidden.norm()),
            "d_head": (square**0.5) / float(self.d_head.norm()),
        }


def truth(x: Inputs, divergence: str) -> Truth:
    """Blockwise over rows and vocabulary, with probabilities and autograd on the logits alone."""
    count, total = len(x.hidden), 0.0
    d_hidden = torch.zeros(x.hidden.shape, dtype=torch.float64)
    d_head = torch.zeros(x.weight.shape, dtype=torch.float64)
    for start in range(0, count, ROWS):
        at = slice(start, start + ROWS)
        hidden = x.hidden.detach()[at].double()
        logits = _logits(hidden, x.weight.detach()).requires_grad_()
        with torch.no_grad():
            q = _logits(x.their_hidden[at].double(), x.their_weight).softmax(-1)
        loss = _summed(logits.softmax(-1), q, x.labels[at], divergence) / count
        loss.backward()
        total += float(loss.detach())
        grad: Any = logits.grad
        for k in range(0, len(x.weight), WORDS):
            part = slice(k, k + WORDS)
            d_hidden[at] += grad[:, part] @ x.weight.detach()[part].double()
            d_head[part].addmm_(grad[:, part].T, hidden)
    return Truth(total, d_hidden, d_head)


def _logits(hidden: Tensor, weight: Tensor) -> Tensor:
    return torch.cat([hidden @ part.double().T for part in weight.split(WORDS)], 1)


def _summed(p: Tensor, q: Tensor, labels: Tensor, divergence: str) -> Tensor:
    """Sum over rows of the divergence of student probabilities p and teacher probabilities q."""
    name, _, label = divergence.partition("+")
    m = (p + q) / 2
    value = {
        "forward_kl": lambda: (q * (q / p).log()).sum(),
        "reverse_kl": lambda: (p * (p / q).log()).sum(),
        "jsd": lambda: ((p * (p / m).log()).sum() + (q * (q / m).log()).sum()) / 2,
    }[name]()
    return value - p.gather(1, labels[:, None]).log().sum() if label else value
