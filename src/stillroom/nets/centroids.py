"""The mean vector of each class."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Centroids(nn.Module):
    """Sums [C, d] and counts [C] of vectors by class; saved as buffers.

    ``e_c = sum_i w_i t_i / sum_i w_i`` over the examples i of class c, w_i their entry in the mask.
    In float64, so that neither the order of examples nor how many there are is seen in the mean.

    Args:
        classes: C.
        width: d.
    """

    sums: Tensor
    counts: Tensor

    def __init__(self, classes: int, width: int) -> None:
        super().__init__()
        self.register_buffer("sums", torch.zeros(classes, width, dtype=torch.float64))
        self.register_buffer("counts", torch.zeros(classes, dtype=torch.float64))

    @torch.no_grad()
    def add(self, vectors: Tensor, labels: Tensor, mask: Tensor) -> None:
        """Takes in vectors [B, d] of examples with these labels and weights, [B] each."""
        weight = mask.to(self.counts)
        self.sums.index_add_(0, labels, vectors.to(self.sums) * weight[:, None])
        self.counts.index_add_(0, labels, weight)

    def means(self) -> Tensor:
        """[C, d]; 0 for a class without an example."""
        return self.sums / self.counts.clamp_min(torch.finfo(torch.float64).tiny)[:, None]

    def directions(self) -> Tensor:
        """[C, d] unit vectors towards the means; 0 for a class without an example."""
        return torch.nn.functional.normalize(self.means(), dim=-1)
