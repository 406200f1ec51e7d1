"""The trainings of a pipeline: the recipe of each, kept as a stage, and the last one."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from stillroom.config.recipe import Recipe
from stillroom.config.specs import Network, TeacherSpec
from stillroom.config.values import checked, plain
from stillroom.core import Failure, Lesson
from stillroom.data.rows import Row
from stillroom.engine.job import Job
from stillroom.engine.parallel import Processes
from stillroom.engine.settings import Eval
from stillroom.engine.training import train
from stillroom.models.sources import fingerprint, resolved
from stillroom.pipelines._stages import code_of, stage
from stillroom.store.requests import digest

Build = Callable[[Recipe, Sequence[Row] | None], Job]
"""Makes a job of a recipe and of the rows of its training split; None are its own."""
LATER = {"model": None, "lm": None, "net": None, "trained": None, "cut": None, "heal": None}
"""Ways to come by a student, none of which is gone again once a lesson made one."""


@dataclass(frozen=True)
class Spent:
    """What the trainings before the last one took."""

    cpu_seconds: float = 0.0
    seconds: float = 0.0
    steps: int = 0


class Lessons:
    """The trainings of one recipe's pipeline.

    Args:
        recipe: with a pipeline.
        build: makes a job of a lesson.
        again: how many times all was made anew before; 0 takes what is kept.
    """

    def __init__(self, recipe: Recipe, build: Build, again: int = 0) -> None:
        self.recipe, self.build, self.again = recipe, build, again
        self.spent = Spent()

    def taught(self, lesson: Lesson) -> tuple[Path, dict[str, float]]:
        """The folder of the model that a lesson makes, and numbers of the training.

        Raises:
            Failure: several processes would train it.
        """
        own = self.recipe_of(lesson)
        job = self.build(own, lesson.rows)

        def make(folder: Path) -> None:
            if Processes().world > 1:  # they would wait for each other, and for the stage's lock
                raise Failure(
                    f"pipeline: one process trains {lesson.name!r}: start the recipe without a "
                    "launcher"
                )
            train(job, folder)
            shutil.rmtree(folder / "checkpoints", ignore_errors=True)
            if lesson.rows is not None:
                write_rows(folder, lesson.rows)

        key = {**_key(own, lesson, job), "again": self.again}
        place = stage("lesson", make, code=code_of(type(own.method)), resume=True, **key)
        told = json.loads((place / "result.json").read_text(encoding="utf-8"))
        self._count(lesson, told)
        rows = told["data"]["rows"]["train"] if lesson.rows is None else len(lesson.rows)
        cost = {"tokens": sum(told["tokens"].values()), "cpu_seconds": told["cpu_seconds"]}
        numbers = {"rows": rows, "steps": told["steps"], **_validated(place), **cost}
        return place / "student", numbers

    def _count(self, lesson: Lesson, told: Mapping[str, Any]) -> None:
        self.spent = Spent(
            self.spent.cpu_seconds + told["cpu_seconds"],
            self.spent.seconds + told["seconds"],
            self.spent.steps + (0 if lesson.network else told["steps"]),
        )

    def recipe_of(self, lesson: Lesson) -> Recipe:
        """The recipe of one training alone."""
        told, network = self.recipe, self.recipe.student
        if lesson.network is not None:
            network = checked(Network, dict(lesson.network), f"{lesson.name}: network")
        network = replace(network, draw=network.draw + lesson.draw)
        if lesson.start is not None:
            lora = network.lora and replace(network.lora, adapter=str(lesson.start / "adapter"))
            begun = {} if lora else {**LATER, "model": str(lesson.start)}
            network = replace(network, lora=lora, **begun)
        teacher, teachers = TeacherSpec(recorded=True), {}
        if lesson.teacher is not None:
            teacher = TeacherSpec(model=str(lesson.teacher))
        elif lesson.rows is None:
            teacher, teachers = told.teacher, told.teachers
        train = {**plain(told.train), "steps": lesson.steps}
        train["lr"] = _times(train["lr"], lesson.rate)
        return replace(
            told,
            name=lesson.name,
            method=lesson.method or told.method,
            pipeline=None,
            student=network,
            teacher=teacher,
            teachers=teachers,
            train=checked(type(told.train), train, "train"),
            eval=Eval(every=None, samples=0, metrics=_measured(told, lesson)),
            arms={},
        )


def _measured(recipe: Recipe, lesson: Lesson) -> tuple[str, ...]:
    """Evaluators of a lesson: of classes it is told how right its model is."""
    right = "accuracy" in recipe.eval.metrics and lesson.rows is None
    return ("accuracy",) if right and recipe.data.items is not None else ()


def _validated(folder: Path) -> dict[str, float]:
    """How right the model of a lesson is on the validation split, where that was measured."""
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    read = [json.loads(line).get("validation/accuracy") for line in lines]
    found = [value for value in read if value is not None]
    return {"validation_accuracy": found[-1]} if found else {}


def _key(own: Recipe, lesson: Lesson, job: Job) -> dict[str, Any]:
    """All that a lesson depends on."""
    told, start = own.resolved(), own.student
    teachers = [one.teacher.model for one in own.spoken.values()]
    models = [start.model, start.cut.from_ if start.cut else None, *teachers]
    rows = lesson.rows
    return {
        "rows": job.ledger.get("sha256") if rows is None else digest([learned(r) for r in rows]),
        "student": {**told["student"], "model": None} if lesson.start else told["student"],
        "models": [fingerprint(resolved(m)) for m in models if m is not None],
        # of a model of an earlier lesson the weights are told, not the place
        "teacher": lesson.teacher is None and [plain(o.teacher) for o in own.spoken.values()],
        "data": {k: v for k, v in told["data"].items() if k != "rows"},
        **{name: told[name] for name in ("method", "train", "run", "sampling")},
    }


def learned(row: Row) -> dict[str, Any]:
    """What of a row a training depends on, at most."""
    return {k: v for k, v in row.items() if k not in ("provenance", "id")}


def _times(rates: Any, factor: float) -> Any:
    """Learning rates as a recipe tells them, multiplied."""
    if isinstance(rates, list):
        return [_times(rate, factor) for rate in rates]
    if isinstance(rates, Mapping):
        if "peak" in rates:
            return {**rates, "peak": rates["peak"] * factor}
        return {player: _times(rate, factor) for player, rate in rates.items()}
    return rates * factor


def write_rows(folder: Path, rows: Sequence[Row]) -> None:
    """The rows that were learned, beside the run that learned them."""
    lines = (json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in rows)
    (folder / "rows.jsonl").write_text("".join(lines), encoding="utf-8")
