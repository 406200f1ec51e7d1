"""From a recipe to a job: rows and splits, tokenizer, student, ledger."""

import hashlib
import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from stillroom.config.build import Parts, build
from stillroom.config.recipe import make
from stillroom.core import Failure
from stillroom.teachers.local import Local
from stillroom.teachers.recorded import Recorded

ROWS = [{"prompt": f"count {i}:", "completion": " ".join(["x"] * (i % 5 + 1))} for i in range(40)]


@pytest.fixture
def job(tmp_path):
    """Builds a job; ``section={...}`` replaces entries of a section."""
    write(tmp_path / "rows.jsonl", ROWS)
    told: dict[str, Any] = {
        "method": {"name": "seqkd"},
        "student": {"lm": {"model_type": "windowed"}, "vocab_size": 300},
        "teacher": {"recorded": True},
        "data": {"train": "rows.jsonl"},
        "train": {"steps": 1},
        "eval": {"metrics": ["likelihood"]},
        "sampling": {"max_new_tokens": 4},
    }

    def made(parts: Parts | None = None, **sections: Any) -> Any:
        changed = {k: {**v, **sections.get(k, {})} for k, v in told.items()}
        return build(make({**sections, **changed}, folder=tmp_path), parts)

    return made


def write(file: Path, rows: list[dict]) -> None:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def prompts(job: Any, split: str) -> list[str]:
    data = job.streams["train"] if split == "train" else job.suite.splits[split]
    return [example.prompt for example in data.examples]


def test_rows_held_out_are_no_training_rows(job):
    made = job(data={"hold_out": 5})
    splits = {name: prompts(made, name) for name in ("train", "validation", "test")}
    assert {name: len(found) for name, found in splits.items()} == {
        "train": 30,
        "validation": 5,
        "test": 5,
    }
    assert sorted(itertools.chain(*splits.values())) == sorted(row["prompt"] for row in ROWS)


def test_what_is_held_out_depends_on_neither_seed_nor_method(job):
    one, other = (
        job(data={"hold_out": 5}, **more)
        for more in ({}, {"run": {"seed": 7}, "method": {"name": "gad"}, "eval": {"samples": 0}})
    )
    assert prompts(one, "test") == prompts(other, "test")


def test_splits_may_be_files(job, tmp_path):
    write(tmp_path / "v.jsonl", ROWS[:2])
    write(tmp_path / "t.jsonl", ROWS[2:5])
    made = job(data={"validation": "v.jsonl", "test": "t.jsonl"})
    assert prompts(made, "validation") == [row["prompt"] for row in ROWS[:2]]
    assert prompts(made, "test") == [row["prompt"] for row in ROWS[2:5]]
    assert len(prompts(made, "train")) == 40


def test_long_rows_are_left_out_and_counted(job):
    lengths = [len(e.completion_ids) for e in job().streams["train"].examples]
    limit = sorted(lengths)[20]
    made = job(data={"max_completion_tokens": limit})
    assert [len(e.completion_ids) <= limit for e in made.streams["train"].examples].count(
        False
    ) == 0
    dropped = sum(n > limit for n in lengths)
    assert dropped > 0
    assert made.ledger["left_out"] == {"completion too long": dropped}
    assert made.ledger["rows"] == {"train": 40 - dropped}


def test_the_wanted_number_is_held_out_though_long_rows_drop_out(job, tmp_path):
    long = [{"prompt": f"more {i}:", "completion": str(3**200 + i)} for i in range(8)]
    write(tmp_path / "mixed.jsonl", ROWS + long)
    made = job(data={"train": "mixed.jsonl", "hold_out": 6, "max_completion_tokens": 20})
    assert made.ledger["left_out"] == {"completion too long": 8}
    splits = {name: prompts(made, name) for name in ("train", "validation", "test")}
    assert {name: len(found) for name, found in splits.items()} == made.ledger["rows"]
    assert made.ledger["rows"] == {"train": 28, "validation": 6, "test": 6}
    assert len(set(itertools.chain(*splits.values()))) == 40


def test_too_few_short_rows_to_hold_out_are_told(job):
    with pytest.raises(Failure, match=r"data.hold_out: only \d+ of 36 rows .* 12 are wanted"):
        job(data={"hold_out": 12, "max_completion_tokens": 2})


def test_the_ledger_names_files_hashes_and_licence(job, tmp_path):
    made = job(data={"licence": "MIT"})
    digest = hashlib.sha256((tmp_path / "rows.jsonl").read_bytes()).hexdigest()
    assert made.ledger["files"] == [{"file": "rows.jsonl", "rows": 40, "sha256": digest}]
    assert made.ledger["licence"] == "MIT"
    assert made.ledger["left_out"] == {}


def test_the_tokenizer_learns_from_training_rows_alone(job, tmp_path):
    write(tmp_path / "v.jsonl", [{"prompt": "zzzzzzzz", "completion": "qqqqqqqq"}] * 50)
    entries = [
        set(made.suite.renderer.tokenizer.get_vocab())
        for made in (job(), job(data={"validation": "v.jsonl"}))
    ]
    assert entries[0] == entries[1]
    assert not any("zz" in entry or "qq" in entry for entry in entries[1])


def test_any_bytes_can_be_said_with_a_tokenizer_from_the_data(job):
    renderer = job().suite.renderer
    text = "Ünïcode \u2028 \x00 😀\n\ttabs  and   spaces"
    assert renderer.decode(renderer.encode(text)) == text
    assert renderer.stop_ids == (renderer.tokenizer.eos_token_id,)


def test_a_seed_makes_the_student_and_another_another(job):
    one, same, other = (job(run={"seed": s}).student.state_dict() for s in (1, 1, 2))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one)


def test_columns_are_made_from_others(job, tmp_path):
    write(tmp_path / "q.jsonl", [{"q": "why", "a": "so"}, {"q": "how", "a": "thus"}])
    columns = {"prompt": "{{ q }}?", "completion": "{{ a }}."}
    made = job(data={"train": "q.jsonl", "columns": columns})
    assert [(e.prompt, e.answer) for e in made.streams["train"].examples] == [
        ("why?", "so."),
        ("how?", "thus."),
    ]


def test_a_student_and_a_teacher_come_from_folders(job, tmp_path):
    first = job()
    first.student.save(tmp_path / "model")
    first.suite.renderer.tokenizer.save_pretrained(tmp_path / "model")
    told = {"model": str(tmp_path / "model"), "lm": None}
    teacher = {"recorded": False, "model": told["model"]}
    made = job(student=told, teacher=teacher, method={"name": "kd"})
    assert isinstance(first.teachers["teacher"], Recorded)
    assert isinstance(made.teachers["teacher"], Local)
    weights = made.student.state_dict()
    assert all(torch.equal(v, weights[k]) for k, v in first.student.state_dict().items())
    assert not any(p.requires_grad for p in made.teachers["teacher"].network.parameters())
    assert made.suite.renderer.encode("count 3:") == first.suite.renderer.encode("count 3:")


def test_rows_given_as_objects_are_named_by_their_place(job):
    with pytest.raises(Failure, match="data, row 1: the completion is empty"):
        job(Parts(rows=[ROWS[0], {"prompt": "a", "completion": ""}]))


def test_the_recipe_that_is_recorded_tells_every_default(job):
    told = job().recipe
    assert told["train"]["batch"] == 32
    assert told["sampling"] == {
        "temperature": 1.0,
        "top_p": 1.0,
        "top_k": None,
        "max_new_tokens": 4,
    }
