"""What small classifiers are made of: stem, parts, tail, patches, blocks, pooling, subclasses."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional


class Staged(nn.Module):
    """A network as stem, list of parts and tail, of which a method may run only some.

    ``logits = tail(parts[-1](... parts[0](stem(x))))``
    """

    def __init__(self, stem: nn.Module, parts: Sequence[nn.Module], tail: nn.Module) -> None:
        super().__init__()
        self.stem, self.parts, self.tail = stem, nn.ModuleList(parts), tail

    def forward(self, x: Tensor) -> Tensor:
        return self.tail(self.run(self.stem(x)))

    def run(self, state: Tensor, start: int = 0, stop: int | None = None) -> Tensor:
        """Parts ``start`` to ``stop - 1`` alone, on what the part before them said."""
        for part in list(self.parts)[start:stop]:
            state = part(state)
        return state


class Summed(nn.Module):
    """Classes in ``each`` subclasses: ``logit_c = log sum_s exp z_(c, s)``.

    [B, C * each] to [B, C], the subclasses of a class side by side; a class's probability is then
    the sum of its subclasses'.
    """

    def __init__(self, each: int) -> None:
        super().__init__()
        self.each = each

    def forward(self, scores: Tensor) -> Tensor:
        return scores.unflatten(-1, (-1, self.each)).logsumexp(-1)


class Pool(nn.Module):
    """Mean over places: of a map [B, d, h, w], or of tokens [B, n, d]."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3)) if x.dim() == 4 else x.mean(1)


class AsImage(nn.Module):
    """[B, channels, length] as [B, channels, 1, length]; an image stays."""

    def forward(self, x: Tensor) -> Tensor:
        return x.unsqueeze(2) if x.dim() == 3 else x


class Patches(nn.Module):
    """Linear embedding of patches, with a learned position each."""

    def __init__(self, channels: int, width: int, step: Sequence[int], count: int) -> None:
        super().__init__()
        size = (step[0], step[1])
        self.embed = nn.Conv2d(channels, width, size, stride=size)
        self.position = nn.Parameter(0.02 * torch.randn(1, count, width))

    def forward(self, x: Tensor) -> Tensor:
        return self.embed(x).flatten(2).transpose(1, 2) + self.position


class Block(nn.Module):
    """Attention and a perceptron of four times the width, each after a norm and added."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.read, self.write = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        parts = self.read(self.first(x)).unflatten(-1, (3, self.heads, -1))
        q, k, v = parts.permute(2, 0, 3, 1, 4)
        seen = functional.scaled_dot_product_attention(q, k, v)
        x = x + self.write(seen.transpose(1, 2).flatten(2))
        return x + self.down(functional.gelu(self.up(self.second(x))))


def ending(width: int, classes: int, subclasses: int, *, bias: bool = True) -> nn.Sequential:
    """The classifier, and the sum over subclasses where there are some."""
    linear = nn.Linear(width, classes * subclasses, bias=bias)
    return nn.Sequential(linear, *([Summed(subclasses)] if subclasses > 1 else []))
