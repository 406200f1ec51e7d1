"""A linear critic on the mean state of an answer: read by a frozen trunk, fitted, not trained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import torch
from annotated_types import Ge, Gt
from torch import Tensor, nn

from stillroom.core import Batch
from stillroom.losses.policy import bradley_terry


@dataclass(frozen=True, kw_only=True)
class Pooling:
    """How a method's pooled critic is made.

    Args:
        layers: first layers of the frozen student that it reads; null reads all.
        l2: strength of its penalty.
        replay: last pairs that it is fitted to, every step.
    """

    layers: Annotated[int, Ge(1)] | None = None
    l2: Annotated[float, Gt(0)] = 10.0
    replay: Annotated[int, Ge(2)] = 256


class MeanState(nn.Module):
    """[B, d] mean over the tokens of each answer of a frozen trunk's states, in float64.

    Args:
        body: a module with ``states(batch) -> [B, L, d]`` and ``width``.
    """

    def __init__(self, body: Any) -> None:
        super().__init__()
        self.body = body.requires_grad_(False).eval()

    @torch.no_grad()
    def forward(self, batch: Batch) -> Tensor:
        answer = batch.real & (batch.positions >= batch.prompt[:, None])
        states = self.body.states(batch).double().masked_fill(~answer[..., None], 0.0)
        return states.sum(1) / answer.sum(1, keepdim=True)


class Pooled(nn.Module):
    """Bradley-Terry critic on mean-pooled features: a few pairs are enough, nothing drifts.

    ``score(y) = w^T (f(y) - c)`` with f the :class:`MeanState` of a text. ``learn`` keeps the last
    ``replay`` pairs and fits w and c to them anew (see :func:`fit`); before the first pair all
    scores are 0. All state is buffers of fixed shape.

    Args:
        body: the trunk, frozen here.
        replay: pairs that are kept.
        l2: strength of the penalty.
    """

    doors = ("read",)
    theirs: Tensor
    own: Tensor
    seen: Tensor
    weight: Tensor
    centre: Tensor

    def __init__(self, body: Any, *, replay: int, l2: float) -> None:
        super().__init__()
        self.reader, self.l2 = MeanState(body), l2
        for side in ("theirs", "own"):
            self.register_buffer(side, torch.zeros(replay, body.width, dtype=torch.float64))
        self.register_buffer("seen", torch.zeros((), dtype=torch.long))
        for part in ("weight", "centre"):
            self.register_buffer(part, torch.zeros(body.width, dtype=torch.float64))

    def read(self, batch: Batch) -> Tensor:
        """[B, d] features of texts."""
        return self.reader(batch)

    def forward(self, batch: Batch) -> Tensor:
        """[B] scores of texts."""
        return self.score(self.reader(batch))

    def score(self, read: Tensor) -> Tensor:
        """[n, d] features to [n] scores."""
        return (read - self.centre) @ self.weight

    @torch.no_grad()
    def learn(self, theirs: Tensor, own: Tensor) -> None:
        """Takes in pairs of features [n, d], the oldest giving way, and fits the critic anew."""
        room = len(self.own)
        places = (self.seen + torch.arange(len(own), device=own.device))[-room:] % room
        self.theirs[places], self.own[places] = theirs[-room:], own[-room:]
        self.seen += len(own)
        kept = min(int(self.seen), room)
        weight, centre = fit(self.theirs[:kept], self.own[:kept], self.l2)
        self.weight.copy_(weight)
        self.centre.copy_(centre)


def fit(theirs: Tensor, own: Tensor, l2: float) -> tuple[Tensor, Tensor]:
    """Penalised logistic regression on pair differences: weights [d] and centre [d].

    Minimises ``sum_i softplus(-v^T (z(t_i) - z(s_i))) + l2 / 2 |v|^2`` with ``z(f) = (f - c) / s``,
    c and s the mean and the deviation of each feature over the texts of both sides, by L-BFGS in
    float64, from 0: a function of the pairs alone. Returns ``v / s`` and c. A feature that is the
    same in all texts gets weight 0.

    ``theirs`` should score higher: [n, d] each, float64.
    """
    texts = torch.cat([theirs, own])
    centre, scale = texts.mean(0), texts.std(0, correction=0)
    scale = torch.where(scale > 0, scale, 1.0)
    wins, loses = (theirs - centre) / scale, (own - centre) / scale
    weight = torch.zeros_like(centre, requires_grad=True)
    solver = torch.optim.LBFGS(
        [weight],
        max_iter=500,
        tolerance_grad=1e-8,
        tolerance_change=1e-14,
        line_search_fn="strong_wolfe",
    )

    def loss() -> Tensor:
        with torch.enable_grad():
            misfit = bradley_terry(wins @ weight, loses @ weight).sum()
            value = misfit + l2 / 2 * weight.square().sum()
        (weight.grad,) = torch.autograd.grad(value, [weight])
        return value.detach()

    solver.step(loss)  # type: ignore[arg-type]
    return weight.detach() / scale, centre
