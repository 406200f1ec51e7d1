"""Optimal transport between distributions and between sets of states."""

from __future__ import annotations

import torch
from torch import Tensor

NEVER = -1e30
"""The score of a place that is not there; finite, so that a row of nothing else has a gradient."""
TINY = 1e-30


def sorted_distance(student: Tensor, teacher: Tensor, *, largest: int | None = None) -> Tensor:
    """Universal logit distillation loss: distributions over different vocabularies, compared.

    ``W = sum_i |p_(i) - q_(i)|`` of the probabilities in falling order, the shorter one filled up
    with zeros: the transport distance where all tokens are as far from each other. 0 <= W <= 2;
    it says nothing of which token is likely.

    ``student`` [n, V_s], ``teacher`` [n, V_t], logits -> [n], in float32 or better. ``largest``
    compares so many of each, and what is left of each as one number: at most what the whole gives,
    and less by at most twice what is left. Source: arXiv 2402.12030.

    By hand: (.5, .3, .2) against (.6, .4) is .1 + .1 + .2.

    >>> p, q = torch.tensor([[0.2, 0.5, 0.3]]).log(), torch.tensor([[0.6, 0.4]]).log()
    >>> round(float(sorted_distance(p, q)), 4)
    0.4
    """
    ordered = [_ordered(logits, largest) for logits in (student, teacher)]
    width = max(x.shape[-1] for x in ordered)
    p, q = (torch.nn.functional.pad(x, (0, width - x.shape[-1])) for x in ordered)
    return (p - q).abs().sum(-1)


def _ordered(logits: Tensor, largest: int | None) -> Tensor:
    p = logits.softmax(-1, dtype=torch.promote_types(logits.dtype, torch.float32))
    if largest is None or largest >= p.shape[-1]:
        return p.sort(-1, descending=True).values
    kept = p.topk(largest, -1).values
    return torch.cat([kept, (1 - kept.sum(-1, keepdim=True)).clamp_min(0)], -1)


def side_by_side(values: Tensor, owner: Tensor, size: int) -> Tensor:
    """Rows of ``size`` examples, padded with zeros: [N, ...] and ``owner`` [N] -> [size, n, ...].

    ``owner`` never falls; n is the length of the longest example, at least 1.

    >>> side_by_side(torch.tensor([5, 6, 7]), torch.tensor([0, 2, 2]), 3).tolist()
    [[5, 0], [0, 0], [6, 7]]
    """
    counts = owner.bincount(minlength=size)
    place = torch.arange(len(owner), device=owner.device) - (counts.cumsum(0) - counts)[owner]
    length = max(1, int(counts.max())) if size else 1
    return values.new_zeros(size, length, *values.shape[1:]).index_put((owner, place), values)


def cosine_cost(a: Tensor, b: Tensor) -> Tensor:
    """Cost of transport by cosine distance: ``C_ij = 1 - cos(a_i, b_j)``, from 0 to 2.

    ``a`` [B, n, d], ``b`` [B, m, d] -> [B, n, m], in float32 or better. A state of zeros is at
    distance 1 from all.

    By hand: (1, 0) against itself, against (0, 2), and against (-3, 0).

    >>> a, b = torch.tensor([[[1.0, 0]]]), torch.tensor([[[1.0, 0], [0, 2], [-3, 0]]])
    >>> cosine_cost(a, b).tolist()
    [[[0.0, 1.0, 2.0]]]
    """
    unit = torch.nn.functional.normalize
    return 1 - _products(unit(_exact(a), dim=-1), unit(_exact(b), dim=-1))


def l1_cost(a: Tensor, b: Tensor) -> Tensor:
    """Cost of transport by city-block (L1) distance: ``C_ij = sum_c |a_ic - b_jc|``.

    ``a`` [B, n, d], ``b`` [B, m, d] -> [B, n, m], in float32 or better. Of probabilities it is
    twice the total variation distance, from 0 to 2; where two entries are equal it has gradient 0.

    By hand: (.75, .25) against itself, and against (.25, .75).

    >>> a, b = torch.tensor([[[0.75, 0.25]]]), torch.tensor([[[0.75, 0.25], [0.25, 0.75]]])
    >>> l1_cost(a, b).tolist()
    [[[0.0, 1.0]]]
    """
    return torch.cdist(_exact(a), _exact(b), p=1)


def softmax_cost(a: Tensor, b: Tensor, there: Tensor) -> Tensor:
    """Cost of transport by attention: ``C_ij = 1 - softmax_j(a_i . b_j / sqrt(d))``, 0 to 1.

    The more b has, the flatter it is: of m states alike each costs 1 - 1/m.

    ``a`` [B, n, d], ``b`` [B, m, d], ``there`` [B, m] above 0 where b has a state -> [B, n, m], in
    float32 or better; what is not there has no share in the softmax, and costs 1.

    By hand: products 2 ln 3 and 0 over sqrt(4) give shares 3/4 and 1/4.

    >>> a, b = torch.tensor([[[1.0, 0, 0, 0]]]), torch.zeros(1, 2, 4)
    >>> b[0, 0, 0] = 2 * torch.tensor(3.0).log()
    >>> [round(x, 4) for x in softmax_cost(a, b, torch.ones(1, 2))[0, 0].tolist()]
    [0.25, 0.75]
    """
    products = _products(_exact(a), _exact(b)) / a.shape[-1] ** 0.5
    return 1 - products.masked_fill(there[:, None] <= 0, NEVER).softmax(-1)


def sinkhorn(
    cost: Tensor,
    a: Tensor,
    b: Tensor,
    *,
    eps: float = 0.1,
    iterations: int = 100,
    stop: float = 1e-9,
) -> Tensor:
    """Entropic optimal transport plan by Sinkhorn's iterations in the log domain.

    ``T = argmin_{T >= 0, T 1 = a, T' 1 = b} <T, C> + eps sum T log T``

    ``cost`` [B, n, m], ``a`` [B, n] and ``b`` [B, m] masses that are scaled to add up to 1 in each
    example, 0 where nothing is -> [B, n, m], in float32 or better. The sums over rows are exact;
    those over columns are within ``stop`` of ``a`` (as the sum of what they miss by, and no less
    than a few roundings), or as near as ``iterations`` come. Each example stops by itself, so that
    it does not depend on its company. One without any mass has a plan of zeros. Gradients reach
    the cost through all iterations. Source: Cuturi (arXiv 1306.0895).

    By hand: two states a side, going straight costs 0 and across 1; at eps = 1 / ln 3 going across
    is a third as likely, so the plan is 3/8 and 1/8.

    >>> cost, half = torch.tensor([[[0.0, 1.0], [1.0, 0.0]]]), torch.full((1, 2), 0.5)
    >>> plan = sinkhorn(cost, half, half, eps=1 / torch.tensor(3.0).log().item())
    >>> [[round(x, 4) for x in row] for row in plan[0].tolist()]
    [[0.375, 0.125], [0.125, 0.375]]
    """
    score = _exact(cost) / -eps
    rows, columns = (_shares(x.to(score)) for x in (a, b))
    gone = (rows == 0)[:, :, None] | (columns == 0)[:, None]
    score = score.masked_fill(gone, NEVER)
    near = max(stop, 4 * torch.finfo(score.dtype).eps)
    u, v = torch.zeros_like(rows), torch.zeros_like(columns)
    open_ = ~gone.flatten(1).all(1, keepdim=True)
    for _ in range(iterations):
        new = _potential(rows, (score + v[:, None]).logsumexp(-1))
        missed = (rows * ((u - new).detach().exp() - 1).abs()).sum(-1, keepdim=True)
        u = torch.where(open_, new, u)
        v = torch.where(open_, _potential(columns, (score + u[:, :, None]).logsumexp(1)), v)
        open_ = open_ & (missed > near)
        if not open_.any():
            break
    return (score + u[:, :, None] + v[:, None]).masked_fill(gone, -torch.inf).exp()


def transport(
    cost: Tensor,
    a: Tensor,
    b: Tensor,
    *,
    eps: float = 0.1,
    iterations: int = 100,
    unroll: bool = False,
) -> Tensor:
    """Optimal transport distance (Sinkhorn) between two sets of states, a value an example.

    ``W = sum_ij T_ij C_ij`` with T of ``sinkhorn``; 0 where an example has no state on one side.
    The plan is taken as given, or its own gradient counts too (``unroll``).

    ``cost`` [B, n, m], ``a`` [B, n], ``b`` [B, m] -> [B]. The order of states on either side is of
    no account.

    By hand: one state goes to two in halves.

    >>> cost, one, two = torch.tensor([[[0.2, 0.4]]]), torch.ones(1, 1), torch.ones(1, 2)
    >>> round(float(transport(cost, one, two)), 4)
    0.3
    """
    told = cost if unroll else cost.detach()
    plan = sinkhorn(told, a, b, eps=eps, iterations=iterations)
    return (plan * cost).sum((1, 2))


def _shares(masses: Tensor) -> Tensor:
    return masses / masses.sum(-1, keepdim=True).clamp_min(TINY)


def _potential(mass: Tensor, reached: Tensor) -> Tensor:
    """What brings a row's sum ``exp(reached)`` to its mass; 0 where nothing is."""
    return torch.where(mass > 0, mass.clamp_min(TINY).log() - reached, 0)


def _exact(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _products(a: Tensor, b: Tensor) -> Tensor:
    # costs are compared by small differences, for which bfloat16 has too few digits
    with torch.autocast(a.device.type, enabled=False):
        return a @ b.transpose(-1, -2)
