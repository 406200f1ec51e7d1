"""Trained maps between the widths of a student and those of a teacher."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from stillroom.core import Failure


class Projectors(nn.Module):
    """From a teacher's widths to a student's, ``V' = V P``, one a layer: [M, D] to [M, d].

    Args:
        student: by layer, features [.., d] of the student.
        teacher: by layer, features [.., D] of the teacher that are brought to that width.
    """

    def __init__(self, student: Mapping[str, Tensor], teacher: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.layers = tuple(student)
        self.maps = nn.ModuleList(
            nn.Linear(
                teacher[layer].shape[-1],
                own.shape[-1],
                bias=False,
                dtype=torch.promote_types(own.dtype, torch.float32),
            )
            for layer, own in student.items()
        )

    def forward(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        pairs = zip(self.layers, self.maps, strict=True)
        return {layer: p(features[layer].to(next(p.parameters()))) for layer, p in pairs}


class Orthogonal(nn.Module):
    """``z P^T`` with orthonormal columns of P [e, d] (rows, where e < d): [B, d] to [B, e].

    It turns features and embeds them in more dimensions, and can do nothing else: lengths and
    angles stay (e >= d). ``P = B (I + A/2)(I - A/2)^(-1)``, its first d columns (Cayley map), B
    orthogonal and fixed, A skew-symmetric and trained: P is orthogonal whatever an optimiser does
    to A, weight decay included. At e = 512 a step takes a twelfth of what it takes with the matrix
    exponential.

    Args:
        width: d.
        wanted: e.
    """

    def __init__(self, width: int, wanted: int) -> None:
        super().__init__()
        linear = nn.Linear(width, wanted, bias=False, dtype=torch.float64)
        self.turn: Any = parametrizations.orthogonal(linear, orthogonal_map="cayley")

    def matrix(self) -> Tensor:
        """P, in float64: in bfloat16 it would be far from orthogonal."""
        made = self.turn.parametrizations.weight
        return made[0](made.original.double())

    def forward(self, z: Tensor) -> Tensor:
        kept = torch.promote_types(z.dtype, torch.float32)
        with torch.autocast(z.device.type, enabled=False):
            return nn.functional.linear(z.to(kept), self.matrix().to(kept))


class Regressor(nn.Module):
    """One map, linear or a convolution, from a student's layer to a teacher's, places kept.

    [B, d] to [B, e]; tokens [B, n, d] to [B, n, e]; maps [B, d, h, w] to [B, e, h', w'] by a kernel
    of ``h - h' + 1`` by ``w - w' + 1`` without padding, which fits the smaller map.

    Args:
        own: what the student's layer says of some examples; shapes are read alone.
        wanted: the same of the teacher's layer.

    Raises:
        Failure: one layer has places and the other none, or as many do not fit.
    """

    def __init__(self, own: Tensor, wanted: Tensor) -> None:
        super().__init__()
        dtype = torch.promote_types(own.dtype, torch.float32)
        sides = [a - b for a, b in zip(own.shape[2:], wanted.shape[2:], strict=False)]
        if own.dim() == wanted.dim() == 4 and min(sides) >= 0:
            kernel = (sides[0] + 1, sides[1] + 1)
            self.map: nn.Module = nn.Conv2d(own.shape[1], wanted.shape[1], kernel, dtype=dtype)
        elif own.dim() == wanted.dim() in (2, 3) and own.shape[1:-1] == wanted.shape[1:-1]:
            self.map = nn.Linear(own.shape[-1], wanted.shape[-1], dtype=dtype)
        else:
            raise Failure(
                f"no regressor leads from the student's layer {list(own.shape[1:])} to the "
                f"teacher's {list(wanted.shape[1:])}: both must be vectors, or as many tokens, or "
                "maps of which the student's is no smaller; name other layers"
            )

    def forward(self, own: Tensor) -> Tensor:
        return self.map(own)
