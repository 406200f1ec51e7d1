"""Recipes on examples with classes: data, networks, a teacher that is trained first."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from stillroom import api
from stillroom.config.build import build
from stillroom.config.items import items_of
from stillroom.config.recipe import make
from stillroom.core import Batch, Failure
from stillroom.models import classes

pytest.importorskip("sklearn")
DIGITS = {"name": "digits", "train": 40, "validation": 20, "test": 30}


def recipe(tmp_path: Any, **changes: Any) -> Any:
    told: dict[str, Any] = {
        "method": {"name": "kd", "label_weight": 0.5},
        "student": {"net": {"kind": "mlp", "widths": [6]}},
        "teacher": {
            "trained": {
                "student": {"net": {"kind": "cnn", "channels": [4, 4]}},
                "steps": 3,
                "data": {"items": {**DIGITS, "train": 60, "noise": 0.1}},
            }
        },
        "data": {"items": DIGITS},
        "train": {"steps": 3, "batch": 8, "lr": 0.01},
        "eval": {"every": None, "metrics": ["accuracy"], "samples": 0},
        "run": {"threads": 1},
    }
    return make({**told, **changes}, folder=tmp_path)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("STILLROOM_CACHE", str(tmp_path / "cache"))


def test_a_recipe_on_classes_runs_and_its_student_can_be_loaded_and_taught_from(tmp_path):
    done = api.run(recipe(tmp_path), tmp_path / "first")
    folder = tmp_path / "first" / "student"
    again = classes.load(folder)
    x = torch.rand(5, 1, 8, 8)
    batch = Batch(x=x, id=torch.arange(5))
    assert torch.equal(again(batch).logits, done.student(batch).logits)
    card = (folder / "README.md").read_text()
    assert "| loads by | `stillroom.models.classes.load(FOLDER)` |" in card
    assert "| base student | a new mlp (widths (6)) |" in card
    assert "| examples, trained | 24 |" in card
    assert "text-generation" not in card
    table = {row["name"]: row["values"] for row in done.table}
    assert set(table) >= {"start", "run", "teacher"}
    assert 0 <= table["run"]["accuracy"] <= 1
    taught = make(
        {
            **recipe(tmp_path).resolved(),
            "teacher": {"model": str(folder)},
            "student": {"model": str(folder)},
            "train": {"steps": 1, "batch": 8, "lr": 1e-9},
            "method": {"name": "kd", "temperature": 1.0},
        },
        folder=tmp_path,
    )
    second = api.run(taught, tmp_path / "second")
    (line,) = [
        json.loads(line)
        for line in (second.folder / "metrics.jsonl").read_text().splitlines()
        if "loss/student/loss" in line
    ]
    assert line["loss/student/loss"] == pytest.approx(0, abs=1e-6)  # it learns from itself


def test_the_teacher_is_trained_once_for_all_seeds_and_arms(tmp_path):
    arms = {"one": {}, "two": {"method": {"label_weight": 1.0}}}
    api.run(recipe(tmp_path, arms=arms), tmp_path / "run")
    api.run(recipe(tmp_path, run={"seed": 3, "threads": 1}), tmp_path / "other")
    assert len(list((tmp_path / "cache").glob("**/network.json"))) == 1


def test_splits_are_disjoint_and_the_test_rows_are_nobodys(tmp_path):
    def rows(data: Any) -> set[bytes]:
        return {one.numpy().tobytes() for one in data.items[0]}

    told = {**DIGITS, "train": 500, "unlabelled": 200, "held": 100, "test": 500}
    first, second = (
        items_of(recipe(tmp_path, data={"items": told}, run={"seed": s})).splits for s in (0, 1)
    )
    assert {k: len(v) for k, v in first.items()} == {
        "train": 500, "validation": 20, "unlabelled": 200, "held": 100, "test": 500,
    }  # fmt: skip
    every = [rows(data) for data in first.values()]
    doubles = 500 + 20 + 200 + 100 + 500 - len(set().union(*every))
    assert doubles == 0
    assert rows(first["test"]) == rows(second["test"])
    assert rows(first["train"]) != rows(second["train"])
    assert not rows(first["test"]) & rows(second["train"])


def labels(tmp_path: Any, **told: Any) -> torch.Tensor:
    return (
        items_of(recipe(tmp_path, data={"items": {**DIGITS, "train": 1000, **told}}))
        .splits["train"]
        .items[1]
    )


def test_labels_are_spoiled_as_much_as_told(tmp_path):
    clean = labels(tmp_path)
    assert (labels(tmp_path, noise=0.2) != clean).sum() == 200
    assert torch.equal(labels(tmp_path, parity=True), clean % 2)
    counts = labels(tmp_path, tail=20.0).bincount(minlength=10)
    own = clean.bincount(minlength=10)
    assert counts[0] == own[0]
    assert counts[9] == round(int(own[9]) / 20)
    moved = labels(tmp_path, swapped={"share": 0.5, "classes": [3, 5]})
    changed = moved != clean
    assert set(clean[changed].tolist()) == {3, 5}
    assert torch.equal(moved[changed], torch.where(clean[changed] == 3, 5, 3))
    assert changed.sum() == sum(round(0.5 * int((clean == c).sum())) for c in (3, 5))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"data": {"items": {"name": "digit"}}}, "there is no 'digit'; did you mean 'digits'"),
        ({"data": {"items": {"name": "digits", "trian": 3}}}, "trian"),
        ({"data": {"items": {**DIGITS, "train": 1297}}}, r"1317 examples are wanted .* are 1297"),
        ({"student": {"net": {"kind": "resnet"}}}, r"student\.net\.kind: there is no 'resnet'"),
        ({"student": {"net": {"kind": "mlp", "widths": [0]}}}, r"student\.net\.widths\.0"),
        ({"student": {"net": {"kind": "vit", "patch": 3}}}, "must be a multiple"),
        ({"student": {"lm": {"model_type": "llama"}}}, "goes with data.items"),
        ({"data": {"world": {"name": "addition"}}}, "goes with data.items"),
    ],
)
def test_what_does_not_fit_is_told_before_the_first_step(tmp_path, changes, said):
    with pytest.raises(Failure, match=said):
        build(recipe(tmp_path, **changes))


def test_several_teachers_are_given_as_objects(tmp_path):
    def net(width: int) -> torch.nn.Module:
        return torch.nn.Sequential(torch.nn.Linear(4, width), torch.nn.Linear(width, 3))

    x, y = torch.randn(20, 4), torch.randint(3, (20,))
    with pytest.raises(Failure, match="KD calls teacher, and there is big, small"):
        api.distill(
            "kd",
            student=net(2),
            teacher={"big": net(5), "small": net(3)},
            data=(x, y),
            steps=1,
            out=tmp_path / "run",
        )
