"""Small real tables of measurements with classes, that come with scikit-learn."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from annotated_types import Ge
from torch import Tensor

from stillroom.core import Failure
from stillroom.data.items import ItemData
from stillroom.data.labelled import parted
from stillroom.extras import extra

Rows = Annotated[int, Ge(0)]


@dataclass(frozen=True, kw_only=True)
class SklearnTables:
    """Numbers of flowers, wines or cells: ``x`` [d], each column standardised on ``train``.

    A third of the rows, the same for every seed, is kept for the test split, so that no network
    that was trained on another seed's split has seen it. Nothing is downloaded.

    Args:
        set: ``iris`` (150 rows, d 4, 3 classes), ``wine`` (178, 13, 3) or ``breast_cancer`` (569,
            30, 2).
        train: rows to learn from.
        validation: to select by.
        test: of the third at most so many; None is all of it.
        unlabelled: of a further stream of that name, whose labels no method should read.
    """

    set: Literal["iris", "wine", "breast_cancer"] = "wine"
    train: Annotated[int, Ge(2)] = 60
    validation: Rows = 30
    test: Rows | None = None
    unlabelled: Rows = 0

    def splits(self, seed: int) -> dict[str, ItemData]:
        """Rows by split, drawn by the seed."""
        x, y, names = self._loaded()
        order = torch.randperm(len(y), generator=torch.Generator().manual_seed(0))
        apart, mine = order[: len(y) // 3], order[len(y) // 3 :]
        if self.test is not None and self.test > len(apart):
            raise Failure(
                f"data.items.test: {self.test} rows are wanted, and {self.set} keeps {len(apart)}"
            )
        sizes = {name: getattr(self, name) for name in ("train", "validation", "unlabelled")}
        chosen = {k: mine[i] for k, i in parted(len(mine), sizes, seed).items()}
        chosen["test"] = apart[: self.test]
        own = x[chosen["train"]]
        x = (x - own.mean(0)) / own.std(0).clamp_min(torch.finfo(x.dtype).eps)
        made = {k: (x[i].float(), y[i]) for k, i in chosen.items() if len(i)}
        return {name: ItemData(pair, classes=len(names)) for name, pair in made.items()}

    def _loaded(self) -> tuple[Tensor, Tensor, list[str]]:
        sets: Any = extra("sklearn.datasets", "classes", why=f"the set {self.set!r}")
        told = getattr(sets, f"load_{self.set}")()
        x, y = torch.tensor(told.data, dtype=torch.float64), torch.tensor(told.target)
        return x, y.long(), [str(name) for name in told.target_names]
