"""Examples with classes that a recipe tells of, and the networks that fit them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stillroom.catalogue import nearest
from stillroom.config.recipe import Recipe, find_data
from stillroom.config.values import checked, within
from stillroom.core import Failure
from stillroom.data.class_folders import ClassFolders
from stillroom.data.class_groups import ClassGroups
from stillroom.data.class_rows import ClassRows
from stillroom.data.digits import Digits
from stillroom.data.glyphs import Glyphs
from stillroom.data.items import ItemData
from stillroom.data.mnist1d import MNIST1D
from stillroom.data.shortcut import Shortcut
from stillroom.data.sklearn_tables import SklearnTables
from stillroom.models import networks, pretrained
from stillroom.models.classes import Classifier, load
from stillroom.models.sources import resolved

ITEMS: dict[str, Any] = {
    "class_groups": ClassGroups,
    "digits": Digits,
    "folder": ClassFolders,
    "glyphs": Glyphs,
    "mnist1d": MNIST1D,
    "rows": ClassRows,
    "shortcut": Shortcut,
    "sklearn": SklearnTables,
}
"""What ``data.items.name`` chooses among."""
OF_FILES = (ClassFolders, ClassRows)
"""Those that read ``data.train`` and so on; the others make or bring their examples."""


@dataclass(frozen=True)
class Items:
    """Examples by split, and what they are."""

    splits: dict[str, ItemData]
    name: str
    told: Mapping[str, str] = field(default_factory=dict)
    """The files that the recipe names, by split."""

    @property
    def shape(self) -> networks.Shape:
        train = self.splits["train"]
        return networks.Shape(inputs=train.shape, classes=train.classes)

    @property
    def files(self) -> list[dict[str, Any]]:
        """What was read, with hashes."""
        return [
            {
                "file": self.told.get(split, f"{self.name}:{split}"),
                "rows": len(data),
                "sha256": data.sha256,
            }
            for split, data in self.splits.items()
        ]

    def ledger(self, licence: str | None) -> dict[str, Any]:
        names = self.splits["train"].names
        return {
            "files": self.files,
            **({} if names is None else {"classes": list(names)}),
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
    chosen = checked(ITEMS[name], told, "data.items")
    if isinstance(chosen, OF_FILES):
        return _of_files(recipe, chosen, name)
    return Items(chosen.splits(recipe.run.seed), name)


def _of_files(recipe: Recipe, chosen: ClassFolders | ClassRows, name: str) -> Items:
    told = {split: getattr(recipe.data, split) for split in ("train", "validation", "test")}
    if told["train"] is None:
        raise Failure("data.train: name a file of rows, or a folder of images")
    named = {split: file for split, file in told.items() if file is not None}
    found = {k: find_data(file, recipe.folder, f"data.{k}") for k, file in named.items()}
    return Items(chosen.read(found, recipe.data.hold_out), name, named)


def classifier(recipe: Recipe, items: Items) -> Classifier:
    """The recipe's student: with fresh weights, from a folder, or one that others made.

    The ends of a network of timm, and the head of a model of transformers, are made to fit the
    classes where they do not.
    """
    told, shape = recipe.student, items.shape
    words = not items.splits["train"].batch([0]).x.is_floating_point()
    if told.net is not None:
        if words:
            raise Failure(
                "student.net: reads numbers, and these examples are token ids: take student.model, "
                "a folder with a model of transformers"
            )
        return fresh(told.net, shape, "student.net")
    with within("student.model"):
        source = resolved(str(told.model))
        if source.startswith(pretrained.TIMM):
            spec = pretrained.Timm(model=source.removeprefix(pretrained.TIMM), pretrained=True)
            return Classifier(networks.build(spec, shape))
        if pretrained.of_transformers(source):
            return Classifier(pretrained.network(source, shape.classes))
        return load(Path(source))


def fresh(told: Mapping[str, Any], shape: networks.Shape, path: str) -> Classifier:
    """A network with fresh weights, as ``student.net`` tells it."""
    given = dict(told)
    kind = given.pop("kind", None)
    if kind not in networks.KINDS:
        known = ", ".join(networks.KINDS)
        raise Failure(f"{path}.kind: there is no {kind!r}; there is {known}")
    return Classifier(networks.build(checked(networks.KINDS[kind], given, path), shape))
