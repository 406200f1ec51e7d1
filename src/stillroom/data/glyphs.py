"""Images with several labels at once: digits strewn over a canvas."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Ge, Le
from torch import Tensor

from stillroom.data.digits import apart, images
from stillroom.data.items import ItemData

SIDE, GLYPH = 16, 8
"""Pixels of a canvas and of a digit."""
LABELS = 8
Rows = Annotated[int, Ge(0)]


@dataclass(frozen=True, kw_only=True)
class Glyphs:
    """Which of the digits 0 to 7 are on a canvas: ``x`` [1, 16, 16], ``labels`` [8] of 0 and 1.

    One to ``most`` different digits, at places drawn at random; where they overlap the brighter
    pixel shows. The digits are the real ones of ``digits``; those of test canvases are of the 500
    images that are kept for tests there.

    Args:
        train: canvases to learn from.
        validation: to select by.
        test: to measure on.
        most: digits on a canvas, each number as likely.
        tail: how many times as often digit 0 is drawn as digit 7, the others between.
        blur: standard deviation of the noise that is added to the pixels of all splits.
    """

    train: Annotated[int, Ge(1)] = 600
    validation: Rows = 300
    test: Rows = 500
    most: Annotated[int, Ge(1), Le(LABELS)] = 4
    tail: Annotated[float, Ge(1)] = 1.0
    blur: Annotated[float, Ge(0)] = 0.0

    def splits(self, seed: int) -> dict[str, ItemData]:
        """Canvases by split, drawn by the seed."""
        x, y = images()
        mine, test = apart(len(y))
        sizes = {"train": self.train, "validation": self.validation, "test": self.test}
        made = {}
        for i, (name, size) in enumerate(sizes.items()):
            if size:
                draw = torch.Generator().manual_seed(3 * seed + i)
                own = test if name == "test" else mine
                made[name] = ItemData(self._drawn(x[own], y[own], size, draw), classes=LABELS)
        return made

    def _drawn(
        self, x: Tensor, y: Tensor, size: int, draw: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        often = self.tail ** -torch.linspace(0, 1, LABELS)
        of = [x[y == label, 0] for label in range(LABELS)]
        canvases, labels = torch.zeros(size, SIDE, SIDE), torch.zeros(size, LABELS)
        for canvas, there in zip(canvases, labels, strict=True):
            count = int(torch.randint(1, self.most + 1, (), generator=draw))
            for label in torch.multinomial(often, count, generator=draw).tolist():
                image = of[label][int(torch.randint(len(of[label]), (), generator=draw))]
                top, left = torch.randint(SIDE - GLYPH + 1, (2,), generator=draw).tolist()
                place = canvas[top : top + GLYPH, left : left + GLYPH]
                torch.maximum(place, image, out=place)
                there[label] = 1
        canvases += self.blur * torch.randn(canvases.shape, generator=draw)
        return canvases.unsqueeze(1), labels.long()
