"""Three answers make a recipe that builds."""

import json
from pathlib import Path

import pytest
import yaml
from speakers import tiny
from typer.testing import CliRunner

from stillroom.cli.main import app
from stillroom.config.build import Parts, build
from stillroom.config.recipe import read
from stillroom.core import Failure

ROWS = [{"prompt": f"say {i}", "completion": f" {i} it is"} for i in range(40)]


@pytest.fixture(autouse=True)
def place(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("STILLROOM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("OPENAI_API_KEY", "sk-never-written")
    model, tokenizer = tiny()
    model.save_pretrained("model")
    tokenizer.save_pretrained("model")
    write("rows.jsonl", ROWS)
    write("asked.jsonl", [{"prompt": row["prompt"]} for row in ROWS])


def write(name, rows):
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def begun(*words, **more):
    return CliRunner().invoke(app, ["init", *words], catch_exceptions=False, **more)


def test_it_asks_three_things():
    said = begun(input="recorded\nrows.jsonl\nmodel\n")
    assert said.exit_code == 0
    assert [said.output.count(f"{name}: ") for name in ("Teacher", "Data", "Student")] == [1] * 3
    assert "stillroom check recipe.yaml" in said.output
    told = read("recipe.yaml")
    assert set(told.arms) == {"seqkd", "gad"}
    assert told.data.hold_out == 4


@pytest.mark.parametrize(
    ("teacher", "data", "arms"),
    [
        ("recorded", "rows.jsonl", {"seqkd", "gad"}),
        ("model", "rows.jsonl", {"seqkd", "kd", "gkd"}),
        ("openai:wise@http://127.0.0.1:1/v1", "asked.jsonl", {"seqkd", "gad"}),
        ("topk:model@http://127.0.0.1:1/v1", "rows.jsonl", {"seqkd", "kd", "gkd"}),
    ],
)
@pytest.mark.parametrize("student", ["model", "tiny"])
def test_each_access_gives_a_recipe_whose_arms_build(teacher, data, arms, student):
    if teacher.startswith("topk:") or teacher == "model":
        student = "model"  # a new one has its own words
    begun("mine.yaml", "--teacher", teacher, "--data", data, "--student", student)
    told = read("mine.yaml", ["sampling.max_new_tokens=8"])
    assert set(told.arms) == arms
    text = Path("mine.yaml").read_text(encoding="utf-8")
    assert "sk-never-written" not in text
    assert yaml.safe_load(text)["data"]["train"] == data
    for arm in told.arms.values():
        if not (arm.teacher.api and arm.teacher.signals is None):  # its answers are not there yet
            build(arm, Parts(ask=False))


def test_what_does_not_fit_is_said_and_nothing_is_written():
    for words, says in (
        (["--teacher", "recorded", "--data", "asked.jsonl"], "no 'completion'"),
        (["--teacher", "topk:model", "--data", "rows.jsonl"], "needs its address"),
        (["--teacher", "recorded", "--data", "absent.jsonl"], r"no file absent\.jsonl"),
    ):
        with pytest.raises(Failure, match=says):
            begun("mine.yaml", *words, "--student", "tiny")
        assert not Path("mine.yaml").exists()
    Path("mine.yaml").write_text("mine: true\n", encoding="utf-8")
    with pytest.raises(Failure, match="--force"):
        begun("mine.yaml", "--teacher", "recorded", "--data", "rows.jsonl", "--student", "tiny")
    assert Path("mine.yaml").read_text(encoding="utf-8") == "mine: true\n"
