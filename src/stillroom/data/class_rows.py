"""Rows of files with a class each: columns of numbers, images, or texts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from annotated_types import Ge
from torch import Tensor

from stillroom.core import Failure
from stillroom.data.items import ItemData
from stillroom.data.labelled import parted
from stillroom.data.pictures import picture
from stillroom.data.rows import Row, read_rows

Side = Annotated[int, Ge(1)]
Told = Sequence[tuple[str, Row]]


@dataclass(frozen=True, kw_only=True)
class ClassRows:
    """Rows of ``data.train``, ``validation`` and ``test``: JSON Lines, Parquet, data sets.

    Classes are the values of ``target`` in training, in their order. ``data.hold_out`` rows of
    training become validation, and as many test, the same for every seed.

    Args:
        target: the column that holds the class: a text or a whole number.
        inputs: columns of numbers, or of lists of as many numbers in every row: ``x`` [d], side by
            side.
        image: instead, the column with an image: ``x`` [channels, height, width] from 0 to 1. A
            file name is beside the rows' file.
        text: instead, the column with a text: ``x`` [L] token ids, filled up to the longest of a
            split, for a sequence classifier as student.
        tokenizer: that texts are read by, the student's: hub name or folder.
        tokens: longer texts are cut to so many.
        size: height and width that images are resized to; None asks that all have one size.
        grey: one channel instead of three.
        standardise: each input column to mean 0 and deviation 1 in training; images stay.
    """

    target: str = "label"
    inputs: list[str] | None = None
    image: str | None = None
    text: str | None = None
    tokenizer: str | None = None
    tokens: Annotated[int, Ge(2)] = 128
    size: tuple[Side, Side] | None = None
    grey: bool = False
    standardise: bool = True

    def __post_init__(self) -> None:
        ways = [way for way in (self.inputs, self.image, self.text) if way is not None]
        if len(ways) != 1 or self.inputs == []:
            raise Failure("inputs: give columns of numbers, or 'image', or 'text': one of them")
        if (self.text is None) != (self.tokenizer is None):
            raise Failure("tokenizer: goes with 'text', and names the one that the student has")

    def read(self, files: Mapping[str, Path], hold_out: int | None) -> dict[str, ItemData]:
        """Examples by split, of the file that each is read from.

        Raises:
            Failure: a file or column is missing, a value is no number, image or known class.
        """
        rows = {split: list(read_rows(file, split)) for split, file in files.items()}
        if hold_out is not None:
            rows = set_aside(rows, hold_out)
        beside = {split: files.get(split, files["train"]).parent for split in rows}
        names = self._names(rows["train"])
        if self.text:
            x = self._ids(rows)
        else:
            x = {split: self._inputs(told, beside[split]) for split, told in rows.items()}
        if self.inputs and self.standardise:
            mean, width = x["train"].mean(0), x["train"].std(0, correction=0)
            width = torch.where(width > 0, width, 1)  # a column that never changes tells nothing
            x = {split: (value - mean) / width for split, value in x.items()}
        return {
            split: ItemData(
                (x[split] if self.text else x[split].float(), self._labels(told, names)),
                names=names,
            )
            for split, told in rows.items()
        }

    def _names(self, rows: Told) -> list[Any]:
        found = {_of(row, self.target, where) for where, row in rows}
        if all(isinstance(value, int) for value in found):
            return sorted(found)
        if all(isinstance(value, str) for value in found):
            return sorted(found)
        kinds = ", ".join(sorted({type(value).__name__ for value in found}))
        raise Failure(f"data.items.target: {self.target!r} is to hold texts or ints, got {kinds}")

    def _labels(self, rows: Told, names: Sequence[Any]) -> Tensor:
        known = {name: i for i, name in enumerate(names)}
        labels = []
        for where, row in rows:
            value = _of(row, self.target, where)
            if value not in known:
                raise Failure(f"{where}: the class {value!r} does not occur in training")
            labels.append(known[value])
        return torch.tensor(labels, dtype=torch.long)

    def _inputs(self, rows: Told, beside: Path) -> Tensor:
        made = [
            (where, self._numbers(row, where) if self.inputs else self._image(row, where, beside))
            for where, row in rows
        ]
        first = made[0][1]
        for where, one in made:
            if one.shape != first.shape:
                raise Failure(
                    f"{where}: its input is {list(one.shape)} and that of {made[0][0]} "
                    f"{list(first.shape)}; images are resized by data.items.size"
                )
        return torch.stack([one for _, one in made])

    def _ids(self, rows: Mapping[str, Told]) -> dict[str, Tensor]:
        """Token ids [n, L] by split, with what the tokenizer adds to a text of its own."""
        from transformers import AutoTokenizer

        try:
            tokenizer = AutoTokenizer.from_pretrained(self.tokenizer)
        except (OSError, ValueError) as error:
            raise Failure(f"data.items.tokenizer: it cannot be loaded: {error}") from error
        if tokenizer.pad_token_id is None:
            raise Failure("data.items.tokenizer: it has no padding token, by which rows are filled")
        options = {"truncation": True, "max_length": self.tokens, "padding": True}
        made = {}
        for split, told in rows.items():
            texts = [str(_of(row, str(self.text), where)) for where, row in told]
            made[split] = tokenizer(texts, padding_side="right", return_tensors="pt", **options)
        return {split: one.input_ids for split, one in made.items()}

    def _numbers(self, row: Row, where: str) -> Tensor:
        parts = []
        for column in self.inputs or ():
            value = _of(row, column, where)
            try:
                parts.append(np.ravel(np.asarray(value, dtype=np.float64)))
            except (TypeError, ValueError):
                raise Failure(f"{where}: {column!r} is to hold numbers, got {value!r}") from None
            if not np.isfinite(parts[-1]).all():
                raise Failure(f"{where}: {column!r} is {value!r}, which is no number")
        return torch.from_numpy(np.concatenate(parts))

    def _image(self, row: Row, where: str, beside: Path) -> Tensor:
        source = _of(row, str(self.image), where)
        return picture(source, self.size, grey=self.grey, where=where, beside=beside)


def set_aside(rows: Mapping[str, Sequence[Any]], hold_out: int) -> dict[str, list[Any]]:
    """Examples by split, ``hold_out`` of training as validation and as many as test.

    Raises:
        Failure: there are too few, or files for these splits as well.
    """
    if len(rows) > 1:
        raise Failure("data.hold_out: give either it or data.validation and data.test")
    train = rows["train"]
    if 2 * hold_out >= len(train):
        raise Failure(f"data.hold_out: {hold_out} is too many of {len(train)} rows")
    sizes = {"validation": hold_out, "test": hold_out, "train": len(train) - 2 * hold_out}
    places = parted(len(train), sizes, seed=0)
    return {split: [train[i] for i in places[split].tolist()] for split in sorted(sizes)}


def _of(row: Row, column: str, where: str) -> Any:
    if column not in row:
        raise Failure(f"{where}: there is no column {column!r}, only {', '.join(sorted(row))}")
    return row[column]
