"""A head that asks an image about each label: one embedding, and one score, a label."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class LabelDecoder(nn.Module):
    """One decoder layer of cross-attention: fixed queries, one a label, read the places of a map.

    [B, d, h, w] -> [B, C, width]. Places are ``relu(linear)`` of the map; each query adds what it
    attends to, then a perceptron of four times the width, each followed by a norm. Queries do not
    read each other. They are drawn at random once and do not learn, as in ML-Decoder (arXiv
    2111.12933), whose layer this is but for dropout and sizes.
    """

    queries: Tensor

    def __init__(self, channels: int, width: int, heads: int, classes: int) -> None:
        super().__init__()
        self.heads = heads
        self.register_buffer("queries", torch.randn(classes, width))
        self.place = nn.Conv2d(channels, width, 1)
        self.ask, self.read = nn.Linear(width, width), nn.Linear(width, 2 * width)
        self.write = nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.first, self.second, self.third = (nn.LayerNorm(width) for _ in range(3))

    def forward(self, maps: Tensor) -> Tensor:
        places = self.place(maps).relu().flatten(2).transpose(1, 2)
        asked = self.first(self.queries).expand(len(maps), -1, -1)
        q = self.ask(asked).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        k, v = self.read(places).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        seen = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        told = self.second(asked + self.write(seen))
        return self.third(told + self.down(self.up(told).relu()))


class PerLabel(nn.Linear):
    """A linear score for each label from its own embedding: ``z_c = <w_c, e_c> + b_c``.

    [B, C, width] -> [B, C]. As the network's last linear layer it makes ``last`` the embeddings.
    """

    def forward(self, input: Tensor) -> Tensor:
        scores = (input * self.weight).sum(-1)
        return scores if self.bias is None else scores + self.bias
