"""What every pipeline of the catalogue must keep, walking the files: nobody lists any here."""

from __future__ import annotations

import inspect
import json
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from ranges import edges, hints, members, refused

from stillroom import catalogue
from stillroom.config import lessons
from stillroom.config.build import build
from stillroom.config.recipe import Recipe, method_of, read
from stillroom.config.values import checked
from stillroom.core import Failure, Lesson, Needs, Pipeline
from stillroom.data.items import ItemData
from stillroom.engine.training import _Training, train
from stillroom.reports.fields import described, read_docstring
from stillroom.teachers.scripted import Scripted

NAMES = list(catalogue.names("pipelines"))
each_name = pytest.mark.parametrize("name", NAMES)


def loaded(name: str) -> Any:
    return catalogue.load(name, "pipelines")


def fields_with(values: Any) -> list[Any]:
    """Each name and field with each value that a function of its hint yields."""
    return [
        pytest.param(name, field, value, id=f"{name}-{field}-{value}")
        for name in NAMES
        for field, hint in hints(loaded(name)).items()
        for value in values(hint)
    ]


def tiny(name: str) -> Recipe:
    """The first run of its packaged recipe that goes through the pipeline."""
    told = read(name, tiny=True)
    arms = [told, *told.arms.values()] if not told.arms else list(told.arms.values())
    return next(arm for arm in arms if isinstance(arm.pipeline, loaded(name)))


class Watched:
    """What the teacher is asked, and what is learned, as the world and the engine see it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
        self.asked: Counter[str] = Counter()
        self.lessons: list[Lesson] = []
        self.trained = 0
        monkeypatch.setenv("STILLROOM_CACHE", str(cache))
        answer, recipe_of = Scripted.answer, lessons.Lessons.recipe_of

        def asked(source: Scripted, request: Any) -> Any:
            self.asked[f"{request.said} {request.copy}"] += 1
            return answer(source, request)

        def learned(kept: lessons.Lessons, told: Lesson) -> Recipe:
            self.lessons.append(told)
            return recipe_of(kept, told)

        def counted(*args: Any, **words: Any) -> Any:
            self.trained += 1
            return train(*args, **words)

        monkeypatch.setattr(Scripted, "answer", asked)
        monkeypatch.setattr(lessons.Lessons, "recipe_of", learned)
        monkeypatch.setattr(lessons, "train", counted)

    @property
    def rows(self) -> list[Any]:
        """All rows that were learned, without where they came from; None are the data's own."""
        return [told.rows and [lessons.learned(row) for row in told.rows] for told in self.lessons]


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Watched:
    return Watched(monkeypatch, tmp_path / "cache")


def weights(folder: Path) -> Mapping[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(folder / "student" / "model.safetensors")


def same(one: Path, other: Path) -> bool:
    a, b = weights(one), weights(other)
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@each_name
def test_a_pipeline_is_one_frozen_dataclass_with_defaults_for_all(name: str) -> None:
    cls = loaded(name)
    assert cls() == cls()
    assert cls.__dataclass_params__.frozen
    with pytest.raises(TypeError, match="positional"):
        cls(1)
    assert issubclass(cls, Pipeline)


@each_name
def test_its_body_states_the_literals_and_the_listing_reads_the_same(name: str) -> None:
    cls, row = loaded(name), catalogue.row(name)
    assert set(catalogue.TOLD) <= set(vars(cls))
    assert isinstance(cls.needs, Needs)
    assert (
        cls.needs.teacher <= {"text"} if cls.modality == "text" else "logits" in cls.needs.teacher
    )
    assert row["kind"] == "pipeline"
    assert (row["modality"], row["family"]) == (cls.modality, cls.family)
    assert row["paper"] == (cls.paper and {**vars(cls.paper), "url": cls.paper.url})


@each_name
def test_its_docstring_has_a_formula_and_where_it_differs_from_its_paper(name: str) -> None:
    first, body, told = read_docstring(inspect.getdoc(loaded(name)) or "")
    assert first.endswith((".", ":"))
    assert [code for code in re.findall(r"``([^`]+)``", body) if re.search(r"[(|=+*/~]", code)]
    assert re.search(r"^Differences: ", body, re.MULTILINE)
    assert {*told, "templates"} == set(hints(loaded(name)))
    assert all(field["says"] for field in described(loaded(name)))


@each_name
def test_every_number_has_a_range(name: str) -> None:
    for field, hint in hints(loaded(name)).items():
        for kind, marks in members(hint):
            assert kind not in (int, float) or marks, f"{field} may be any number"


@pytest.mark.parametrize(("name", "field", "value"), fields_with(refused))
def test_a_value_out_of_range_is_refused_by_the_name_of_its_field(
    name: str, field: str, value: Any
) -> None:
    with pytest.raises(Failure, match=rf"^{name}\.{field}: "):
        checked(loaded(name), {field: value}, name)


@pytest.mark.parametrize(("name", "field", "value"), fields_with(edges))
def test_the_ends_of_a_range_are_allowed(name: str, field: str, value: Any) -> None:
    assert getattr(checked(loaded(name), {field: value}, name), field) == value


@each_name
def test_a_recipe_does_not_take_it_for_a_method(name: str) -> None:
    with pytest.raises(Failure, match=rf"method\.name: '{name}' is a pipeline; .* a method here"):
        method_of(name)


@pytest.mark.slow
@each_name
def test_it_asks_no_question_twice_and_no_more_than_it_said(name: str, watched: Watched) -> None:
    job = build(tiny(name))
    assert sum(watched.asked.values()) == len(watched.asked)
    plan = build(tiny(name), ready=False).ledger["pipeline"]
    assert plan[0]["questions"] >= len(watched.asked)
    told = [line for line in job.ledger["pipeline"] if "questions" in line]
    assert sum(line["questions"] for line in told) == len(watched.asked)


@pytest.mark.slow
@each_name
def test_what_was_made_is_not_made_again(name: str, watched: Watched, tmp_path: Path) -> None:
    train(build(tiny(name)), tmp_path / "one")
    first, made = watched.rows, watched.trained
    watched.lessons, watched.trained = [], 0
    train(build(tiny(name)), tmp_path / "two")
    assert watched.trained == 0
    assert watched.rows == first
    assert len(first) == made + 1  # the last one is trained where it is evaluated
    assert same(tmp_path / "one", tmp_path / "two")


@pytest.mark.slow
@each_name
def test_the_same_seed_gives_the_same_elsewhere(
    name: str, watched: Watched, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(build(tiny(name)), tmp_path / "one")
    first = watched.rows
    watched.lessons = []
    monkeypatch.setenv("STILLROOM_CACHE", str(tmp_path / "another cache"))
    train(build(tiny(name)), tmp_path / "two")
    assert watched.rows == first
    assert same(tmp_path / "one", tmp_path / "two")


@pytest.mark.slow
@each_name
def test_one_that_is_killed_goes_on_where_it_was(
    name: str, watched: Watched, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step, taken, last = _Training._step, 0, 10**9

    def counted(training: Any) -> Any:
        nonlocal taken
        taken += 1
        if taken > last:
            raise KeyboardInterrupt
        return step(training)

    monkeypatch.setattr(_Training, "_step", counted)
    train(build(tiny(name)), tmp_path / "whole")
    taken, last, asked = 0, taken // 2, dict(watched.asked)
    monkeypatch.setenv("STILLROOM_CACHE", str(tmp_path / "another cache"))
    with pytest.raises(KeyboardInterrupt):
        train(build(tiny(name)), tmp_path / "parts")
    last = 10**9
    train(build(tiny(name)), tmp_path / "parts")
    assert same(tmp_path / "whole", tmp_path / "parts")
    assert watched.asked.keys() == asked.keys()


@pytest.mark.slow
@each_name
def test_no_question_of_the_test_split_is_asked_or_learned(name: str, watched: Watched) -> None:
    job = build(tiny(name))
    assert job.suite is not None
    test: Any = job.suite.splits["test"]
    if isinstance(test, ItemData):
        own = job.streams["train"]
        seen = {x.numpy().tobytes() for x in own.batch(range(len(own))).x}
        assert not [x for x in test.batch(range(len(test))).x if x.numpy().tobytes() in seen]
        return
    told = json.dumps([*watched.asked, watched.rows])
    assert not [e.prompt for e in test.examples if e.prompt in told]


@each_name
def test_the_steps_of_its_lessons_are_those_that_the_recipe_gives(
    name: str, watched: Watched
) -> None:
    recipe = tiny(name)
    job = build(recipe)
    own = [lesson for lesson in watched.lessons if lesson.network is None]
    assert sum(lesson.steps for lesson in own) == recipe.train.steps
    assert job.train.steps == own[-1].steps
