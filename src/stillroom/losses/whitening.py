"""Features of a batch brought to mean 0 and to like sizes: standardised, whitened.

Mean and covariance are arguments, so that they may be taken over more than what is changed by them:
all micro-batches and processes, while each changes its own examples.
"""

from __future__ import annotations

import torch
from torch import Tensor


def moments(features: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """Mean [d] and covariance [d, d] of examples that count by weights.

    ``m = sum_i w_i x_i / sum_i w_i``, ``C = sum_i w_i (x_i - m)(x_i - m)^T / sum_i w_i``

    ``features`` [B, d], ``counts`` [B] -> [d], [d, d], in float32 at least; 0 where nothing counts.

    By hand: 0 and 2 have mean 1 and variance 1.

    >>> mean, covariance = moments(torch.tensor([[0.0], [2.0]]), torch.ones(2))
    >>> mean.tolist(), covariance.tolist()
    ([1.0], [[1.0]])
    """
    x = features.to(torch.promote_types(features.dtype, torch.float32))
    share = counts.to(x) / counts.to(x).sum().clamp_min(torch.finfo(x.dtype).tiny)
    mean = share @ x
    apart = x - mean
    return mean, apart.T @ (apart * share[:, None])


def standardised(features: Tensor, mean: Tensor, covariance: Tensor, eps: float) -> Tensor:
    """Each channel with mean 0 and variance 1 over examples; covariances between them stay.

    ``(x - m) / sqrt(diag(C) + e)`` with ``e = eps * tr(C) / d``

    ``features`` [B, d], ``mean`` [d], ``covariance`` [d, d] -> [B, d].

    By hand: 3, where mean 1 and variance 4 are, is one deviation above.

    >>> standardised(torch.tensor([[3.0]]), torch.ones(1), torch.tensor([[4.0]]), 0.0).tolist()
    [[1.0]]
    """
    variance = covariance.diagonal()
    return (features.to(mean) - mean) * (variance + _floor(variance, eps)).rsqrt()


def whitened(features: Tensor, mean: Tensor, covariance: Tensor, eps: float) -> Tensor:
    """ZCA whitening: the identity as covariance, by the turn that moves features least.

    ``(x - m) (C + e I)^(-1/2)`` with ``e = eps * tr(C) / d``

    eps is relative to the mean variance, so scaling all features changes nothing. It keeps
    directions in which a batch does not vary (all but B - 1 of them, where B <= d) from being blown
    up. ``features`` [B, d], ``mean`` [d], ``covariance`` [d, d] -> [B, d].

    By hand: variances 4 and 9 without covariance; 2 and 3 become 1.

    >>> spread = torch.tensor([[4.0, 0.0], [0.0, 9.0]])
    >>> whitened(torch.tensor([[2.0, 3.0]]), torch.zeros(2), spread, 0.0).round(decimals=5).tolist()
    [[1.0, 1.0]]
    """
    sizes, axes = torch.linalg.eigh(covariance)
    root = (sizes.clamp_min(0) + _floor(covariance.diagonal(), eps)).rsqrt()
    return (features.to(mean) - mean) @ (axes * root) @ axes.T


def _floor(variance: Tensor, eps: float) -> Tensor:
    """Above 0 also where nothing varies, so that what is no deviation stays 0."""
    return (eps * variance.mean()).clamp_min(torch.finfo(variance.dtype).tiny)
