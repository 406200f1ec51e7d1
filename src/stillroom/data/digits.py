"""Real handwritten digits, 8 by 8 pixels, that come with scikit-learn."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import torch
from annotated_types import Ge, Le
from torch import Tensor

from stillroom.data.items import ItemData
from stillroom.data.labelled import long_tailed, mislabelled, parted, swapped
from stillroom.extras import extra
from stillroom.failures import Failure

RESERVED = 500
"""Examples that are nobody's but the test split's, whatever the seed."""
CLASSES = 10
Rows = Annotated[int, Ge(0)]


@dataclass(frozen=True, kw_only=True)
class Swap:
    """Labels that are moved on purpose: a teacher trained on them errs in these classes.

    Args:
        share: of the examples of these classes.
        classes: each becomes the next one, the last the first.
    """

    share: Annotated[float, Ge(0), Le(1)]
    classes: list[Annotated[int, Ge(0), Le(CLASSES - 1)]]


@dataclass(frozen=True, kw_only=True)
class Digits:
    """1,797 images of ten digits: ``x`` [1, 8, 8] from 0 to 1 (Alpaydin and Kaynak, UCI, 1998).

    500 of them, the same for every seed, are kept for the test split, so that no network that was
    trained on another seed's split has seen them.

    Args:
        train: examples to learn from.
        validation: to select by.
        test: of the 500.
        unlabelled: of a further stream of that name, whose labels no method should read.
        held: of a further stream of that name, with labels.
        noise: share of the training labels that are replaced by a wrong one.
        parity: whether the classes are even and odd, each of five digits.
        tail: how many times as frequent the first class is as the last, in training.
        swapped: moves training labels within some classes.
        blur: standard deviation of the noise that is added to the pixels of ``train``.
    """

    train: Annotated[int, Ge(1)] = 300
    validation: Rows = 300
    test: Annotated[int, Ge(0), Le(RESERVED)] = RESERVED
    unlabelled: Rows = 0
    held: Rows = 0
    noise: Annotated[float, Ge(0), Le(1)] = 0.0
    parity: bool = False
    tail: Annotated[float, Ge(1)] = 1.0
    swapped: Swap | None = None
    blur: Annotated[float, Ge(0)] = 0.0

    def splits(self, seed: int) -> dict[str, ItemData]:
        """Examples by split, drawn by the seed."""
        if self.swapped is not None and self.parity:
            raise Failure("data.items: 'swapped' names digits, and with 'parity' there are none")
        x, y = images()
        mine, test = apart(len(y))
        sizes = {
            name: getattr(self, name) for name in ("train", "validation", "unlabelled", "held")
        }
        chosen = {k: mine[i] for k, i in parted(len(mine), sizes, seed).items()}
        chosen["test"] = test[: self.test]
        made = {k: (x[i], y[i] % 2 if self.parity else y[i]) for k, i in chosen.items() if len(i)}
        made["train"] = self._spoiled(*made["train"], seed)
        return {name: ItemData(pair, classes=self.classes) for name, pair in made.items()}

    @property
    def classes(self) -> int:
        return 2 if self.parity else CLASSES

    def _spoiled(self, x: Tensor, y: Tensor, seed: int) -> tuple[Tensor, Tensor]:
        if self.tail > 1:
            stay = long_tailed(y, self.tail, self.classes)
            x, y = x[stay], y[stay]
        if self.swapped is not None:
            y = swapped(y, self.swapped.share, self.swapped.classes, seed)
        if self.blur:
            draw = torch.Generator().manual_seed(seed)
            x = x + self.blur * torch.randn(x.shape, generator=draw)
        return x, mislabelled(y, self.noise, self.classes, seed)


def images() -> tuple[Tensor, Tensor]:
    """All of them, [1797, 1, 8, 8] from 0 to 1, and which digit each is."""
    loaded: Any = extra("sklearn.datasets", "classes", why="these digits").load_digits()
    x = torch.tensor(loaded.images, dtype=torch.float32).unsqueeze(1) / 16
    return x, torch.tensor(loaded.target, dtype=torch.long)


def apart(count: int) -> tuple[Tensor, Tensor]:
    """Indices of what every split but the test's is drawn from, and of what that one has."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0))
    return order[RESERVED:], order[:RESERVED]
