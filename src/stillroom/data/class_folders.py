"""Folders of images, a folder a class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from stillroom.core import Failure
from stillroom.data.class_rows import Side, set_aside
from stillroom.data.items import ItemData
from stillroom.data.pictures import picture

KINDS = {".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
"""Ends of names that are read as images; other files are passed over."""


@dataclass(frozen=True, kw_only=True)
class ClassFolders:
    """Images of ``data.train``, ``validation`` and ``test``, each a folder with a folder a class.

    ``x`` [channels, height, width] from 0 to 1. Classes are training's folders in the order of
    their names. ``data.hold_out`` images of training become validation, and as many test, the same
    for every seed. Images are read when they are needed, and in each pass again.

    Args:
        size: height and width that they are resized to.
        grey: one channel instead of three.
    """

    size: tuple[Side, Side] = (32, 32)
    grey: bool = False

    def read(self, files: Mapping[str, Path], hold_out: int | None) -> dict[str, ItemData]:
        """Examples by split.

        Raises:
            Failure: no such folder, a class that training lacks, a file that is no image.
        """
        found = {split: _images(folder) for split, folder in files.items()}
        names = sorted({file.parent.name for file in found["train"]})
        if hold_out is not None:
            found = set_aside(found, hold_out)
        return {
            split: ItemData(_Read(images, names, self), names=names)
            for split, images in found.items()
        }


class _Read(Sequence[tuple[Tensor, int]]):
    """Images with their classes, read one by one."""

    def __init__(self, files: Sequence[Path], names: Sequence[str], told: ClassFolders) -> None:
        self.files, self.told = files, told
        known = {name: i for i, name in enumerate(names)}
        for file in files:
            if file.parent.name not in known:
                raise Failure(f"{file}: the class {file.parent.name!r} does not occur in training")
        self.labels = [known[file.parent.name] for file in files]

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:  # type: ignore[override]
        file, told = self.files[index], self.told
        where, place = str(file), file.parent
        made = picture(file.name, told.size, grey=told.grey, where=where, beside=place)
        return made, self.labels[index]


def _images(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise Failure(f"{folder}: expected a folder with a folder of images for each class")
    files = [f for place in sorted(folder.iterdir()) if place.is_dir() for f in _in(place)]
    if not files:
        kinds = ", ".join(sorted(KINDS))
        raise Failure(f"{folder}: no folder in it holds an image ({kinds})")
    return files


def _in(place: Path) -> list[Path]:
    return sorted(file for file in place.iterdir() if file.suffix.lower() in KINDS)
