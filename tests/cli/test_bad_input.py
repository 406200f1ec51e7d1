"""What a person can get wrong: one message that names the place and the way out."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from stillroom.cli import main

ROWS = [
    {"prompt": f"please say {i} to me", "completion": f"well, {i} and {i + 1}"} for i in range(8)
]
RECIPE = {
    "method": {"name": "seqkd"},
    "student": {
        "lm": {"model_type": "windowed", "max_position_embeddings": 48},
        "vocab_size": 300,
    },
    "teacher": {"recorded": True},
    "data": {"train": "rows.jsonl"},
    "train": {"steps": 2, "batch": 2},
    "sampling": {"max_new_tokens": 8},
}
GOOD = "\n".join(json.dumps(row) for row in ROWS) + "\n"


@pytest.fixture
def say(monkeypatch, capsys, tmp_path):
    """Gives words to the command line; returns its exit code and what it wrote to stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("STILLROOM_DATA", raising=False)
    monkeypatch.setenv("STILLROOM_DEBUG", "")  # and so put back what --debug sets

    def told(*words: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["stillroom", *words])
        with pytest.raises(SystemExit) as ended:
            main()
        return int(ended.value.code or 0), capsys.readouterr().err

    return told


def changed(base: dict[str, Any], change: dict[str, Any]) -> dict[str, Any]:
    """``base`` with other entries; ``section.key`` reaches inside, None takes the entry out."""
    new = json.loads(json.dumps(base))
    for path, value in change.items():
        *way, last = path.split("/")
        place = new
        for part in way:
            place = place.setdefault(part, {})
        if value is None:
            del place[last]
        else:
            place[last] = value
    return new


def written(folder: Path, change: dict[str, Any], rows: str = GOOD) -> str:
    (folder / "rows.jsonl").write_text(rows, encoding="utf-8")
    (folder / "bad.yaml").write_text(yaml.safe_dump(changed(RECIPE, change)), encoding="utf-8")
    return "bad.yaml"


CHANGES = {
    "unknown key": ({"trian": {}}, ["trian", "did you mean 'train'?"]),
    "unknown key in a section": ({"train/stesp": 3}, ["train.stesp", "did you mean 'steps'?"]),
    "unknown field of a method": (
        {"method": {"name": "gad", "grop": 4}},
        ["method.grop", "did you mean 'group'?"],
    ),
    "unknown key of a schedule": (
        {"train/lr": {"peak": 1e-3, "warmpu": 3}},
        ["train.lr: a schedule has no field 'warmpu'", "did you mean 'warmup'?"],
    ),
    "a stretch that does not say how long": (
        {"train/lr": [{"peak": 1e-3}, {"peak": 1e-4}]},
        ["train.lr", "until which step", "[None, None]"],
    ),
    "stretches that go back": (
        {"train/lr": {"student": [{"peak": 1, "until": 5}, {"peak": 1, "until": 3}, {"peak": 1}]}},
        ["train.lr", "later than the one before", "[5, 3, None]"],
    ),
    "no stretch": ({"train/lr": []}, ["train.lr", "[]"]),
    "unknown key of a player's schedule": (
        {"train/lr": {"student": [{"peak": 1e-3, "untill": 3}]}},
        ["train.lr.student.0.untill", "did you mean 'until'?"],
    ),
    "unknown key in an arm": (
        {"arms": {"other": {"train": {"stesp": 3}}}},
        ["arms.other", "train.stesp", "did you mean 'steps'?"],
    ),
    "unknown size of the student": (
        {"student/lm/hidden_sise": 8},
        ["student.lm", "hidden_sise", "hidden_size"],
    ),
    "wrong type": ({"train/steps": "many"}, ["train.steps", "integer", "'many'"]),
    "wrong type of a rate": (
        {"train/lr": "fast"},
        ["train.lr: must be a list or a mapping or a valid number, got 'fast'"],
    ),
    "text for a number": ({"train/batch": "8"}, ["train.batch", "integer", "'8'"]),
    "a section that is a list": ({"train": [1]}, ["train", "mapping", "[1]"]),
    "a section that is false": ({"eval": False}, ["eval", "mapping", "False"]),
    "arms that are a list": ({"arms": ["gad"]}, ["arms", "mapping", "['gad']"]),
    "a group of one": (
        {"method": {"name": "gad", "group": 1}},
        ["method.group", "greater than or equal to 2", "got 1"],
    ),
    "a share above one": ({"method": {"name": "gad", "warmup": 1.5}}, ["method.warmup", "1.5"]),
    "steps below none": (
        {"train/steps": -1},
        ["train.steps", "greater than or equal to 0", "got -1"],
    ),
    "steps forgotten": ({"train/steps": None}, ["train", "'steps'", "'cpu_seconds'"]),
    "steps and time": ({"train/cpu_seconds": 5.0}, ["train", "either 'steps' or 'cpu_seconds'"]),
    "time for a method in stages": (
        {"train": {"cpu_seconds": 5.0}, "method": {"name": "gad"}},
        ["train.cpu_seconds", "GAD", "train.steps"],
    ),
    "stop by no number": ({"eval/stop": {"nil": 0.1}}, ["eval.stop.nil", "'nil'"]),
    "a size that makes no model": (
        {"student/lm/hidden_size": 7},
        ["student.lm", "hidden_size 7", "num_attention_heads"],
    ),
    "a critic of no such size": (
        {"method": {"name": "gad", "critic": {"layers": 1}}},
        ["critic", "no layers", "num_hidden_layers"],
    ),
    "a mistake in the last arm": (
        {"arms": {"one": {}, "two": {"train": {"lr": {"critic": 1e-3, "default": 1e-3}}}}},
        ["arms.two: train.lr.critic", "the method trains student"],
    ),
    "a name of an arm": ({"arms": {"a/b": {}}}, ["arms.a/b", "letters"]),
    "unknown choice": ({"train/precision": "fp8"}, ["train.precision", "'fp32' or 'bf16'", "fp8"]),
    "unknown dtype": (
        {"student": {"model": "somewhere", "dtype": "fp16"}},
        ["student.dtype", "'float16'", "'fp16'"],
    ),
    "unknown method": ({"method": {"name": "gadd"}}, ["method.name", "'gadd'", "'gad'"]),
    "a method without a name": ({"method": {"group": 4}}, ["method", "name", "stillroom list"]),
    "a module that is not there": ({"method": {"name": "my.own"}}, ["method.name", "'my'"]),
    "unknown metric": (
        {"eval/metrics": ["likelyhood"]},
        ["eval.metrics", "'likelyhood'", "did you mean 'likelihood'?"],
    ),
    "selecting what no metric gives": (
        {"eval": {"metrics": ["likelihood"], "select": "nil"}, "data/hold_out": 1},
        ["eval.select", "'nil'", "did you mean 'nll'?"],
    ),
    "selecting without validation": (
        {"eval": {"metrics": ["likelihood"], "select": "nll"}},
        ["eval.select", "validation", "data.hold_out"],
    ),
    "missing file": ({"data/train": "rose.jsonl"}, ["data", "rose.jsonl", "STILLROOM_DATA"]),
    "no data": ({"data": {}}, ["data.train", "data.world"]),
    "unknown world": (
        {"data": {"world": {"name": "marked_order"}}},
        ["data.world.name", "'marked_order'", "marked_orders"],
    ),
    "unknown option of a world": (
        {"data": {"world": {"name": "marked_orders", "promts": 64}}},
        ["data.world.promts", "did you mean 'prompts'?"],
    ),
    "a world too small": (
        {"data": {"world": {"name": "marked_orders", "prompts": 3}}},
        ["data.world", "prompts", "16", "got 3"],
    ),
    "a choice that is no choice": (
        {"data": {"world": {"name": "marked_orders", "one_style": "no"}}},
        ["data.world.one_style", "'no'"],
    ),
    "too much held out": ({"data/hold_out": 4}, ["data.hold_out", "4", "8 rows"]),
    "held out twice": (
        {"data/hold_out": 1, "data/test": "rows.jsonl"},
        ["data.hold_out", "data.test"],
    ),
    "nothing left": ({"data/max_prompt_tokens": 1}, ["no row is left", "prompt too long", "8"]),
    "prompt beyond the context": (
        {"student/lm/max_position_embeddings": 9},
        ["rows.jsonl, line 1", "context of 9", "data.max_prompt_tokens"],
    ),
    "no room for answers": (
        {"method": {"name": "gad"}, "sampling/max_new_tokens": 47},
        ["rows.jsonl, line 1", "sampling.max_new_tokens", "context of 48"],
    ),
    "no room for the answers that the report shows": (
        {"data/hold_out": 1, "sampling/max_new_tokens": 47},
        ["rows.jsonl, line ", "sampling.max_new_tokens", "context of 48"],
    ),
    "a signal that the teacher lacks": (
        {"method": {"name": "kd"}},
        [
            "KD",
            "sparse (probabilities of some",
            "recorded",
            "fit this teacher: gad, plad, preference, ps_kd, seqkd",
        ],
    ),
    "a teacher asked for the unseen": (
        {"method": {"name": "gkd"}},
        ["GKD", "topk (the k largest", "fit"],
    ),
    "two students": (
        {"student/model": "somewhere"},
        ["student", "one of 'model'", "'lm'", "got model, lm"],
    ),
    "no student": ({"student": {}}, ["student", "'model'", "'lm'"]),
    "two teachers": (
        {"teacher/model": "somewhere"},
        ["teacher", "one of recorded", "got recorded, model"],
    ),
    "unknown architecture": (
        {"student/lm/model_type": "lama"},
        ["student.lm.model_type", "'lama'"],
    ),
    "a teacher that is not there": (
        {"teacher": {"model": "./nowhere"}},
        ["teacher.model", "./nowhere"],
    ),
    "a model that is not there": (
        {"student": {"model": "./nowhere", "tokenizer": "./nowhere"}},
        ["student", "./nowhere"],
    ),
    "a rate for no player": (
        {"train/lr": {"student": 1e-3}, "method": {"name": "gad"}},
        ["train.lr", "'critic'", "train.lr.critic", "train.lr.default"],
    ),
    "a rate for a player that is not there": (
        {"train/lr": {"studnet": 1e-3, "default": 1e-4}, "method": {"name": "gad"}},
        ["train.lr.studnet", "critic, student", "did you mean 'student'?"],
    ),
    "clipping a player that is not there": (
        {"train/clip": {"critic": 1.0}},
        ["train.clip.critic", "student"],
    ),
    "a template of a column that is not there": (
        {"data/columns": {"prompt": "{{ question }}"}},
        ["data.columns", "question", "prompt"],
    ),
    "a template that does not parse": (
        {"data/columns": {"prompt": "{{ prompt"}},
        ["data.columns", "end of print statement"],
    ),
}


@pytest.mark.parametrize("what", CHANGES)
def test_a_bad_recipe(tmp_path, say, what):
    change, told = CHANGES[what]
    assert_helps(say("run", written(tmp_path, change), "--out", "out"), told)
    assert not list(tmp_path.glob("out/**/metrics.jsonl")), "it fails before the first step"


FILES = {
    "empty line": (GOOD + "\n" + GOOD, ["rows.jsonl, line 9", "empty"]),
    "malformed line": (
        GOOD + '{"prompt": "a",\n',
        ["rows.jsonl, line 9", "not valid JSON", "column"],
    ),
    "a line that is no object": ('["a"]\n', ["rows.jsonl, line 1", "object", "list"]),
    "no rows": ("", ["rows.jsonl", "no rows"]),
    "no completion": ('{"prompt": "a"}\n', ["rows.jsonl, line 1", "'completion'", "data.columns"]),
    "a number for a prompt": (
        GOOD + '{"prompt": 3, "completion": "b"}\n',
        ["rows.jsonl, line 9", "'prompt'"],
    ),
    "nothing supervised": (
        GOOD + '{"prompt": "a", "completion": ""}\n',
        ["rows.jsonl, line 9", "completion is empty", "no token is supervised"],
    ),
    "no prompt": (
        GOOD + '{"prompt": "", "completion": "b"}\n',
        ["rows.jsonl, line 9", "prompt has no token"],
    ),
    "messages that end with the user": (
        '{"messages": [{"role": "user", "content": "a"}]}\n',
        ["rows.jsonl, line 1", "messages", "assistant"],
    ),
    "messages without a template": (
        json.dumps({"messages": [{"role": r, "content": "a"} for r in ("user", "assistant")]}),
        ["rows.jsonl, line 1", "chat template"],
    ),
    "one row beyond the context": (
        GOOD + json.dumps({"prompt": "far " * 50, "completion": "b"}) + "\n",
        ["rows.jsonl, line 9", "context of 48", "data.max_prompt_tokens"],
    ),
}


@pytest.mark.parametrize("what", FILES)
def test_a_bad_data_file(tmp_path, say, what):
    rows, told = FILES[what]
    assert_helps(say("run", written(tmp_path, {}, rows), "--out", "out"), told)


WORDS = {
    "unknown recipe": (["run", "quikstart"], ["'quikstart'", "did you mean 'quickstart'?"]),
    "a folder for a recipe": (["run", "."], ["'.'", "YAML file"]),
    "a change without =": (["run", "bad.yaml", "train.steps"], ["train.steps", "key=value"]),
    "a change of nothing": (["run", "bad.yaml", "train.stesp=3"], ["train.stesp", "'steps'"]),
    "a change inside a number": (["run", "bad.yaml", "train.steps.x=3"], ["train.steps", "2"]),
    "a change that is no YAML": (["run", "bad.yaml", "train.lr={peak: 1"], ["train.lr", "YAML"]),
    "show of nothing": (["show", "gadd"], ["'gadd'", "did you mean 'gad'?", "stillroom list"]),
    "check of nothing": (["check", "quikstart"], ["'quikstart'", "'quickstart'"]),
    "report of nothing": (["report", "nowhere"], ["nowhere", "no run folder"]),
    "an access that is none": (
        ["list", "--teacher", "logit"],
        ["'logit'", "did you mean 'logits'?"],
    ),
    "a family that is none": (["list", "--family", "logit"], ["--family", "'logit'", "'logits'"]),
    "a modality that is none": (["list", "--modality", "txt"], ["--modality", "'txt'", "'text'"]),
    "a folder that is a file": (
        ["run", "bad.yaml", "--out", "rows.jsonl"],
        ["rows.jsonl", "--out"],
    ),
}


@pytest.mark.parametrize("what", WORDS)
def test_bad_words(tmp_path, say, what):
    words, told = WORDS[what]
    written(tmp_path, {})
    assert_helps(say(*words), told)


BYTES = {
    "YAML that does not parse": (b"train: {steps: 3\n", ["bad.yaml", "YAML", "line 2"]),
    "a key that stands twice": (b"name: a\nname: b\n", ["bad.yaml", "'name'", "twice", "line 2"]),
    "YAML that is a list": (b"- train\n", ["bad.yaml", "mapping", "list"]),
    "an empty recipe": (b"", ["bad.yaml", "mapping"]),
    "a recipe that is not text": (b"about: \xff\xfe\n", ["bad.yaml", "UTF-8"]),
}


@pytest.mark.parametrize("what", BYTES)
def test_a_recipe_that_is_none(tmp_path, say, what):
    text, told = BYTES[what]
    (tmp_path / "bad.yaml").write_bytes(text)
    assert_helps(say("run", "bad.yaml"), told)


def test_data_that_are_not_text(tmp_path, say):
    recipe = written(tmp_path, {})
    (tmp_path / "rows.jsonl").write_bytes(GOOD.encode() + b'{"prompt": "\xff"}\n')
    assert_helps(say("run", recipe), ["rows.jsonl", "UTF-8"])


def test_every_mistake_of_a_section_is_told_at_once(tmp_path, say):
    recipe = written(tmp_path, {"train": {"steps": -1, "batch": "x", "lrr": 1}})
    assert_helps(say("run", recipe), ["train.steps", "train.batch", "train.lrr"])


def test_check_finds_what_run_would(tmp_path, say):
    change = {"train/lr": {"student": 1e-3}, "method": {"name": "gad"}}
    assert_helps(say("check", written(tmp_path, change)), ["train.lr", "'critic'"])


def test_debug_shows_where(tmp_path, say):
    recipe = written(tmp_path, {"train/steps": -1})
    code, told = say("--debug", "run", recipe)
    assert code == 2
    assert "Traceback" in told
    assert "train.steps" in told.splitlines()[-1]


def test_the_base_of_this_table_is_good(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["stillroom", "check", written(tmp_path, {})])
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code
    assert "Everything fits" in capsys.readouterr().out


def assert_helps(said: tuple[int, str], fragments: list[str]) -> None:
    code, text = said
    assert code == 2
    assert text.startswith("error: "), text
    assert [f for f in fragments if f not in text] == [], text
    assert "Traceback" not in text
    assert "stillroom itself" not in text
