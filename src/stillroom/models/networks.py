"""Small classifiers by name: perceptron, convolutions, vision transformer, label queries.

Each is a stem, a list of parts and a tail (``Staged``), so layers have the same names in all:
``stem``, ``parts.0``, ``parts.1``, ..., ``tail``; ``last`` is what the classifier reads, ``map``
the last feature map or tokens.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar

from annotated_types import Ge, Lt
from torch import nn

from stillroom.core import Failure
from stillroom.models.pieces import AsImage, Block, Patches, Pool, Staged, ending
from stillroom.models.pretrained import Timm
from stillroom.models.queries import LabelDecoder, PerLabel

TOLD = "network.json"
"""The file that says how a saved network is made again."""
Positive = Annotated[int, Ge(1)]


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What a network's ends fit: the shape of one example, and how many classes there are."""

    inputs: tuple[int, ...]
    classes: int


@dataclass(frozen=True, kw_only=True)
class MLP:
    """Linear layers with ReLU between them; an input of any shape is read flat.

    Args:
        widths: of the hidden layers, each a part.
        dropout: after each of them.
        subclasses: outputs a class; their probabilities are summed.
    """

    kind: ClassVar[str] = "mlp"
    widths: list[Positive] = field(default_factory=lambda: [64])
    dropout: Annotated[float, Ge(0), Lt(1)] = 0.0
    subclasses: Positive = 1

    def make(self, shape: Shape) -> Staged:
        sizes = [math.prod(shape.inputs), *self.widths]
        parts = [
            nn.Sequential(nn.Linear(a, b), nn.ReLU(), *self._dropped())
            for a, b in itertools.pairwise(sizes)
        ]
        return Staged(nn.Flatten(), parts, ending(sizes[-1], shape.classes, self.subclasses))

    def _dropped(self) -> list[nn.Module]:
        return [nn.Dropout(self.dropout)] if self.dropout else []


@dataclass(frozen=True, kw_only=True)
class CNN:
    """Blocks of 3x3 convolution, group norm, ReLU, halved in size between blocks; mean; linear.

    An input [B, channels, length], as a signal has it, is an image of height 1.

    Args:
        channels: of the blocks, each a part.
        norm: whether blocks have a group norm.
        pool: blocks that halve the size after them, the first ones.
        head_bias: whether the classifier has a bias.
        subclasses: outputs a class; their probabilities are summed.
    """

    kind: ClassVar[str] = "cnn"
    channels: list[Positive] = field(default_factory=lambda: [16, 32])
    norm: bool = True
    pool: Annotated[int, Ge(0)] = 1
    head_bias: bool = True
    subclasses: Positive = 1

    def make(self, shape: Shape) -> Staged:
        first, *size = image(shape.inputs, self.kind)
        sizes, parts = [first, *self.channels], []
        for i, (a, b) in enumerate(itertools.pairwise(sizes)):
            tall = size[0] > 1
            block: list[nn.Module] = [
                nn.Conv2d(a, b, (3 if tall else 1, 3), padding=(int(tall), 1), bias=not self.norm)
            ]
            block += [nn.GroupNorm(math.gcd(b, 4), b)] if self.norm else []
            block += [nn.ReLU()]
            if i < self.pool and min(size[-1:]) > 1:
                block.append(nn.MaxPool2d((2 if tall else 1, 2)))
                size = [max(1, n // 2) for n in size]
            parts.append(nn.Sequential(*block))
        tail = ending(sizes[-1], shape.classes, self.subclasses, bias=self.head_bias)
        return Staged(AsImage(), parts, nn.Sequential(Pool(), *tail))


@dataclass(frozen=True, kw_only=True)
class ViT:
    """A small vision transformer (arXiv 2010.11929) on patches, its mean token classified.

    Pre-norm blocks, GELU, learned positions, no class token: layers say tokens [B, n, width].

    Args:
        width: of a token.
        depth: blocks, each a part.
        heads: of attention.
        patch: side of a patch, by which height and width are divided.
        subclasses: outputs a class; their probabilities are summed.
    """

    kind: ClassVar[str] = "vit"
    width: Positive = 32
    depth: Positive = 2
    heads: Positive = 4
    patch: Positive = 2
    subclasses: Positive = 1

    def make(self, shape: Shape) -> Staged:
        channels, *size = image(shape.inputs, self.kind)
        step = [min(self.patch, n) for n in size]
        if self.width % self.heads or any(n % s for n, s in zip(size, step, strict=True)):
            raise Failure(
                f"vit: width {self.width} must be a multiple of heads {self.heads}, and the "
                f"image's sides {size} of patch {self.patch}"
            )
        count = math.prod(n // s for n, s in zip(size, step, strict=True))
        stem = nn.Sequential(AsImage(), Patches(channels, self.width, step, count))
        parts = [Block(self.width, self.heads) for _ in range(self.depth)]
        tail = ending(self.width, shape.classes, self.subclasses)
        return Staged(stem, parts, nn.Sequential(nn.LayerNorm(self.width), Pool(), *tail))


@dataclass(frozen=True, kw_only=True)
class Queries:
    """The blocks of ``cnn``, then a query a label that attends to their map: for many labels.

    ``last`` is one embedding a label, [B, C, width].

    Args:
        channels: of the blocks, each a part.
        norm: whether blocks have a group norm.
        pool: blocks that halve the size after them, the first ones.
        width: of a label's embedding.
        heads: of attention.
    """

    kind: ClassVar[str] = "queries"
    channels: list[Positive] = field(default_factory=lambda: [16, 32])
    norm: bool = True
    pool: Annotated[int, Ge(0)] = 1
    width: Positive = 32
    heads: Positive = 4

    def make(self, shape: Shape) -> Staged:
        if self.width % self.heads:
            raise Failure(f"queries: width {self.width} must be a multiple of heads {self.heads}")
        trunk = CNN(channels=self.channels, norm=self.norm, pool=self.pool).make(shape)
        decoder = LabelDecoder(self.channels[-1], self.width, self.heads, shape.classes)
        tail = nn.Sequential(decoder, PerLabel(self.width, shape.classes))
        return Staged(trunk.stem, [*trunk.parts], tail)


KINDS: dict[str, Any] = {one.kind: one for one in (MLP, CNN, ViT, Queries, Timm)}


def image(inputs: Sequence[int], kind: str) -> list[int]:
    """Channels, height and width of one example; raises Failure where it is no image or signal."""
    if len(inputs) == 2:
        return [inputs[0], 1, inputs[1]]
    if len(inputs) == 3:
        return list(inputs)
    raise Failure(
        f"{kind}: reads images [channels, height, width] or signals [channels, length], and these "
        f"examples are {list(inputs)}; take kind: mlp"
    )


def build(spec: Any, shape: Shape) -> nn.Module:
    """A network with fresh weights from what it is told (one of ``KINDS``) and what it must fit."""
    network: nn.Module = spec.make(shape)
    network.told = {"kind": spec.kind, **asdict(spec), **asdict(shape)}  # type: ignore[assignment]
    return network


def rebuilt(told: Mapping[str, Any]) -> nn.Module:
    """The network, with fresh weights, whose ``told`` this is."""
    given = {k: v for k, v in told.items() if k != "pretrained"}  # its weights are loaded next
    shape = Shape(inputs=tuple(given.pop("inputs")), classes=given.pop("classes"))
    return build(KINDS[given.pop("kind")](**given), shape)


def describe(network: nn.Module, folder: Path) -> None:
    """Writes how the network is made, where that is known, beside its weights."""
    if (told := vars(network).get("told")) is not None:
        (folder / TOLD).write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")
