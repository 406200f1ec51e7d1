"""Models that are trained before the recipe's own runs: made once and kept."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from stillroom.config.recipe import Recipe, method_of
from stillroom.config.specs import DataSpec, Network, TeacherSpec, Trained
from stillroom.config.values import checked, plain, within
from stillroom.core import Failure
from stillroom.engine.job import Job
from stillroom.engine.parallel import Processes
from stillroom.engine.settings import Eval
from stillroom.engine.training import train
from stillroom.models import classes, text
from stillroom.models.sources import fingerprint, resolved
from stillroom.pipelines._stages import code_of, stage


@dataclass(frozen=True)
class Taught:
    """A language model and its tokenizer."""

    network: Any
    tokenizer: Any


def taught(recipe: Recipe, build: Callable[..., Job], *, ready: bool) -> Taught | None:
    """The teacher that ``teacher.trained`` tells of, trained at the first call; None without it.

    Args:
        recipe: what it tells is changed by ``teacher.trained``; its arms, its own student and
            evaluation have no part in it, so that arms share the teacher.
        build: makes a job of a recipe.
        ready: False makes do with a model of the right shape.

    Raises:
        Failure: several processes would train it; its own recipe is not as it must be.
    """
    told = recipe.teacher.trained
    if told is None:
        return None
    with within("teacher.trained"):
        own = _own(recipe, told)
        job = build(own, ready=False)
        if not ready:
            return _shape(job)
        place = _kept(own, job, build)
    if classes.saved(place):
        return Taught(classes.load(place), None)
    return Taught(text.load(str(place)), AutoTokenizer.from_pretrained(place))


def begun(recipe: Recipe, build: Callable[..., Job], *, ready: bool) -> Network | Taught:
    """The recipe's student after the training that ``student.trained`` tells of; as ``taught``.

    ``ready`` False gives one of its shape.
    """
    told = recipe.student.trained
    assert told is not None
    with within("student.trained"):
        own = _own(recipe, told)
        job = build(own, ready=False)
        if not ready:
            return _shape(job)
        place = _kept(own, job, build)
    return replace(recipe.student, trained=None, model=str(place))


def _shape(job: Job) -> Taught:
    assert job.suite is not None
    return Taught(job.student, job.suite.renderer and job.suite.renderer.tokenizer)


def _own(recipe: Recipe, told: Trained) -> Recipe:
    """The recipe of that training alone."""
    return replace(
        recipe,
        name="teacher",
        method=method_of(told.method),
        student=told.student,
        teacher=TeacherSpec(recorded=True),
        teachers={},
        data=checked(
            DataSpec, {**plain(recipe.data), "route": None, "views": None, **told.data}, "data"
        ),
        train=checked(type(recipe.train), _changes(recipe, told.train, told.steps), "train"),
        eval=Eval(every=None, samples=0),
        run=replace(recipe.run, seed=told.seed),
        arms={},
    )


def _changes(recipe: Recipe, changes: dict[str, Any], steps: int) -> dict[str, Any]:
    return {**plain(recipe.train), "cpu_seconds": None, **changes, "steps": steps}


def _kept(own: Recipe, job: Job, build: Callable[..., Job]) -> Path:
    def make(folder: Path) -> None:
        if Processes().world > 1:  # they would wait for each other, and for the stage's lock
            raise Failure(
                "one process trains it: start the recipe without a launcher, stop it when the "
                "arms begin, and launch it then"
            )
        train(build(own), folder)
        shutil.rmtree(folder / "checkpoints")

    told, start = own.resolved(), own.student
    if start.trained is not None:
        start = begun(own, build, ready=True)
        assert isinstance(start, Network)
    from_ = start.cut.from_ if start.cut else None
    return (
        stage(
            "taught",
            make,
            code=code_of(type(own.method)),
            resume=True,
            data=job.ledger.get("sha256"),
            models=[fingerprint(resolved(n)) for n in (start.model, from_) if n is not None],
            **{name: told[name] for name in ("method", "student", "train", "run")},
        )
        / "student"
    )
