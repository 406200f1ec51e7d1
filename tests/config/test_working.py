"""What a pipeline works with: rows set aside, adapters, recorded answers, refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from stillroom.api import run
from stillroom.config.build import build
from stillroom.config.recipe import read
from stillroom.core import Failure
from stillroom.engine.training import train

SIZES = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
ROWS, HELD = 40, 6


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Writes a recipe of REDI on recorded answers, a right and a wrong one a question."""
    monkeypatch.setenv("STILLROOM_CACHE", str(tmp_path / "cache"))
    told = [(i % 10, i // 10) for i in range(ROWS)]
    rows = [
        {"prompt": f"{a}+{b}=", "completion": f"{a + b}", "gold": a + b,
         "completions": [f"it is {a + b}", f"it is {a + b + 1}"]}
        for a, b in told
    ]  # fmt: skip
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "rows.jsonl").write_text(text, encoding="utf-8")
    base: dict[str, Any] = {
        "pipeline": {"name": "redi", "n": 2},
        "student": {
            "lm": {"model_type": "llama", **SIZES, "num_attention_heads": 2},
            "vocab_size": 300,
            "tokenizer": "from-data",
        },
        "teacher": {"recorded": True},
        "data": {"train": "rows.jsonl", "hold_out": HELD},
        "verify": {"kind": "numeric"},
        "train": {"steps": 4, "batch": 8, "lr": 0.01},
        "eval": {"every": None, "metrics": ["verified"], "samples": 1},
        "sampling": {"max_new_tokens": 6, "temperature": 0.0},
        "run": {"threads": 1},
    }

    def made(**changes: Any) -> Any:
        file = tmp_path / "recipe.yaml"
        file.write_text(yaml.safe_dump({**base, **changes}), encoding="utf-8")
        return read(str(file))

    return made


def test_rows_that_were_set_aside_are_neither_asked_about_nor_learned(recipe: Any) -> None:
    limited = {"train": "rows.jsonl", "hold_out": HELD, "max_prompt_tokens": 64}
    job = build(recipe(data=limited))
    asked, checked, pairs, taught = job.ledger["pipeline"]
    assert asked["answers"] == 2 * (ROWS - 3 * HELD)  # a third share, where limits may drop rows
    assert (checked["right"], pairs["pairs"], taught["rows"]) == (asked["answers"] // 2,) * 3
    data: Any = job.streams["train"]
    assert len(data) == taught["rows"]
    assert job.suite is not None
    held: Any = [e.prompt for s in ("validation", "test") for e in job.suite.splits[s].examples]
    assert len(held) == 2 * HELD
    assert not set(held) & {e.prompt for e in data.examples}


def test_a_lesson_goes_on_with_the_adapter_of_the_one_before(recipe: Any, tmp_path: Path) -> None:
    pytest.importorskip("peft", reason="the extra 'lora' is not installed")
    plain = recipe(pipeline=None, method="seqkd")
    train(build(plain), tmp_path / "base")
    told = {"model": str(tmp_path / "base" / "student"), "lora": {"rank": 2}}
    done = run(recipe(student=told), tmp_path / "out")
    assert (done.folder / "student" / "adapter" / "adapter_model.safetensors").is_file()
    (lesson,) = (tmp_path / "cache" / "stages").glob("lesson-*/student/adapter")
    assert lesson.is_dir()


def test_recorded_answers_answer_nothing_else(recipe: Any) -> None:
    told = recipe(pipeline={"name": "undo", "rounds": 1})
    with pytest.raises(Failure, match="asked 'answer_given': the teacher's answers are recorded"):
        build(told)


def test_a_way_to_check_answers_must_be_told(recipe: Any) -> None:
    with pytest.raises(Failure, match="verify: say how an answer is checked"):
        build(recipe(verify=None))


def test_a_pipeline_needs_a_number_of_steps(recipe: Any) -> None:
    with pytest.raises(Failure, match=r"train\.steps: a pipeline parts them"):
        build(recipe(train={"cpu_seconds": 3.0, "lr": 0.01}))


def test_a_template_that_is_not_there_is_named(recipe: Any) -> None:
    told = recipe(
        pipeline={"name": "redi", "templates": {"answer": "nowhere.jinja"}},
        teacher={"world": True},
        student={"lm": {"model_type": "llama", **SIZES, "num_attention_heads": 2}},
        data={"world": {"name": "chains", "rows": 16, "held": 8}},
    )
    with pytest.raises(
        Failure, match=r"asked 'answer': templates\.answer: nowhere\.jinja: .*No such"
    ):
        build(told)
