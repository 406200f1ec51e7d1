"""Single runs of claims: each is made once, kept, and taken up again after a kill."""

from __future__ import annotations

import dataclasses
import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stillroom.catalogue import name_of
from stillroom.config.build import Parts, build
from stillroom.config.items import items_of
from stillroom.config.recipe import Recipe
from stillroom.config.texts import gathered, questions_of
from stillroom.engine.loop import NotFinite
from stillroom.engine.record import Record
from stillroom.engine.training import train
from stillroom.pipelines._stages import code_of, stage

NOT_INPUTS = ("name", "about")

Run = Mapping[str, Any]


def kept(recipe: Recipe, again: int) -> tuple[Run, bool]:
    """What the run of a recipe gave, and whether it was made just now.

    It is made once: its key is the resolved recipe (with the seed), the hashes of its data, the
    source code that it runs through, and ``again``, which counts the times that all is made anew.
    """
    made: list[Path] = []

    def make(folder: Path) -> None:
        made.append(folder)
        run_in(folder, recipe, again)

    told = {k: v for k, v in recipe.resolved().items() if k not in NOT_INPUTS}
    files, code = _files(recipe), code_of(*recipe.classes)
    place = stage("claim", make, code=code, resume=True, recipe=told, files=files, again=again)
    return read_run(place), bool(made)


def _files(recipe: Recipe) -> list[dict[str, Any]]:
    """What a recipe reads, with hashes."""
    if recipe.data.items is not None:
        return items_of(recipe).files
    return (questions_of(recipe, None) if recipe.pipeline else gathered(recipe, None)).files


def run_in(folder: Path, recipe: Recipe, again: int = 0) -> None:
    """Runs a recipe in a folder, or takes it up there; leaves the numbers, not the student.

    One that diverges leaves ``failed.json``: that is a result too, and the same the next time.
    """
    told = dataclasses.replace(recipe, name=name_of(type(recipe.system)), about="")
    if not (folder / "result.json").is_file():
        try:
            train(build(told, Parts(again=again)), folder)
        except NotFinite as error:
            Record(folder).json("failed.json", str(error))
    for name in ("checkpoints", "student", "beside"):
        shutil.rmtree(folder / name, ignore_errors=True)


def read_run(folder: Path) -> Run:
    """Numbers of a finished run: of the test split, of the validation split for the kept student.

    ``rises``: of each number of the validation split its last reading less its least, that before
    the first step included. What is not finite is None. Of a run that diverged there is no number,
    but ``failed``: why.
    """
    record = Record(folder)
    if (why := record.read("failed.json")) is not None:
        return {"failed": why, "validation": {}, "test": {}, "rises": {}}
    told = record.read("result.json")
    validation: dict[str, float] = {}
    readings: dict[str, list[float]] = {}
    for line in record.lines("metrics.jsonl"):
        read = {
            k.removeprefix("validation/"): v for k, v in line.items() if k.startswith("validation/")
        }
        for name, value in read.items():
            readings.setdefault(name, []).append(value)
        if line["step"] == told["selected_step"]:
            validation |= read
    names = ("steps", "selected_step", "cpu_seconds", "tokens", "notes")
    return {
        **{name: told[name] for name in names},
        "validation": _finite(validation),
        "test": _finite(told["test"]),
        "rises": _finite({name: values[-1] - min(values) for name, values in readings.items()}),
    }


def _finite(numbers: Mapping[str, float]) -> dict[str, float | None]:
    return {name: value if math.isfinite(value) else None for name, value in numbers.items()}
