"""Read the folder that a finished run leaves: recipe, environment, metrics, samples, table.

A recipe with several arms leaves one folder an arm; readers see the same ``RunFolder`` in both
cases.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from stillroom.failures import Failure

ARM_FILES = ("recipe.yaml", "metrics.jsonl", "result.json")
SECRETS = (
    (re.compile(r"(://)[^/@\s'\"]+@"), r"\1***@"),
    (re.compile(r"(?i)([?&][\w-]*(?:key|token|secret|password)=)[^&\s'\"]+"), r"\1***"),
)
"""What stands before the host in ``https://user:secret@host``, and keys after it: never shown."""

Record = Mapping[str, Any]


@dataclass(frozen=True)
class Arm:
    """One training: its own recipe, log lines, samples (none outside text) and result."""

    name: str
    path: Path
    recipe: Record
    metrics: tuple[Record, ...]
    samples: tuple[Record, ...]
    result: Record

    @property
    def method(self) -> str:
        method = self.recipe.get("pipeline") or self.recipe.get("method", self.name)
        return str(method.get("name", self.name) if isinstance(method, Mapping) else method)

    @property
    def ledger(self) -> Record:
        """What the run counted of its data: files with hashes, rows by split."""
        return self.result.get("data") or {}


@dataclass(frozen=True)
class RunFolder:
    """A finished run. ``arms`` holds one entry for a plain recipe, named after its method."""

    path: Path
    recipe: Record
    recipe_text: str
    environment: Record
    table: Record
    arms: Mapping[str, Arm]

    @property
    def name(self) -> str:
        return str(self.recipe.get("name") or self.path.resolve().name)


def read_folder(path: Path | str) -> RunFolder:
    """The run folder at ``path``.

    Raises:
        Failure: it is no run folder, is one arm of a larger run, is unfinished, or a file in it
            cannot be read.
    """
    path = Path(path)
    if not (path / "recipe.yaml").is_file():
        raise Failure(
            f"{path} is no run folder: it holds no recipe.yaml; give the folder that a run wrote"
        )
    if path.resolve().parent.name == "arms":
        raise Failure(f"{path} is one arm of a run: give {path.resolve().parent.parent}")
    recipe = _yaml(path / "recipe.yaml")
    places = _places(path, recipe)
    _check_finished(path, places)
    table = _json(path / "table.json")
    if not {"rows", "columns"} <= set(table):
        raise Failure(f"{path / 'table.json'} needs rows and columns, and has {sorted(table)}")
    return RunFolder(
        path=path,
        recipe=recipe,
        recipe_text=_text(path / "recipe.yaml"),
        environment=_json(path / "environment.json"),
        table=table,
        arms={name: _arm(name, place) for name, place in places.items()},
    )


def _places(path: Path, recipe: Record) -> dict[str, Path]:
    """Where each arm lies, in the recipe's order."""
    arms = path / "arms"
    if isinstance(named := recipe.get("arms"), Mapping) and named:
        return {str(name): arms / str(name) for name in named}
    if arms.is_dir():
        return {place.name: place for place in sorted(arms.iterdir()) if place.is_dir()}
    method = recipe.get("pipeline") or recipe.get("method")
    name = method.get("name") if isinstance(method, Mapping) else method
    return {str(name or "student"): path}


def _check_finished(path: Path, places: Mapping[str, Path]) -> None:
    needed = [path / "environment.json", path / "table.json"]
    needed += [place / file for place in places.values() for file in ARM_FILES]
    if missing := [str(file.relative_to(path)) for file in needed if not file.is_file()]:
        raise Failure(
            f"the run in {path} is unfinished: it lacks {', '.join(missing)}; let it end, or "
            "start it again from its recipe.yaml, and report then"
        )


def _arm(name: str, path: Path) -> Arm:
    return Arm(
        name=name,
        path=path,
        recipe=_yaml(path / "recipe.yaml"),
        metrics=_lines(path / "metrics.jsonl"),
        samples=_lines(path / "samples.jsonl") if (path / "samples.jsonl").is_file() else (),
        result=_json(path / "result.json"),
    )


def _text(file: Path) -> str:
    try:
        text = file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise Failure(f"{file} is not UTF-8 text ({error}): restore it or run again") from error
    for secret, shown in SECRETS:
        text = secret.sub(shown, text)
    return text


def _yaml(file: Path) -> Record:
    try:
        return _mapping(file, yaml.safe_load(_text(file)))
    except yaml.YAMLError as error:
        raise Failure(f"{file} is not YAML ({error}): restore it or run again") from error


def _json(file: Path) -> Record:
    return _parse(file, _text(file), "")


def _lines(file: Path) -> tuple[Record, ...]:
    # split("\n"), as splitlines() would also cut at separators that JSON allows inside a string
    numbered = enumerate(_text(file).split("\n"), start=1)
    return tuple(_parse(file, line, f" line {n}") for n, line in numbered if line.strip())


def _parse(file: Path, text: str, where: str) -> Record:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise Failure(f"{file}{where} is not JSON ({error}): restore it or run again") from error
    return _mapping(file, value, where)


def _mapping(file: Path, value: Any, where: str = "") -> Record:
    if not isinstance(value, Mapping):
        raise Failure(f"{file}{where} must be a mapping, not {type(value).__name__}")
    return value
