"""Examples with classes that a recipe tells of, and the networks that fit them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stillroom.catalogue import nearest
from stillroom.config.recipe import Recipe
from stillroom.config.values import checked, within
from stillroom.core import Failure
from stillroom.data.digits import Digits
from stillroom.data.items import ItemData
from stillroom.models import networks
from stillroom.models.classes import Classifier, load
from stillroom.models.sources import resolved

ITEMS: dict[str, Any] = {
    "digits": Digits,
}
"""What ``data.items.name`` chooses among."""


@dataclass(frozen=True)
class Items:
    """Examples by split, and what they are."""

    splits: dict[str, ItemData]
    name: str

    @property
    def shape(self) -> networks.Shape:
        train = self.splits["train"]
        return networks.Shape(inputs=train.shape, classes=train.classes)

    @property
    def files(self) -> list[dict[str, Any]]:
        """What was read, with hashes."""
        return [
            {"file": f"{self.name}:{split}", "rows": len(data), "sha256": data.sha256}
            for split, data in self.splits.items()
        ]

    def ledger(self, licence: str | None) -> dict[str, Any]:
        return {
            "files": self.files,
            "form": "classes",
            "rows": {split: len(data) for split, data in self.splits.items()},
            "sha256": {split: data.sha256 for split, data in self.splits.items()},
            "licence": licence,
        }


def items_of(recipe: Recipe) -> Items:
    """The examples of ``data.items``.

    Raises:
        Failure: no such set, an option that it does not have, or too few examples.
    """
    told = dict(recipe.data.items or {})
    name = told.pop("name", None)
    if name not in ITEMS:
        raise Failure(
            f"data.items.name: there is no {name!r}{nearest(str(name), list(ITEMS))}; there is "
            f"{', '.join(ITEMS)}"
        )
    made = checked(ITEMS[name], told, "data.items").splits(recipe.run.seed)
    return Items(made, name)


def classifier(recipe: Recipe, items: Items) -> Classifier:
    """The recipe's student: with fresh weights, or from a folder."""
    told = recipe.student
    if told.net is not None:
        return fresh(told.net, items.shape, "student.net")
    with within("student.model"):
        return load(Path(resolved(str(told.model))))


def fresh(told: Mapping[str, Any], shape: networks.Shape, path: str) -> Classifier:
    """A network with fresh weights, as ``student.net`` tells it."""
    given = dict(told)
    kind = given.pop("kind", None)
    if kind not in networks.KINDS:
        known = ", ".join(networks.KINDS)
        raise Failure(f"{path}.kind: there is no {kind!r}; there is {known}")
    return Classifier(networks.build(checked(networks.KINDS[kind], given, path), shape))
