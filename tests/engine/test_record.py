"""The run folder: whole files, one writer, and differences in words."""

import json
import os
import subprocess
import sys

import pytest
import torch
import yaml

from stillroom.core import Failure
from stillroom.engine import checkpoint
from stillroom.engine.record import Record, environment, flat

BREAKS = "a\u2028b\x85c\x1dd\re"
"""What str.splitlines() takes for ends of lines, and JSON does not."""


def test_lines_come_back_as_they_were(tmp_path):
    record = Record(tmp_path)
    told = [{"step": 1, "text": BREAKS}, {"step": 2, "text": "größer"}]
    for line in told:
        record.line("samples.jsonl", line)
    assert record.lines("samples.jsonl") == told


def test_a_line_that_a_kill_cut_is_left_out(tmp_path):
    record = Record(tmp_path)
    record.line("metrics.jsonl", {"step": 1})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "loss": 0.')
    assert record.lines("metrics.jsonl") == [{"step": 1}]
    assert record.lines("nothing.jsonl") == []


def test_rewinding_drops_what_came_later(tmp_path):
    record = Record(tmp_path)
    for step in (0, 1, 2, 2, 3):
        record.line("metrics.jsonl", {"step": step})
    record.rewind(2)
    assert [line["step"] for line in record.lines("metrics.jsonl")] == [0, 1, 2, 2]
    assert not (tmp_path / "samples.jsonl").exists()


def test_other_processes_write_nothing(tmp_path):
    silent = Record(tmp_path / "run", main=False)
    silent.open({"train": {"steps": 1}})
    silent.json("result.json", {})
    silent.line("metrics.jsonl", {"step": 1})
    silent.rewind(0)
    assert not (tmp_path / "run").exists()


def test_a_file_is_whole_or_as_before(tmp_path, monkeypatch):
    record = Record(tmp_path)
    record.json("result.json", {"a": 1})

    def broken(*_: object) -> None:
        raise OSError("killed")

    monkeypatch.setattr(os, "replace", broken)
    with pytest.raises(OSError, match="killed"):
        record.json("result.json", {"a": 2})
    assert record.read("result.json") == {"a": 1}


def test_the_differences_of_two_recipes_are_named(tmp_path):
    old = {"train": {"steps": 3, "lr": {"student": 0.1}}, "method": {"name": "gad", "group": 8}}
    new = {"train": {"steps": 3, "lr": {"student": 0.2}}, "method": {"name": "gad"}, "about": "x"}
    Record(tmp_path).open(old)
    with pytest.raises(Failure) as refused:
        Record(tmp_path).open(new)
    said = str(refused.value).splitlines()
    assert said[1:3] == [
        "  train.lr.student: was 0.1, is now 0.2",
        "  method.group: was 8, is now 'absent'",
    ]
    assert len(said) == 4


@pytest.mark.parametrize(
    "key", ["about", "arms"], ids=["of the recipe", "of an arm, which repeats it"]
)
def test_what_is_said_about_a_run_may_change(tmp_path, key):
    def told(about: str) -> dict:
        return {"about": about} if key == "about" else {"arms": {"one": {"about": about}}}

    Record(tmp_path).open(told("old"))
    Record(tmp_path).open(told("new"))
    assert yaml.safe_load((tmp_path / "recipe.yaml").read_text()) == told("new")


def test_a_recipe_is_compared_as_yaml_reads_it(tmp_path):
    told = {"lr": 1e-5, "betas": [0.9, 0.99], "none": None, "word": "null", "yes": "yes", "n": "1"}
    Record(tmp_path).open(told)
    Record(tmp_path).open(told)


def test_nested_names_are_joined():
    assert flat({"a": {"b": 1, "c": [2]}, "d": None}) == {"a.b": 1, "a.c": [2], "d": None}


def test_a_folder_that_is_a_file_is_told(tmp_path):
    (tmp_path / "out").write_text("")
    with pytest.raises(Failure, match="is a file"):
        Record(tmp_path / "out").open({})


def test_the_environment_tells_versions_and_threads():
    told = environment()
    asked = subprocess.run(
        [sys.executable, "-c", "import torch; print(torch.__version__)"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert asked.stdout.strip().startswith(told["packages"]["torch"].partition("+")[0])
    assert told["threads"] == 1
    assert told["dtype"] == "float32"
    json.dumps(told)


def test_a_checkpoint_gives_back_what_it_was_given(tmp_path):
    shared = torch.randn(3, 2)
    state = {
        "tied": [shared, shared],
        "ints": {0: torch.tensor(3), 1: torch.tensor([True])},
        "plain": {"betas": [0.9, 0.99], "none": None, "flag": True, "name": "x", "empty": {}},
        "half": torch.randn(4).bfloat16(),
        "turned": torch.randn(2, 3).T,
    }
    found = checkpoint.load(checkpoint.save(tmp_path, 7, state, keep=1))
    assert found["plain"] == state["plain"]
    assert list(found["ints"]) == [0, 1]
    pairs = [
        (found["tied"][0], shared),
        (found["tied"][1], shared),
        (found["ints"][0], state["ints"][0]),
        (found["ints"][1], state["ints"][1]),
        (found["half"], state["half"]),
        (found["turned"], state["turned"]),
    ]
    for ours, theirs in pairs:
        assert ours.dtype == theirs.dtype
        assert torch.equal(ours, theirs)
    assert [checkpoint.step_of(p) for p in checkpoint.saved(tmp_path)] == [7]
