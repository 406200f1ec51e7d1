"""Early exits: auxiliary classifiers on a network's inner layers, for training alone."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from stillroom.losses.maps import pooled

HEADS = 4
"""Of an exit's transformer blocks, where the width is a multiple of it."""


class Exit(nn.Module):
    """An exit branch: from one layer's features to logits [B, C].

    Blocks, a mean over places, a linear layer. On a map [B, d, h, w] a block is a separable
    convolution that halves height and width, with group norm and ReLU; on tokens [B, n, d] a
    transformer block (pre-norm, GELU), one at least; on vectors [B, d] a linear layer with ReLU.
    All keep the width d. No block draws random numbers or mixes examples.

    Args:
        features: what the layer says of some examples; shape and precision are read.
        classes: C.
        blocks: how many, as many as stages are still to come after this layer.
    """

    def __init__(self, features: Tensor, classes: int, blocks: int) -> None:
        super().__init__()
        width = features.shape[2 if features.dim() == 3 else 1]
        if features.dim() == 3:
            inner: list[nn.Module] = [_attending(width) for _ in range(max(blocks, 1))]
            inner.append(nn.LayerNorm(width))
        else:
            make = _halving if features.dim() == 4 else _layer
            inner = [make(width) for _ in range(blocks)]
        self.blocks, self.head = nn.Sequential(*inner), nn.Linear(width, classes)
        for module in self.modules():
            _start(module)
        for module in self.blocks.modules() if features.dim() == 2 else ():
            if isinstance(module, nn.Linear):  # at .02 a stack of small layers says nothing
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        self.to(features.device, torch.promote_types(features.dtype, torch.float32))

    def forward(self, features: Tensor) -> Tensor:
        return self.head(pooled(self.blocks(features.to(self.head.weight.dtype))))


def _halving(width: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(width, width, 3, stride=2, padding=1, groups=width, bias=False),
        nn.Conv2d(width, width, 1, bias=False),
        nn.GroupNorm(math.gcd(width, HEADS), width),
        nn.ReLU(),
    )


def _attending(width: int) -> nn.Module:
    return nn.TransformerEncoderLayer(
        width,
        math.gcd(width, HEADS),
        4 * width,
        dropout=0.0,
        activation="gelu",
        batch_first=True,
        norm_first=True,
    )


def _layer(width: int) -> nn.Module:
    return nn.Sequential(nn.Linear(width, width), nn.ReLU())


def _start(module: nn.Module) -> None:
    """Kaiming's weights for convolutions, small normal ones for linear layers."""
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)
    if isinstance(module, nn.MultiheadAttention):
        nn.init.trunc_normal_(module.in_proj_weight, std=0.02)
