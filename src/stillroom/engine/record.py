"""The run folder: what was asked, where it ran, what was measured."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import yaml

from stillroom.core import Failure

FREE_TO_CHANGE = ("about",)
"""Keys of a recipe, or of an arm, that may differ when a run is taken up again."""


class Record:
    """Writes into one run folder; only the main process does, the others keep silent."""

    def __init__(self, folder: Path, *, main: bool = True) -> None:
        self.folder, self.main = folder, main

    def open(self, recipe: Mapping[str, Any]) -> None:
        """Makes the folder, or checks that it belongs to the same recipe.

        Raises:
            Failure: the folder holds a run of another recipe; the differences are named.
        """
        if not self.main:
            return
        if self.folder.exists() and not self.folder.is_dir():
            raise Failure(f"{self.folder} is a file: give another folder with --out")
        told = self.folder / "recipe.yaml"
        if told.is_file():
            _refuse_changes(yaml.safe_load(told.read_text(encoding="utf-8")), recipe, self.folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._replace("recipe.yaml", yaml.safe_dump(dict(recipe), sort_keys=False, width=100))
        self.json("environment.json", environment())

    def json(self, name: str, value: Any) -> None:
        if self.main:
            self._replace(name, json.dumps(value, indent=2, ensure_ascii=False) + "\n")

    def read(self, name: str) -> Any:
        """A JSON file of the folder, or None when it is not there yet."""
        path = self.folder / name
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None

    def line(self, name: str, value: Mapping[str, Any]) -> None:
        """Appends one JSON object to a ``.jsonl`` file."""
        if self.main:
            with (self.folder / name).open("a", encoding="utf-8") as file:
                file.write(json.dumps(value, ensure_ascii=False) + "\n")

    def lines(self, name: str) -> list[dict[str, Any]]:
        """The complete lines of a ``.jsonl`` file; a last one cut by a kill is left out."""
        path = self.folder / name
        if not path.is_file():
            return []
        # not splitlines(): a string of JSON may hold U+2028 and other breaks that end no line
        *whole, _cut = path.read_text(encoding="utf-8").split("\n")
        return [json.loads(line) for line in whole]

    def rewind(self, step: int) -> None:
        """Drops what was written after ``step``: the run goes on from there."""
        for name in ("metrics.jsonl", "samples.jsonl"):
            kept = [line for line in self.lines(name) if line["step"] <= step]
            if (self.folder / name).is_file():
                self.replace_lines(name, kept)

    def replace_lines(self, name: str, lines: Sequence[Mapping[str, Any]]) -> None:
        if self.main:
            text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
            self._replace(name, text)

    def _replace(self, name: str, text: str) -> None:
        aside = self.folder / f".{name}.writing"
        aside.write_text(text, encoding="utf-8")
        os.replace(aside, self.folder / name)


def environment() -> dict[str, Any]:
    """Versions, machine and commit, for whoever repeats the run."""
    packages = ("stillroom", "torch", "transformers", "tokenizers", "accelerate", "numpy")
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: version(name) for name in packages},
        "threads": torch.get_num_threads(),
        "dtype": str(torch.get_default_dtype()).removeprefix("torch."),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "commit": _commit(),
    }


def _commit() -> str | None:
    """The commit of the source tree, where this is one."""
    asked = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        told = subprocess.run(asked, capture_output=True, text=True, timeout=5)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return told.stdout.strip() if told.returncode == 0 else None


def flat(tree: Any, path: str = "") -> dict[str, Any]:
    """``{"train.lr.student": 0.01, ...}`` of nested mappings."""
    if not isinstance(tree, Mapping):
        return {path: tree}
    prefix = f"{path}." if path else ""
    return {k: v for name, sub in tree.items() for k, v in flat(sub, f"{prefix}{name}").items()}


def _refuse_changes(old: Mapping[str, Any], new: Mapping[str, Any], folder: Path) -> None:
    before, after = flat(old), flat(new)
    changed = [
        f"  {key}: was {before.get(key, 'absent')!r}, is now {after.get(key, 'absent')!r}"
        for key in {**before, **after}
        if key.rpartition(".")[2] not in FREE_TO_CHANGE
        and before.get(key, "absent") != after.get(key, "absent")
    ]
    if changed:
        raise Failure(
            f"{folder} holds a run of another recipe; it would not be the same run.\n"
            + "\n".join(changed)
            + "\nGive another --out, or the recipe as it was"
        )
