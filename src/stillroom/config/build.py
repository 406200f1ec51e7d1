"""Recipes to jobs: data read and rendered, networks made, needs checked."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from stillroom.catalogue import nearest
from stillroom.config import speakers, students
from stillroom.config.corpus import corpus
from stillroom.config.items import classifier, items_of
from stillroom.config.recipe import Recipe, find_data, method_of
from stillroom.config.specs import TeacherSpec
from stillroom.config.students import Beginning
from stillroom.config.taught import Taught, begun
from stillroom.config.texts import Texts, gathered, questions_of, rendered
from stillroom.config.working import Work
from stillroom.core import Failure, Teacher
from stillroom.data.rows import Row
from stillroom.data.streams import Data
from stillroom.data.text import Renderer
from stillroom.engine.checks import check_needs
from stillroom.engine.parallel import Processes
from stillroom.engine.training import Job, train
from stillroom.evaluation.judge import Judge
from stillroom.evaluation.suite import Suite
from stillroom.models.sources import fingerprint, resolved
from stillroom.models.text import CausalLM
from stillroom.pipelines._stages import code_of, stage
from stillroom.teachers.local import Local
from stillroom.teachers.routed import each
from stillroom.teachers.stored import Stored


@dataclass(kw_only=True)
class Parts:
    """Objects given by a Python caller in place of a recipe's words."""

    student: Any = None
    tokenizer: Any = None
    teacher: Teacher | Mapping[str, Teacher] | None = None
    """One, or several by the names that the recipe gives them."""
    taught: Mapping[str, Taught | None] | None = None
    rows: Sequence[Row] | None = None
    splits: Mapping[str, Data] = field(default_factory=dict)
    lesson: Sequence[Row] | None = None
    """Rows of the training split, in place of those that the recipe tells of."""
    again: int = 0
    """How many times the stages of a pipeline were made anew before."""
    rest: bool = True
    """Whether rows that were set aside, and are in neither split, are trained on."""
    ask: bool = True
    """Whether a teacher is asked for answers that the data lack, and for scores that a store lacks;
    else these rows are left out, and these scores are not there."""


def build(recipe: Recipe, parts: Parts | None = None, *, ready: bool = True) -> Job:
    """A job of one recipe, everything checked that can be checked without a step.

    ``ready`` False leaves out what takes long, a search over layers and a healing: the job has the
    right shape, is good for checks, and is not the one to run.

    Raises:
        Failure: a file, row, model, signal or size is not as it must be.
    """
    parts = parts or Parts()
    if recipe.pipeline is not None:
        return _piped(recipe, parts, ready=ready)
    apart = partial(build, parts=Parts(rest=False))  # its limits part rows in another way
    if parts.student is None and recipe.student.trained is not None:
        students.check(recipe)
        first = begun(recipe, apart, ready=ready)
        if not isinstance(first, Taught):
            made = build(replace(recipe, student=first), parts, ready=ready)
            return replace(made, recipe=recipe.resolved())
        shape = students.adapted_as(recipe, first.network)
        parts = replace(parts, student=shape, tokenizer=first.tokenizer)
    students.seeded(recipe)
    if parts.splits or recipe.data.items is not None:
        return _class_job(recipe, parts, apart, ready=ready)
    if parts.student is None:
        students.check(recipe)
    if parts.teacher is None and parts.taught is None:
        parts = replace(parts, taught=speakers.trained(recipe, apart, ready=ready))
    texts = gathered(recipe, parts.rows, ask=parts.ask, lesson=parts.lesson)
    texts.rest = texts.rest and parts.rest
    tokenizer = parts.tokenizer or students.tokenizer_of(recipe, texts)
    begin = Beginning(None)
    if parts.student is None:

        def training_text(renderer: Renderer) -> Any:
            return rendered(recipe, texts, renderer, None, {})["train"]

        begin = students.beginning(recipe, tokenizer, training_text, texts.files[:1], ready=ready)
    if recipe.student.heal is not None and ready:
        begin = _healed(recipe, parts, texts, tokenizer, begin)
    return _text_job(recipe, parts, texts, tokenizer, begin)


def _piped(recipe: Recipe, parts: Parts, *, ready: bool) -> Job:
    """The job of a pipeline's last lesson; all that comes before it is done, or was."""
    if parts.student is not None or parts.teacher is not None or parts.splits:
        raise Failure("pipeline: it trains more than once: name student and teacher, not objects")
    students.check(recipe)
    work = _work(recipe, parts)
    if not (ready and parts.ask):
        shape = _shape(recipe, parts, work)
        return replace(shape, recipe=recipe.resolved(), ledger={**shape.ledger, **work.plan()})
    lesson = work.last()
    own = replace(work.lessons.recipe_of(lesson), name=recipe.name, eval=recipe.eval)
    job = work.lessons.build(own, lesson.rows)
    assert job.suite is not None
    work.tokenizer = job.suite.renderer and job.suite.renderer.tokenizer
    return replace(
        job,
        recipe=recipe.resolved(),
        ledger={**job.ledger, "pipeline": work.ledger},
        suite=job.suite.by(lesson.written, lesson.beside),
        earlier=asdict(work.lessons.spent),
        beside=lesson.beside,
    )


def _work(recipe: Recipe, parts: Parts) -> Work:
    def job_of(own: Recipe, rows: Sequence[Row] | None) -> Job:
        return build(own, replace(parts, lesson=rows))

    kind = "text" if recipe.data.items is None else "image"
    if recipe.pipeline is not None and recipe.pipeline.modality not in ("any", kind):
        raise Failure(
            f"pipeline: {type(recipe.pipeline).__name__} works on {recipe.pipeline.modality}: give "
            f"{'data.items' if kind == 'text' else 'text, and no data.items'}"
        )
    if kind == "image":
        return Work(recipe, {}, None, job_of, parts.again)
    texts = questions_of(recipe, parts.rows)
    return Work(recipe, texts.rows, texts.world, job_of, parts.again)


def _shape(recipe: Recipe, parts: Parts, work: Work) -> Job:
    """A job as that of a lesson, for which nothing is asked or taught."""
    own = replace(recipe, pipeline=None, teacher=TeacherSpec(recorded=True), teachers={})
    if recipe.data.items is not None and not recipe.teacher.recorded:
        own = replace(recipe, pipeline=None, method=method_of("kd"))
    return build(own, replace(parts, lesson=work.examples(), ask=False), ready=False)


def _class_job(recipe: Recipe, parts: Parts, apart: Any, *, ready: bool) -> Job:
    """Of examples with classes: nothing is rendered, and the student's ends fit the data."""
    if parts.splits:
        return _job(recipe, parts, parts.student, None, dict(parts.splits), {}, None)
    students.check(recipe)
    items = items_of(recipe)
    if parts.teacher is None and parts.taught is None:
        parts = replace(parts, taught=speakers.trained(recipe, apart, ready=ready))
    students.seeded(recipe)  # whether a teacher was trained now or before
    student = classifier(recipe, items)
    ledger = items.ledger(recipe.data.licence)
    return _job(recipe, parts, student, None, dict(items.splits), ledger, None)


def _text_job(recipe: Recipe, parts: Parts, texts: Texts, tokenizer: Any, begin: Beginning) -> Job:
    student = parts.student
    if student is None:
        students.seeded(recipe)  # whether what came before was made now or before
        student = students.student(recipe, begin, tokenizer)
    renderer = Renderer(tokenizer, student.stop_ids, recipe.data.train_on)
    ledger: dict[str, Any] = {}
    splits = rendered(recipe, texts, renderer, student.context, ledger)
    splits |= corpus(recipe, renderer, student.context, ledger)
    return _job(recipe, parts, student, renderer, splits, ledger, texts, begin.stages)


def _healed(
    recipe: Recipe, parts: Parts, texts: Texts, tokenizer: Any, begin: Beginning
) -> Beginning:
    if parts.student is not None or parts.teacher is not None or parts.rows is not None:
        raise Failure(
            "student.heal is kept by what it was made from: name student, teacher and data, "
            "instead of giving objects"
        )
    specs = [one.teacher for one in recipe.spoken.values()]
    logits = not any(spec.recorded or spec.api or spec.average for spec in specs)
    told = students.heal_recipe(recipe, logits=logits)

    def make(folder: Path) -> None:
        if Processes().world > 1:  # they would wait for each other, and for the stage's lock
            raise Failure(
                "student.heal is done by one process: start the recipe without a launcher, stop it "
                "when the arms begin, and launch it then"
            )
        train(_text_job(told, parts, texts, tokenizer, begin), folder)
        shutil.rmtree(folder / "checkpoints")

    models = [name for name in (begin.source, *(s.model for s in specs)) if name is not None]
    data = {
        "rows": len(texts.rows["train"]),
        "files": texts.files,
        "models": [fingerprint(resolved(name)) for name in models],
        "told": told.resolved()["data"],
    }
    return students.healed(told, begin, make, data)


def _job(  # noqa: PLR0913 - what was made of each section
    recipe: Recipe,
    parts: Parts,
    student: Any,
    renderer: Renderer | None,
    splits: dict[str, Data],
    ledger: dict[str, Any],
    texts: Texts | None,
    stages: Mapping[str, Path] | None = None,
) -> Job:
    world = texts.world if texts else None
    told = {"given": parts.teacher, "world": world, "ask": parts.ask}
    teachers = speakers.teachers(recipe, parts.taught or {}, student, renderer, splits, **told)
    students.moved(recipe, student, teachers)
    check_needs(recipe.method, student, teachers)
    streams = {k: v for k, v in splits.items() if k not in ("validation", "test")}
    students.view(recipe, _models(student, teachers), streams.values(), renderer)
    for _, one in each(teachers):
        if isinstance(one, Stored) and student.view is not None:
            one.narrow(student.view)
    evaluated = {name: splits[name] for name in ("validation", "test") if name in splits}
    suite = Suite(
        recipe.eval.metrics,
        evaluated,
        renderer=renderer,
        sampling=recipe.sampling,
        teachers=teachers,
        world=world,
        train=splits.get("train"),
        budget=recipe.train.tokens_per_micro,
        seed=recipe.run.seed,
        copies=recipe.eval.copies,
        answer=recipe.eval.answer,
        database=_database(recipe),
        verify=recipe.verifier,
        judge=_judge(recipe, student, splits, renderer),
    )
    _check_numbers(recipe, suite)
    return Job(
        method=recipe.method,
        student=student,
        teachers=teachers,
        streams=streams,
        train=recipe.train,
        eval=recipe.eval,
        run=recipe.run,
        sampling=recipe.sampling,
        suite=suite,
        views=recipe.data.views,
        pad_id=renderer.pad_id if renderer else 0,
        recipe=recipe.resolved(),
        ledger=ledger,
        stages=stages or {},
    )


def _database(recipe: Recipe) -> Path | None:
    name = recipe.data.database
    return None if name is None else find_data(name, recipe.folder, "data.database")


def _judge(
    recipe: Recipe, student: Any, splits: Mapping[str, Any], renderer: Renderer | None
) -> Judge | None:
    """What the evaluator ``judge`` reads with: the student as it is now."""
    if "judge" not in recipe.eval.metrics or renderer is None:
        return None
    told = {"sampling": recipe.sampling, "budget": recipe.train.tokens_per_micro}
    keep = partial(stage, code=code_of())
    return Judge(student.snapshot(), splits["train"], keep, renderer=renderer, **told)


def _models(student: Any, teachers: Mapping[str, Teacher]) -> list[CausalLM]:
    """The language models of this process, student and teachers, each once."""
    networks = [student, *(t.network for _, t in each(teachers) if isinstance(t, Local))]
    found = [m for network in networks for m in network.modules() if isinstance(m, CausalLM)]
    return list(dict.fromkeys(found))


def _check_numbers(recipe: Recipe, suite: Suite) -> None:
    """Whether the validation split gives the numbers by which ``eval`` chooses and stops."""
    told = recipe.eval
    wanted = {f"eval.stop.{name}": name for name in told.stop}
    if told.select is not None:
        wanted["eval.select"] = told.select
    known = list(suite.columns("validation"))
    for path, name in wanted.items():
        if name not in known:
            gives = ", ".join(known) or "nothing: name metrics"
            raise Failure(
                f"{path}: no metric gives {name!r}{nearest(name, known)}; eval.metrics "
                f"{list(told.metrics)} give {gives}"
            )
        if "validation" not in suite.splits:
            raise Failure(
                f"{path}: {name!r} is read on the validation split, and there is none: give "
                "data.validation or data.hold_out"
            )
