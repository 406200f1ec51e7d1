"""What methods on classes must keep in float64, walking the files: nobody lists anything here."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import launch
import pytest
import torch
from numerics import contract, note
from worlds import every_world, gap, job, plain_sgd, steps

from stillroom import catalogue
from stillroom.core import Failure
from stillroom.engine import checkpoint
from stillroom.engine.record import Record
from stillroom.models.classes import Classifier
from stillroom.models.networks import CNN, MLP, Shape, ViT, build
from stillroom.teachers.local import Local

pytestmark = contract
CLOSE = 1e-9
WORLDS = {name: world for name, world in every_world() if world.kind == "classes"}
SPLIT = [name for name in WORLDS if not catalogue.load(name).needs.whole]


@pytest.mark.parametrize("name", SPLIT)
def test_one_batch_of_classes_equals_its_micro_batches(name: str) -> None:
    method, world = catalogue.load(name)(), WORLDS[name]
    exact = replace(world, exact=True, change=launch.weighed)
    whole = steps(plain_sgd(method, exact))
    assert gap(whole.states[0]["networks"]["student"], whole.final["student"]) > 1e-4
    worst = 0.0
    for budget in (5, 2, 1):
        split = steps(plain_sgd(method, exact, tokens_per_micro=budget))
        worst = max(worst, gap(whole.logs, split.logs), gap(whole.final, split.final))
    note(name, "micro-batches", worst, CLOSE)


@pytest.mark.slow
def test_two_processes_train_the_weights_of_one_on_classes(tmp_path: Path) -> None:
    names, one, two = list(WORLDS), tmp_path / "one", tmp_path / "two"
    children = [
        launch.alone(tmp_path / "log", launch.on_classes, one, names),
        *launch.together(2, tmp_path / "logs", launch.on_classes, two, names),
    ]
    codes = [child.wait(300) for child in children]
    assert codes == [0, 0, 0], "\n".join(child.said() for child in children)
    for name in names:
        gap_of_players = gap(players(one / name), players(two / name))
        told = [Record(folder / name).lines("metrics.jsonl") for folder in (one, two)]
        shown = [[{k: v for k, v in line.items() if "time/" not in k} for line in t] for t in told]
        note(name, "2 processes", max(gap_of_players, gap(*shown)), CLOSE)


def players(folder: Path) -> Any:
    return checkpoint.load(checkpoint.saved(folder / "checkpoints")[-1])["players"]["networks"]


KINDS: dict[str, Any] = {
    "mlp": MLP(widths=[8]),
    "cnn": CNN(channels=[4, 6], head_bias=False),
    "vit": ViT(width=8, heads=2, depth=1),
}
REFUSED = {"cat_kd": {"mlp", "vit"}, "e2kd": {"mlp", "vit"}}
"""Of methods that need places, the kinds that have none, or none that they can read."""


def of_kind(kind: str, seed: int) -> Classifier:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Classifier(build(KINDS[kind], Shape(inputs=(1, 4, 4), classes=3)))


@pytest.mark.parametrize(("student", "teacher"), [("mlp", "vit"), ("cnn", "mlp"), ("vit", "cnn")])
@pytest.mark.parametrize("name", WORLDS)
def test_teacher_and_student_may_be_of_different_families(
    name: str, student: str, teacher: str
) -> None:
    method, world = catalogue.load(name)(), replace(WORLDS[name], maps=True)
    given = job(method, world, steps=2, batch=8, keep=3)
    teachers = {name: Local(of_kind(teacher, 2)) for name in given.teachers}
    given = replace(given, student=of_kind(student, 1), teachers=teachers)
    if "maps" in method.needs.student and {student, teacher} & REFUSED.get(name, {"mlp"}):
        with pytest.raises(Failure, match=r"map|places"):
            steps(given)
        return
    run = steps(given)
    assert len(run.logs) == 2
    assert all(math.isfinite(value) for line in run.logs for value in line.values())
    assert gap(run.states[0]["networks"]["student"], run.final["student"]) > 0
