"""Examples with classes: parted into splits, their labels spoiled on purpose."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from stillroom.core import Failure


def parted(count: int, sizes: Mapping[str, int], seed: int) -> dict[str, Tensor]:
    """Indices of disjoint splits by name, drawn from ``count`` examples; those of size 0 are out.

    Raises:
        Failure: there are too few examples.
    """
    if (wanted := sum(sizes.values())) > count:
        told = ", ".join(f"{name} {size}" for name, size in sizes.items() if size)
        raise Failure(f"data.items: {wanted} examples are wanted ({told}), and there are {count}")
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    cuts = order[:wanted].split(list(sizes.values()))
    return {name: cut for name, cut in zip(sizes, cuts, strict=True) if len(cut)}


def mislabelled(labels: Tensor, share: float, classes: int, seed: int) -> Tensor:
    """Labels [n], of which so large a share, drawn at random, is a wrong class, each as likely."""
    draw = torch.Generator().manual_seed(seed)
    wrong = torch.randperm(len(labels), generator=draw)[: round(share * len(labels))]
    moved = torch.randint(1, classes, (len(wrong),), generator=draw)
    spoiled = labels.clone()
    spoiled[wrong] = (labels[wrong] + moved) % classes
    return spoiled


def long_tailed(labels: Tensor, ratio: float, classes: int) -> Tensor:
    """Indices of the examples that stay where class c has ``ratio ** (-c / (C - 1))`` of its own.

    The first class keeps all of them, the last one ``1 / ratio``, and each at least one.
    """
    kept = []
    for c in range(classes):
        own = (labels == c).nonzero().flatten()
        stay = max(1, round(len(own) * ratio ** (-c / max(1, classes - 1))))
        kept.append(own[:stay])
    return torch.cat(kept).sort().values


def swapped(labels: Tensor, share: float, classes: list[int], seed: int) -> Tensor:
    """Labels of which a share of those in ``classes`` is the next one of them, in a ring."""
    draw = torch.Generator().manual_seed(seed)
    moved = labels.clone()
    for c, other in zip(classes, classes[1:] + classes[:1], strict=True):
        own = (labels == c).nonzero().flatten()
        chosen = own[torch.randperm(len(own), generator=draw)[: round(share * len(own))]]
        moved[chosen] = other
    return moved
