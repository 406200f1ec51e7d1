"""Ranking losses: how likely a model's scores make a given order of classes or tokens."""

from __future__ import annotations

import torch
from torch import Tensor


def plackett_luce(scores: Tensor, order: Tensor, weight: Tensor) -> Tensor:
    """Plackett-Luce loss of a ranking, by places: list-wise learning to rank.

    ``sum_k w_k (log sum_(l >= k) exp s_(pi_l) - s_(pi_k))``

    The first of the order is drawn from the softmax over all, the second over what is left, and so
    on; the last one's term is 0. It is convex in the scores, does not change where a number is
    added to all of them, and falls without bound as they move apart in the right order.
    ``d / d s_(pi_i) = sum_(k <= i) w_k softmax(s_(pi_k), ..., s_(pi_C))_i - w_i``

    ``scores`` [n, C], finite, ``order`` [n, C] (what stands at each place, best first), ``weight``
    of the places, [n, C] or [C], which must not depend on the scores -> [n], in nats, in float32
    or better. The weight ``(1, 0, ..., 0)`` gives the cross-entropy with the first, 1 everywhere
    ListMLE (Xia et al., 2008), falling ones its position-aware form.

    By hand, p = (.5, .3, .2) in the order 0, 1, 2: ``-log .5 - log(.3 / .5) = .6931 + .5108``

    >>> scores, order = torch.tensor([[0.5, 0.3, 0.2]]).log(), torch.tensor([[0, 1, 2]])
    >>> round(float(plackett_luce(scores, order, torch.ones(3))), 4)
    1.204
    """
    placed = _exact(scores).gather(-1, order)
    left = placed.flip(-1).logcumsumexp(-1).flip(-1)
    return (weight * (left - placed)).sum(-1)


def label_first(scores: Tensor, labels: Tensor) -> Tensor:
    """A ranking by scores that the truth is put at the head of: the label, then the others.

    ``scores`` [n, C], ``labels`` [n] -> [n, C], indices; of equal scores the lower index is first.

    >>> label_first(torch.tensor([[3.0, 1.0, 2.0, 3.0]]), torch.tensor([2])).tolist()
    [[2, 0, 3, 1]]
    """
    headed = scores.scatter(-1, labels.unsqueeze(-1), torch.inf)
    return headed.sort(dim=-1, descending=True, stable=True).indices


def _exact(value: Tensor) -> Tensor:
    """In float32 or better: sums of many exponentials are lost in half precision."""
    return value.to(torch.promote_types(value.dtype, torch.float32))
