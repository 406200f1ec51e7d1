"""A digit beside a patch that gives it away in training, and means nothing in the test."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Ge, Le
from torch import Tensor

from stillroom.data.digits import CLASSES, RESERVED, apart, images
from stillroom.data.items import ItemData
from stillroom.data.labelled import parted

CELL, PER_ROW = 2, 4
"""Pixels of a patch's side, and how many patches stand side by side in the right half."""
Rows = Annotated[int, Ge(0)]


@dataclass(frozen=True, kw_only=True)
class Shortcut:
    """Right for the right reasons: ``x`` [1, 8, 16], a real digit left and a bright patch right.

    The patch stands at one of ten places, one for each class. It stands at the class's own with
    probability ``share`` in training and ``shifted`` in validation and test, else at another,
    each as likely; at 0.1 it tells nothing. Who learned to look at the digit does as well on both.
    Images of the test split are of the 500 that ``digits`` keeps for it.

    Args:
        train: examples to learn from.
        validation: to select by, shifted as the test is.
        test: of the 500.
        share: of training examples whose patch tells the class.
        shifted: the same of validation and test.
        blur: standard deviation of the noise that is added to the digit's pixels, in all splits.
        bright: of the patch, where a digit's pixels are from 0 to 1.
    """

    train: Annotated[int, Ge(1)] = 600
    validation: Rows = 300
    test: Annotated[int, Ge(0), Le(RESERVED)] = RESERVED
    share: Annotated[float, Ge(0), Le(1)] = 0.95
    shifted: Annotated[float, Ge(0), Le(1)] = 0.1
    blur: Annotated[float, Ge(0)] = 0.0
    bright: Annotated[float, Ge(0)] = 1.0

    def splits(self, seed: int) -> dict[str, ItemData]:
        """Examples by split, drawn by the seed."""
        x, y = images()
        mine, test = apart(len(y))
        sizes = {"train": self.train, "validation": self.validation}
        chosen = {k: mine[i] for k, i in parted(len(mine), sizes, seed).items()}
        chosen["test"] = test[: self.test]
        draw = torch.Generator().manual_seed(seed)
        made = {}
        for name, rows in chosen.items():
            if len(rows):
                told = self.share if name == "train" else self.shifted
                pair = self._beside(x[rows, 0], y[rows], told, draw), y[rows]
                made[name] = ItemData(pair, classes=CLASSES)
        return made

    def _beside(self, x: Tensor, y: Tensor, told: float, draw: torch.Generator) -> Tensor:
        """[n, 1, 8, 16] the digits, with a patch that tells a class beside each."""
        x = x + self.blur * torch.randn(x.shape, generator=draw)
        other = (y + torch.randint(1, CLASSES, y.shape, generator=draw)) % CLASSES
        says = torch.where(torch.rand(y.shape, generator=draw) < told, y, other)
        right = torch.zeros_like(x)
        for half, c in zip(right, says.tolist(), strict=True):
            top, left = CELL * (c // PER_ROW), CELL * (c % PER_ROW)
            half[top : top + CELL, left : left + CELL] = self.bright
        return torch.cat([x, right], 2).unsqueeze(1)
