"""MNIST-1D: ten made-up shapes of signals, hard for a perceptron and easy for convolutions."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Any

import numpy as np
import torch
from annotated_types import Ge, Le
from torch import Tensor

from stillroom.data.items import ItemData
from stillroom.data.labelled import mislabelled, parted
from stillroom.extras import extra

CLASSES = 10
TEST = 1000
"""Signals of the package's own test part, the same for every seed."""
Rows = Annotated[int, Ge(0)]


@dataclass(frozen=True, kw_only=True)
class MNIST1D:
    """5,000 signals of ten classes: ``x`` [1, 40], mean 0 and deviation 1 (arXiv 2011.14439).

    Templates that are padded, stretched, moved, sheared and given noise, as the package ``mnist1d``
    makes them with its own settings and seed; nothing is downloaded. They are made once a process,
    in seconds. Its test part is the test split, whatever the seed; all others are drawn from the
    4,000 of its training part.

    Args:
        train: signals to learn from.
        validation: to select by.
        test: of the 1,000.
        unlabelled: of a further stream of that name, whose labels no method should read.
        noise: share of the training labels that are replaced by a wrong one.
    """

    train: Annotated[int, Ge(1)] = 1000
    validation: Rows = 500
    test: Annotated[int, Ge(0), Le(TEST)] = TEST
    unlabelled: Rows = 0
    noise: Annotated[float, Ge(0), Le(1)] = 0.0

    def splits(self, seed: int) -> dict[str, ItemData]:
        """Signals by split, drawn by the seed."""
        (x, y), (test, answers) = _signals()
        sizes = {name: getattr(self, name) for name in ("train", "validation", "unlabelled")}
        made = {k: (x[i], y[i]) for k, i in parted(len(y), sizes, seed).items()}
        inputs, labels = made["train"]
        made["train"] = inputs, mislabelled(labels, self.noise, CLASSES, seed)
        if self.test:
            made["test"] = test[: self.test], answers[: self.test]
        return {name: ItemData(pair, classes=CLASSES) for name, pair in made.items()}


@lru_cache(maxsize=1)
def _signals() -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """The package's training part and its test part."""
    package: Any = extra("mnist1d.data", "classes", why="its signals")
    with _own_draws():
        told = package.make_dataset()

    def part(suffix: str) -> tuple[Tensor, Tensor]:
        x = torch.tensor(told[f"x{suffix}"], dtype=torch.float32)
        return x.unsqueeze(1), torch.tensor(told[f"y{suffix}"], dtype=torch.long)

    return part(""), part("_test")


@contextmanager
def _own_draws() -> Iterator[None]:
    """The package sets the seeds of Python and numpy: they are put back."""
    python, numpy = random.getstate(), np.random.get_state()
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
