"""Made-up classes in groups: the group is easy to tell, the class within it is not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Ge, Gt
from torch import Tensor

from stillroom.data.items import ItemData

Rows = Annotated[int, Ge(0)]


@dataclass(frozen=True, kw_only=True)
class ClassGroups:
    """Hierarchical Gaussians: class ``c`` is class ``c mod each`` of group ``c // each``.

    ``x = apart g + within c + noise``, x [width], each of the three of independent normal numbers:
    g of a group, c of a class, the last of an example, of deviation 1. Groups and classes are the
    same for every seed, examples are drawn by it. What a teacher can tell beyond the label is which
    classes are near each other.

    Args:
        groups: how many.
        each: classes of a group.
        width: numbers of an example.
        apart: deviation of the groups' centres.
        within: deviation of the classes' centres from their group's.
        train: examples of each class to learn from.
        validation: of each class, to select by.
        test: of each class.
        world: another number has other centres.
    """

    groups: Annotated[int, Ge(1)] = 10
    each: Annotated[int, Ge(1)] = 10
    width: Annotated[int, Ge(1)] = 16
    apart: Annotated[float, Gt(0)] = 2.0
    within: Annotated[float, Gt(0)] = 1.0
    train: Annotated[int, Ge(1)] = 20
    validation: Rows = 10
    test: Rows = 20
    world: Annotated[int, Ge(0)] = 0

    def splits(self, seed: int) -> dict[str, ItemData]:
        """Examples by split, drawn by the seed."""
        centres, draw = self.centres(), torch.Generator().manual_seed(seed)
        made = {}
        for split in ("train", "validation", "test"):
            if count := getattr(self, split):
                labels = torch.arange(self.classes).repeat_interleave(count)
                noise = torch.randn(len(labels), self.width, generator=draw)
                made[split] = ItemData((centres[labels] + noise, labels), classes=self.classes)
        return made

    @property
    def classes(self) -> int:
        return self.groups * self.each

    def centres(self) -> Tensor:
        """[C, width] means of the classes."""
        draw = torch.Generator().manual_seed(self.world)
        groups = self.apart * torch.randn(self.groups, 1, self.width, generator=draw)
        own = self.within * torch.randn(self.groups, self.each, self.width, generator=draw)
        return (groups + own).flatten(0, 1)
