"""What is looked at before the first step: whether a method gets all that it asks for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stillroom.catalogue import SIGNALS, closure, fitting
from stillroom.core import Batch, Failure, Method, Teacher
from stillroom.engine.job import Job
from stillroom.engine.settings import Train


def check_plan(method: Method, train: Train) -> None:
    """Raises Failure where the run ends by time and the method must know its steps beforehand."""
    if method.needs.planned and train.steps is None:
        raise Failure(
            f"train.cpu_seconds: what {type(method).__name__} does in a step depends on how many "
            "there will be; give train.steps"
        )


def check_read(job: Job) -> None:
    """Raises Failure where the method reads a stream, or a number, that the run does not have."""
    name = type(job.method).__name__
    if lacks := sorted(job.method.streams() - set(job.streams)):
        raise Failure(
            f"{name} reads {', '.join(lacks)} beside its training rows: give "
            f"{', '.join(f'data.{stream}' for stream in lacks)}, or set its weight to 0"
        )
    if not (steered := job.method.needs.metrics):
        return
    suite = job.suite
    given = set(suite.columns("validation")) if suite and "validation" in suite.splits else set()
    if lacks := sorted(steered - given):
        raise Failure(
            f"{name} is steered by {', '.join(lacks)} of the validation split: give "
            "data.validation or data.hold_out, and the evaluator that tells it in eval.metrics"
        )
    if job.eval.every is None:
        raise Failure(f"{name} is steered by validation while it trains: give eval.every")


def check_texts(method: Method, batch: Batch) -> None:
    """Raises Failure where the rows of the training stream lack a text that the method reads."""
    if lacks := sorted(method.needs.texts - set(batch)):
        raise Failure(
            f"{type(method).__name__} learns from {', '.join(lacks)} of each row, beside its "
            "answer, and these have none: give it in Example.others, or rows with that column"
        )


def check_needs(method: Method, student: Any, teachers: Mapping[str, Teacher]) -> None:
    """Whether teacher and student give what the method asks for.

    Raises:
        Failure: names what is missing, what is there, and which methods fit.
    """
    name, needs = type(method).__name__, method.needs
    wanted = set(needs.student) | ({"text"} if needs.rollouts else set())
    if missing := wanted - closure(student.signals):
        raise Failure(
            f"{name} needs {sorted(missing)} from its student, "
            f"but this one gives {sorted(closure(student.signals))}"
        )
    if not teachers and needs.teacher:
        raise Failure(f"{name} needs a teacher that gives {sorted(needs.teacher)}; there is none")
    for label, teacher in teachers.items():
        signals, fresh = closure(set(teacher.signals)), teacher.fresh
        missing = set(needs.teacher) - signals
        if missing or (needs.fresh and not fresh):
            told = [f"{signal} ({SIGNALS[signal]})" for signal in sorted(missing)]
            lack = ", ".join(told) or "answers about new sequences"
            fits = ", ".join(fitting(signals, fresh)) or "none yet"
            raise Failure(
                f"{name} needs {lack} from its {label}, but this one gives {sorted(signals)}"
                f"{'' if fresh else ' about recorded sequences only'}. "
                f"Methods that fit this teacher: {fits}"
            )
        method.check(teacher)
