"""Linear directions within each class of an embedding, and soft subclasses along them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

SMALL = 1e-10
"""A variance below this share of the largest one is rounding."""


class Subspaces(nn.Module):
    """Soft subclasses of an embedding: ``r_(c, s) = softmax_s(V_c^T (h - m_c) / (scale * beta))``.

    Directions, centres and scale are buffers that ``take`` fills once; before that all subclasses
    are alike. A class may have fewer directions than there is room for: the places that are left
    have probability 0.

    Args:
        shape: classes C, width D of the embedding, subclasses a class S.
        dtype: of the buffers.
    """

    directions: Tensor
    centres: Tensor
    there: Tensor
    scale: Tensor
    fitted: Tensor

    def __init__(self, shape: tuple[int, int, int], dtype: torch.dtype) -> None:
        super().__init__()
        classes, width, each = shape
        self.register_buffer("directions", torch.zeros(classes, width, each, dtype=dtype))
        self.register_buffer("centres", torch.zeros(classes, each, dtype=dtype))
        self.register_buffer("there", torch.ones(classes, each, dtype=torch.bool))
        self.register_buffer("scale", torch.ones((), dtype=dtype))
        self.register_buffer("fitted", torch.zeros((), dtype=torch.bool))

    def forward(self, embedding: Tensor, beta: float) -> Tensor:
        """[B, D] to [B, C, S]: log r, -inf where a class has no such subclass."""
        h = embedding.to(self.directions)
        with torch.autocast(h.device.type, enabled=False):
            scores = torch.einsum("bd,cds->bcs", h, self.directions) - self.centres
        scores = (scores / (self.scale * beta)).masked_fill(~self.there, -torch.inf)
        return scores.log_softmax(-1)

    @torch.no_grad()
    def take(self, moments: Moments, bases: list[Tensor]) -> None:
        """Directions [D, S_c] of each class, S_c from 0 to S, and the moments they came from.

        ``scale`` is the root mean square of all scores of a class's own examples.
        """
        self.there.zero_()
        self.there[:, 0] = True  # a class without a direction is one subclass
        total, count = 0.0, 0.0
        for c, basis in enumerate(bases):
            size, mean = basis.shape[1], moments.mean[c]
            self.directions[c, :, :size] = basis.to(self.directions)
            self.centres[c, :size] = (mean @ basis).to(self.centres)
            self.there[c, :size] = True
            members = float(moments.count[c])
            total += members * float(torch.trace(basis.T @ moments.covariance(c) @ basis))
            count += members * size
        self.scale.fill_((total / count) ** 0.5 if total > 0 else 1.0)
        self.fitted.fill_(True)


@dataclass
class Moments:
    """Counts [C], sums [C, D] and sums of products [C, D, D] of embeddings by class, in float64."""

    count: Tensor
    sum: Tensor
    products: Tensor

    @classmethod
    def none(cls, like: Tensor) -> Moments:
        """Of no examples; ``like`` [C, D] tells sizes and device."""
        classes, width = like.shape
        sizes = [(classes,), (classes, width), (classes, width, width)]
        return cls(*(like.new_zeros(size, dtype=torch.float64) for size in sizes))

    def add(self, embedding: Tensor, member: Tensor) -> None:
        """Takes in embeddings [B, D], each of the class [B] that it is a member of."""
        h = embedding.double()
        for c in member.unique().tolist():
            own = h[member == c]
            self.count[c] += len(own)
            self.sum[c] += own.sum(0)
            self.products[c] += own.T @ own

    @property
    def mean(self) -> Tensor:
        return self.sum / self.count.clamp_min(1)[:, None]

    def covariance(self, c: int) -> Tensor:
        """[D, D] of the members of a class, divided by how many they are."""
        return self.products[c] / self.count[c].clamp_min(1) - torch.outer(*[self.mean[c]] * 2)


def null_space(weight: Tensor) -> Tensor | None:
    """What a linear layer [K, D] does not read: the projection ``I - W^+ W``, [D, D] in float64.

    None where it reads all.
    """
    w = weight.detach().double()
    if torch.linalg.matrix_rank(w) == w.shape[1]:
        return None
    return torch.eye(w.shape[1], dtype=w.dtype, device=w.device) - torch.linalg.pinv(w) @ w


def principal(covariance: Tensor, most: int) -> Tensor:
    """Principal directions (PCA), the widest first: [D, n], n at most ``most`` and the rank.

    Of each the largest entry is positive, so that the sign does not depend on rounding.
    """
    values, vectors = torch.linalg.eigh(covariance)
    kept = int((values > SMALL * values[-1].clamp_min(0)).sum()) if len(values) else 0
    found = vectors.flip(-1)[:, : min(most, kept)]
    if not found.numel():
        return found
    return found * found.gather(0, found.abs().argmax(0, keepdim=True)).sign()


def scattered(kept: Tensor, most: int, draw: torch.Generator) -> Tensor:
    """Random orthonormal directions within what a projection [D, D] keeps: [D, n].

    n is at most ``most`` and the rank of the projection.
    """
    size = min(most, round(float(torch.trace(kept))))
    drawn = torch.randn(len(kept), size, generator=draw, dtype=torch.float64).to(kept)
    return torch.linalg.qr(kept @ drawn).Q


def rotation(size: int, draw: torch.Generator) -> Tensor:
    """A random orthonormal matrix [n, n], evenly from all of them, float64."""
    q, r = torch.linalg.qr(torch.randn(size, size, generator=draw, dtype=torch.float64))
    return q * r.diagonal().sign()
