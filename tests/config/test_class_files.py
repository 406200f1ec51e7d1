"""Recipes on rows of files and folders of images, and views of what they hold."""

from __future__ import annotations

import json
from typing import Any

import pytest

from stillroom import api
from stillroom.config.build import build
from stillroom.config.items import items_of
from stillroom.config.recipe import make
from stillroom.config.taught import _own
from stillroom.core import Failure
from stillroom.data.views import Views


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("STILLROOM_CACHE", str(tmp_path / "cache"))


def recipe(folder: Any, data: Any, **changes: Any) -> Any:
    net = {"net": {"kind": "mlp", "widths": [4]}}
    told: dict[str, Any] = {
        "method": "kd",
        "student": net,
        "teacher": {"trained": {"student": net, "steps": 2}},
        "data": data,
        "train": {"steps": 2, "batch": 4, "lr": 0.01},
        "eval": {"every": None, "metrics": ["accuracy", "selective"], "samples": 0},
        "run": {"threads": 1},
    }
    return make({**told, **changes}, folder=folder)


def rows(folder: Any) -> None:
    told = [{"a": i, "b": i % 5, "kind": "xyz"[i % 3]} for i in range(30)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in told))


TABLE = {"train": "rows.jsonl", "hold_out": 6}
COLUMNS = {"name": "rows", "inputs": ["a", "b"], "target": "kind"}


def test_a_recipe_on_rows_finds_them_beside_it_and_keeps_the_names(tmp_path):
    rows(tmp_path)
    done = api.run(recipe(tmp_path, {**TABLE, "items": COLUMNS}), tmp_path / "run")
    told = json.loads((done.folder / "result.json").read_text())["data"]
    assert told["classes"] == ["x", "y", "z"]
    assert told["rows"] == {"test": 6, "train": 18, "validation": 6}
    assert [f["file"] for f in told["files"] if f["rows"] == 18] == ["rows.jsonl"]
    assert set(done.table[-1]["values"]) >= {"accuracy"}


def test_a_recipe_on_a_folder_of_images(tmp_path):
    image = pytest.importorskip("PIL.Image")
    for name, colour in {"dark": 20, "light": 200}.items():
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for i in range(8):
            image.new("L", (5, 5), colour + i).save(tmp_path / "pictures" / name / f"{i}.png")
    items = {"name": "folder", "size": [4, 4], "grey": True}
    views = {"shift": 1, "mixup": True, "teacher": "own"}
    data = {"train": "pictures", "hold_out": 3, "items": items, "views": views}
    done = api.run(recipe(tmp_path, data), tmp_path / "run")
    told = json.loads((done.folder / "result.json").read_text())["data"]
    assert told["classes"] == ["dark", "light"]
    assert told["rows"] == {"test": 3, "train": 10, "validation": 3}


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({"items": COLUMNS}, r"data\.train: name a file of rows, or a folder of images"),
        ({"train": "absent.jsonl", "items": COLUMNS}, r"data\.train: there is no file absent"),
        ({**TABLE, "items": {"name": "rows"}}, r"data\.items: inputs: give columns of numbers"),
        ({**TABLE, "items": {**COLUMNS, "inputs": ["c"]}}, "there is no column 'c'"),
        ({**TABLE, "items": COLUMNS, "views": {"flip": True}}, r"move places, .* are \[2\]"),
        (
            {**TABLE, "items": COLUMNS, "views": {"mix": True}},
            r"data\.views\.mix: Views has no such field",
        ),
        ({**TABLE, "items": COLUMNS, "views": {"scale": 1}}, r"data\.views\.scale: must be less"),
    ],
)
def test_what_does_not_fit_is_told_before_the_first_step(tmp_path, data, said):
    rows(tmp_path)
    with pytest.raises(Failure, match=said):
        api.run(recipe(tmp_path, data), tmp_path / "run")


def test_views_are_those_of_the_recipe_and_a_teacher_has_its_own(tmp_path):
    rows(tmp_path)
    told = recipe(
        tmp_path, {**TABLE, "items": COLUMNS, "views": {"noise": 0.1, "teacher": "clean"}}
    )
    assert build(told).views == Views(noise=0.1, teacher="clean")
    assert told.resolved()["data"]["views"]["noise"] == 0.1
    assert told.teacher.trained is not None
    assert _own(told, told.teacher.trained).data.views is None
    own = {"student": {"net": {"kind": "mlp"}}, "steps": 1, "data": {"views": {"noise": 0.2}}}
    other = recipe(tmp_path, {**TABLE, "items": COLUMNS}, teacher={"trained": own})
    assert build(other, ready=False).views is None
    assert other.teacher.trained is not None
    assert _own(other, other.teacher.trained).data.views == Views(noise=0.2)


def test_a_set_that_brings_its_own_examples_reads_no_file(tmp_path):
    pytest.importorskip("sklearn")
    told = recipe(tmp_path, {"items": {"name": "sklearn", "set": "iris"}})
    assert items_of(told).splits["train"].shape == (4,)
    assert items_of(told).files[0]["file"] == "sklearn:train"
