"""Preference losses on pairs of answers: DPO and its kin; log-probabilities of whole answers.

All unreduced: one value a pair. Nothing is detached here: what must not learn (the reference)
comes without gradient from where it is made.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from stillroom.core import Failure

Shape = Literal["linear", "squared", "hinge", "sigmoid"]


def answer_logp(logp: Tensor, owner: Tensor, counts: Tensor, size: int, *, mean: bool) -> Tensor:
    """Log-probability of each answer: the sum over its tokens, or their mean (length-normalised).

    ``s(y) = sum_t c_t log q(y_t | x, y_<t)``, with ``mean`` divided by ``sum_t c_t``

    ``logp`` [N] of the tokens, ``owner`` [N] whose they are, ``counts`` [N] how much each counts
    (0: not at all) -> [size], 0 for an answer without tokens.

    >>> logp, owner = torch.tensor([-1.0, -2.0, -5.0]), torch.tensor([0, 0, 2])
    >>> answer_logp(logp, owner, torch.ones(3), 3, mean=True).tolist()
    [-1.5, 0.0, -5.0]
    """
    total = logp.new_zeros(size).index_add(0, owner, torch.where(counts > 0, logp, 0) * counts)
    if not mean:
        return total
    tokens = counts.new_zeros(size).index_add(0, owner, counts)
    return total / torch.where(tokens > 0, tokens, 1)


def preference(
    chosen: Tensor,
    rejected: Tensor,
    *,
    beta: float,
    margin: Tensor | float = 0.0,
    shape: Shape = "sigmoid",
    smoothing: float = 0.0,
) -> Tensor:
    """Preference loss of pairs: the chosen answer's score should exceed that of the rejected one.

    ``D = s(y_w) - s(y_l)``, ``z = beta D - margin``

    - ``sigmoid``: ``-(1 - e) log sigmoid(z) - e log sigmoid(-z)``, e the ``smoothing`` (share of
      labels that may be wrong); DPO, with a margin and mean log-probabilities SimPO;
    - ``squared``: ``(D - margin - 1 / (2 beta))^2``, IPO where the margin is 0;
    - ``hinge``: ``max(0, -z)``, calibration by ranks as in SLiC and PLaD;
    - ``linear``: ``-z``, not bounded from below; REDI's where ``rejected`` is ``alpha s(y_l)``, so
      that the rejected answer is pushed down less than the chosen one is pulled up.

    ``chosen`` and ``rejected`` [P] are scores: log-ratios ``log q(y) - log p(y)`` to a reference p,
    or plain ``log q(y)`` without one, as sums or means over tokens (``answer_logp``); beta means
    another thing for a mean than for a sum, by the length. Pairs may also be of tokens. ``margin``
    is one for all, or [P] -> [P].

    Sources: DPO (arXiv 2305.18290), IPO (2310.12036), SimPO (2405.14734), REDI (2505.24850).

    Raises ``Failure`` where there is smoothing and the shape has none.

    By hand at beta .5, scores 3 and 1: ``D = 2``, ``log(1 + e^-1) = .3133``; squared ``(2 - 1)^2``

    >>> chosen, rejected = torch.tensor(3.0), torch.tensor(1.0)
    >>> round(float(preference(chosen, rejected, beta=0.5)), 4)
    0.3133
    >>> float(preference(chosen, rejected, beta=0.5, shape="squared"))
    1.0
    """
    if smoothing and shape != "sigmoid":
        raise Failure(
            f"preference: smoothing is of the sigmoid's labels, but the shape is {shape!r}; "
            "leave out one of the two"
        )
    gap = chosen - rejected
    if shape == "squared":
        return (gap - margin - 0.5 / beta).square()
    z = beta * gap - margin
    if shape == "hinge":
        return (-z).clamp_min(0)
    if shape == "linear":
        return -z
    return -(1 - smoothing) * logsigmoid(z) - smoothing * logsigmoid(-z)


def shortfall(chosen: Tensor) -> Tensor:
    """How much less likely the chosen answer became than it was: what DPO-positive punishes.

    ``max(0, log p(y_w) - log q(y_w))`` of log-ratios ``log q - log p`` [P] -> [P]. It is taken
    from the gap, times its factor (arXiv 2402.13228): ``preference(chosen - factor *
    shortfall(chosen), rejected, ...)``.

    >>> shortfall(torch.tensor([-2.0, 3.0])).tolist()
    [2.0, 0.0]
    """
    return (-chosen).clamp_min(0)
