"""Logits as a batch sees them: how much each example stands out, class by class."""

from __future__ import annotations

import torch
from torch import Tensor


def perception(logits: Tensor, *, eps: float = 1e-5) -> Tensor:
    """Standardises each class over the batch: columns of mean 0 and variance 1.

    ``h_bc = (z_bc - mean_b z_bc) / sqrt(var_b z_bc + eps)``, the variance divided by B.

    A number added to a class, or a positive factor of it, is gone (the factor up to eps); what is
    added to all classes of one example is not, since it moves the columns unevenly. A class in
    which all are alike is 0 everywhere, and so is a batch of one. The gradient flows through mean
    and variance; where a class varies less than ``sqrt(eps)`` it is up to ``eps ** -1/2`` times
    that of h.

    ``logits`` [B, C] -> [B, C], in float32 or better. The whole batch must be there.

    By hand: of 1 and 3 the mean is 2 and the deviation 1.

    >>> perception(torch.tensor([[1.0, 5.0], [3.0, 5.0]]), eps=1e-12).tolist()
    [[-1.0, 0.0], [1.0, 0.0]]
    """
    exact = logits.to(torch.promote_types(logits.dtype, torch.float32))
    centred = exact - exact.mean(0)
    return centred / (centred.square().mean(0) + eps).sqrt()
