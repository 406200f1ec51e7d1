"""Trained linear maps from a teacher's widths to those of a student, one a layer."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn


class Projectors(nn.Module):
    """``V' = V P`` of each layer's features: [M, D] to [M, d].

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
