"""Several teachers by name: a column of the data says which one a row has."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from speakers import tiny

from stillroom import api
from stillroom.config.build import build
from stillroom.config.recipe import make
from stillroom.core import Failure
from stillroom.reports import words
from stillroom.teachers.routed import Routed

SIZES = {"model_type": "windowed", "max_position_embeddings": 128}
ROWS = [
    {"prompt": f"say {i}", "completion": f" {i} it is", "who": "wise" if i % 3 else "wild"}
    for i in range(9)
]
TWO = {"wild": {"model": "wild"}, "wise": {"model": "wise"}}


@pytest.fixture(autouse=True)
def place(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("STILLROOM_CACHE", str(tmp_path / "cache"))
    model, tokenizer = tiny()
    for seed, name in enumerate(TWO):
        torch.manual_seed(seed)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 0.3 * torch.randn_like(parameter)
        model.save_pretrained(name)
        tokenizer.save_pretrained(name)
    write(ROWS)


def write(rows):
    Path("rows.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")


def recipe(method: Any = "kd", teachers: Any = None, **more: Any) -> Any:
    told = {
        "method": method,
        "student": {"lm": SIZES, "tokenizer": "wild"},
        "teachers": TWO if teachers is None else teachers,
        "data": {"train": "rows.jsonl", "route": "who"},
        "sampling": {"max_new_tokens": 6},
        "eval": {"every": None, "samples": 0},
        "train": {"steps": 2, "batch": 4, "lr": 0.01},
        **more,
    }
    return make({k: v for k, v in told.items() if v is not None}, folder=Path())


def test_each_row_learns_from_its_own():
    job = build(recipe())
    routed = job.teachers["teacher"]
    assert isinstance(routed, Routed)
    batch = job.streams["train"].batch(range(9))
    said = routed(batch).logits
    for i, row in enumerate(ROWS):
        part = batch.part(i, i + 1)
        own = routed.teachers[row["who"]](part)
        wanted = own.head.logits(own.hidden)
        torch.testing.assert_close(said[batch.owner == i], wanted, rtol=1e-4, atol=1e-4)
        other = routed.teachers["wise" if row["who"] == "wild" else "wild"](part)
        assert (other.head.logits(other.hidden) - wanted).abs().max() > 0.1


def test_a_run_on_its_own_answers_and_on_stored_scores(tmp_path):
    api.run(recipe("gkd"), tmp_path / "own")
    told = recipe().resolved()
    assert words.teachers(told) == "wild: wild; wise: wise"
    kept = {k: {**v, "signals": "topk:9", "store": f"store-{k}"} for k, v in TWO.items()}
    first = api.run(recipe({"name": "kd", "temperature": 1.0}, kept), tmp_path / "a")
    for spec in kept.values():
        spec.pop("model")
    again = api.run(recipe({"name": "kd", "temperature": 1.0}, kept), tmp_path / "b")
    states = [dict(x.student.state_dict()) for x in (first, again)]
    assert all(torch.equal(states[0][k], states[1][k]) for k in states[0])


def test_what_is_resolved_can_be_made_again():
    told = recipe().resolved()
    assert make(told, folder=Path()).resolved() == told
    assert "teacher" not in told


def test_bad_words_are_refused_before_anything_is_loaded():
    with pytest.raises(Failure, match=r"teachers: give either it, several by name, or 'teacher'"):
        recipe(teacher={"recorded": True})
    with pytest.raises(Failure, match=r"KD calls teacher, and there is wild, wise; .*data\.route"):
        recipe(data={"train": "rows.jsonl"})
    with pytest.raises(Failure, match=r"teachers\.wild\.modle"):
        recipe(teachers={"wild": {"modle": "x"}, "wise": {"model": "wise"}})
    with pytest.raises(Failure, match=r"teachers\.wise: teacher\.model: "):
        build(recipe(teachers={"wild": {"model": "wild"}, "wise": {"model": "./nowhere"}}))
    write([*ROWS, {"prompt": "a", "completion": "b", "who": "nobody"}])
    with pytest.raises(Failure, match=r"line 10: 'who' must name one of .*got 'nobody'"):
        build(recipe())
    write([{k: v for k, v in row.items() if k != "who"} for row in ROWS])
    with pytest.raises(Failure, match="got None"):
        build(recipe())
    with pytest.raises(Failure, match="there is none: give teachers"):
        build(recipe(teachers={}, teacher={"recorded": True}, method="seqkd"))
