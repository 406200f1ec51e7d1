"""Tables of rows: Parquet, data sets that ``datasets`` saved, data sets of the hub."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from stillroom.extras import extra
from stillroom.failures import Failure

HUB = "hf:"
_HUB_NAME = re.compile(
    rf"{HUB}(?P<name>[^/@:]+(/[^/@:]+)?)(/(?P<config>[^/@:]+))?"
    r"(@(?P<revision>[^:]+))?(:(?P<split>.+))?"
)


class TableRow(Mapping[str, Any]):
    """One row of a table; a column is decoded, whole, when the first row is asked for it."""

    __slots__ = ("_column", "_index", "_names")

    def __init__(
        self, names: Sequence[str], column: Callable[[str], Sequence[Any]], index: int
    ) -> None:
        self._names, self._column, self._index = names, column, index

    def __getitem__(self, name: str) -> Any:
        if name not in self._names:
            raise KeyError(name)
        return self._column(name)[self._index]

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def _rows(
    names: Sequence[str], count: int, column: Callable[[str], Sequence[Any]]
) -> list[TableRow]:
    once = functools.cache(column)
    return [TableRow(tuple(names), once, i) for i in range(count)]


def parquet(files: Sequence[Path]) -> list[TableRow]:
    """Rows of Parquet files that have the same columns, one file after the other.

    Raises:
        Failure: a file cannot be read (also later, when a column is), or has other columns.
    """
    module = extra("pyarrow.parquet", "data", "Parquet files")
    names: list[str] = []
    count = 0
    for file in files:
        with _readable(file, "Parquet"), module.ParquetFile(file) as part:
            own = list(part.schema_arrow.names)
            names = names or own
            count += part.metadata.num_rows
        if set(own) != set(names):
            raise Failure(f"{file}: it has columns {sorted(own)}, but {files[0]} {sorted(names)}")

    def column(name: str) -> list[Any]:
        values: list[Any] = []
        for file in files:
            with _readable(file, "Parquet"), module.ParquetFile(file) as part:
                values += part.read([name])[name].to_pylist()
        return values

    return _rows(names, count, column)


@contextmanager
def _readable(name: object, kind: str) -> Iterator[None]:
    """Errors of Arrow and of files become one that names the file."""
    try:
        yield
    except (OSError, ValueError, NotImplementedError, KeyError) as error:
        raise Failure(f"{name}: it cannot be read as {kind}: {error}") from error


def is_saved(folder: Path) -> bool:
    """Whether ``datasets.save_to_disk`` wrote the folder."""
    return any((folder / name).is_file() for name in ("dataset_dict.json", "state.json"))


def saved(
    folder: Path, told: str | None, default: str | None
) -> tuple[list[TableRow], str | None, list[Path]]:
    """Rows of a folder that ``datasets.save_to_disk`` wrote, the split taken, and its files.

    Raises:
        Failure: it cannot be read, or has no such split.
    """
    datasets = extra("datasets", "data", "a saved data set")
    with _readable(folder, "a saved data set"):
        made = datasets.load_from_disk(str(folder))
    if told is not None and not isinstance(made, dict):
        raise Failure(f"{folder}: it holds no splits, so no {told!r}; name the folder alone")
    taken, split = _split(str(folder), made, told or default, named=told is not None)
    return _of(taken), split, [Path(file["filename"]) for file in taken.cache_files]


def hub(name: str, default: str | None) -> tuple[list[TableRow], str | None, str]:
    """Rows of a data set of the hub, the split that was taken, and its fingerprint.

    Raises:
        Failure: the name is malformed, the hub does not give it, or it has no such split.
    """
    parts = _HUB_NAME.fullmatch(name)
    if parts is None:
        raise Failure(f"{name}: expected hf:ORG/NAME[/CONFIG][@REVISION][:SPLIT]")
    datasets = extra("datasets", "data", "a data set of the hub")
    try:
        made = datasets.load_dataset(
            parts["name"], parts["config"], revision=parts["revision"], split=parts["split"]
        )
    except Exception as error:  # the hub, the network and builders fail in many ways
        raise Failure(f"{name}: datasets cannot load it: {error}") from error
    taken, split = _split(name, made, default, named=False)
    return _of(taken), parts["split"] or split, f"fingerprint:{taken._fingerprint}"


def _split(name: str, made: Any, wanted: str | None, *, named: bool) -> tuple[Any, str | None]:
    """One split of several: the one wanted, or the only one where none is."""
    if not isinstance(made, dict):
        return made, None
    there = ", ".join(made)
    if wanted is None and len(made) == 1:
        wanted = next(iter(made))
    if wanted is None:
        raise Failure(f"{name}: it has several splits ({there}); name one, like {name}:train")
    if wanted not in made:
        hint = "" if named else f"; name one, like {name}:{next(iter(made), 'train')}"
        raise Failure(f"{name}: there is no split {wanted!r}, only {there}{hint}")
    return made[wanted], wanted


def _of(taken: Any) -> list[TableRow]:
    def column(name: str) -> list[Any]:
        # as Arrow: images and the like stay bytes, which text never needs decoded
        return taken.select_columns([name]).with_format("arrow")[:][name].to_pylist()

    return _rows(taken.column_names, len(taken), column)
