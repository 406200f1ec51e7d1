"""Rows of files, of folders, and of data sets of the hub: one function reads them all."""

from __future__ import annotations

import glob
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stillroom.data import tables
from stillroom.failures import Failure

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Rows:
    """Rows that were read, and what tells them from others.

    Iterating gives each row with its place, for messages: ``("a.jsonl, line 3", {...})``. Lines
    are counted from 1, rows of what has no lines from 0. Columns of tables are decoded when a row
    is first asked for them.

    Args:
        name: where they came from.
        rows: the rows alone.
        sha256: of the file; where there are several, of their names and hashes; a data set of the
            hub has the fingerprint that ``datasets`` gives it, as ``fingerprint:...``.
        split: which was taken, where there are several.
        unit: ``line`` or ``row``.
    """

    name: str
    rows: Sequence[Row]
    sha256: str
    split: str | None = None
    unit: str = "row"

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[tuple[str, Row]]:
        for i, row in enumerate(self.rows, start=self.unit == "line"):
            yield f"{self.name}, {self.unit} {i}", row


def read_rows(name: str | Path, split: str | None = None) -> Rows:
    """Rows of JSON Lines, JSON, Parquet, a saved data set of ``datasets``, or one of the hub.

    - ``FILE.json``: a list of objects (or lines, as the next);
    - ``FILE.parquet``, a pattern like ``data/train-*.parquet``, or a folder of such files;
    - a folder that ``datasets.save_to_disk`` wrote, ``FOLDER:SPLIT`` where it holds splits;
    - ``hf:ORG/NAME[/CONFIG][@REVISION][:SPLIT]``, through ``datasets.load_dataset``;
    - ``FILE.txt``: one row, with the whole file as its ``text``;
    - any other file: JSON Lines.

    Args:
        name: one of these.
        split: taken where the name says none; without it, the only one there is.

    Raises:
        Failure: there is no such file or split, it cannot be read, or it has no rows.
    """
    told = str(name)
    if told.startswith(tables.HUB):
        found, split, digest = tables.hub(told, split)
        return _some(Rows(told, found, digest, split))
    place, named = _placed(told)
    if place.is_dir() and tables.is_saved(place):
        found, split, files = tables.saved(place, named, split)
        return _some(Rows(told, found, hashed(files), split))
    if named is not None:
        raise Failure(f"{told}: {place} holds no splits that datasets.save_to_disk wrote")
    if not place.is_file() or place.suffix == ".parquet":
        files = _parts(place)
        return _some(Rows(told, tables.parquet(files), hashed(files)))
    if place.suffix == ".txt":
        return Rows(told, [{"text": _text(place)}], hashed([place]))
    whole = place.suffix == ".json" and _text(place).lstrip().startswith("[")
    found = read_json(place) if whole else read_jsonl(place)
    return _some(Rows(told, found, hashed([place]), unit="row" if whole else "line"))


def _some(read: Rows) -> Rows:
    if not read.rows:
        raise Failure(f"{read.name}: there are no rows")
    return read


def exists(name: str | Path) -> bool:
    """Whether ``read_rows`` finds something there; the hub is not asked."""
    told = str(name)
    if told.startswith(tables.HUB):
        return True
    place, _ = _placed(told)
    return place.exists() or bool(glob.glob(str(place)))


def _placed(told: str) -> tuple[Path, str | None]:
    """The file, folder or pattern, and the split that is named behind a folder."""
    folder, colon, split = told.rpartition(":")
    if colon and not Path(told).exists() and Path(folder).is_dir():
        return Path(folder), split
    return Path(told), None


def _parts(place: Path) -> list[Path]:
    """Parquet files in order of their names: the file itself, of a folder, or of a pattern."""
    if place.is_dir():
        found = sorted(place.rglob("*.parquet"))
    else:
        found = [place] if place.is_file() else map(Path, sorted(glob.glob(str(place))))
    files = [file for file in found if file.suffix == ".parquet" and file.is_file()]
    if not files:
        inside = "it holds no .parquet file, and datasets.save_to_disk did not write it"
        raise Failure(f"{place}: {inside if place.is_dir() else 'there is no such file'}")
    return files


def hashed(files: Sequence[Path]) -> str:
    """SHA-256 of a file; of several, that of their names and hashes."""
    told = []
    for file in files:
        with file.open("rb") as stream:
            told.append((file.name, hashlib.file_digest(stream, "sha256").hexdigest()))
    return told[0][1] if len(told) == 1 else hashlib.sha256(json.dumps(told).encode()).hexdigest()


def _text(path: Path) -> str:
    if not path.is_file():
        raise Failure(f"{path}: there is no such file")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise Failure(f"{path}: not UTF-8 text ({error}); save it as UTF-8") from error


def read_json(path: Path) -> list[Row]:
    """Rows of a JSON file that holds one list of objects.

    Raises:
        Failure: no such file, not JSON, or a part of the list is no object.
    """
    try:
        rows = json.loads(_text(path))
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise Failure(f"{path}: not valid JSON ({error.msg} at {where})") from error
    for i, row in enumerate(rows):
        if not isinstance(row, dict):
            raise Failure(f"{path}, row {i}: expected a JSON object, got {type(row).__name__}")
    return rows


def read_jsonl(path: Path) -> list[Row]:
    """Rows of a JSON Lines file.

    Raises:
        Failure: no such file, an empty or malformed line (file and line are named), no rows.
    """
    text = _text(path)
    rows: list[Row] = []
    # not splitlines(): a string of JSON may hold U+2028 and other breaks that end no line
    for number, line in enumerate(text.removesuffix("\n").split("\n") if text else (), start=1):
        where = f"{path}, line {number}"
        if not line.strip():
            raise Failure(f"{where}: the line is empty; each line must be one JSON object")
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise Failure(
                f"{where}: not valid JSON ({error.msg} at column {error.colno})"
            ) from error
        if not isinstance(row, dict):
            raise Failure(f"{where}: expected a JSON object, got {type(row).__name__}")
        rows.append(row)
    if not rows:
        raise Failure(f"{path}: the file has no rows")
    return rows
