"""Recipes whose teacher writes the answers: through the store, once, and then without a server."""

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml
from servers import Server
from speakers import Canned, tiny

from stillroom.cli import main
from stillroom.config.build import Parts, build
from stillroom.config.recipe import read
from stillroom.failures import Failure

pytest.importorskip("httpx2", reason="the extra 'api' is not installed")
pytestmark = pytest.mark.extra("api")

KEY = "sk-planted-0123456789abcdef"


def say(prompt: str) -> str:
    return "" if prompt.endswith("3 to me") else f"well, {prompt}"


@pytest.fixture
def server(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("STILLROOM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("STILLROOM_DEBUG", "")
    monkeypatch.delenv("STILLROOM_DATA", raising=False)
    with Server(Canned(say)) as running:
        yield running


def written(teacher: dict[str, Any], rows: list[dict[str, Any]] | None = None, **more: Any) -> str:
    rows = rows or [{"prompt": f"please say {i} to me"} for i in range(8)]
    Path("rows.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    sizes = {"model_type": "windowed", "max_position_embeddings": 128}
    told = {
        "method": "seqkd",
        "student": {"lm": sizes, "vocab_size": 300},
        "teacher": {"store": "store", **teacher},
        "data": {"train": "rows.jsonl"},
        "train": {"steps": 2, "batch": 2},
        "sampling": {"max_new_tokens": 8},
        **more,
    }
    Path("told.yaml").write_text(yaml.safe_dump(told), encoding="utf-8")
    return "told.yaml"


def api(server: Server, **more: Any) -> dict[str, Any]:
    return {"api": "openai:canned", "base_url": server.url, **more}


def texts(job: Any) -> list[tuple[str, str]]:
    return [(e.prompt, e.answer) for e in job.streams["train"].examples]


def test_rows_without_completion_get_the_teachers_and_the_server_may_go(server):
    told = read(written(api(server)))
    first = build(told)
    wanted = [(f"please say {i} to me", f"well, please say {i} to me") for i in range(8) if i != 3]
    assert texts(first) == wanted
    assert first.ledger["left_out"] == {"answer empty": 1}
    assert set(server.asked.values()) == {1}
    assert (first.teachers["teacher"].signals, first.teachers["teacher"].fresh) == ({"text"}, False)
    server.faults = {"broken": 1.0}
    again = build(told)
    assert texts(again) == wanted
    assert again.ledger == first.ledger  # else the run could not be taken up
    assert sum(server.asked.values()) == 8


def test_all_in_the_store_needs_no_key(server, monkeypatch):
    told = read(written(api(server)))
    build(told)
    monkeypatch.delenv("OPENAI_API_KEY")
    monkeypatch.setenv("NO_PROXY", "*")
    assert len(texts(build(told))) == 7


def test_answers_that_the_data_hold_are_not_asked_for(server):
    rows = [{"prompt": "a", "completion": "mine"}, {"prompt": "b"}, {"prompt": "c"}]
    job = build(read(written(api(server), rows)))
    assert texts(job) == [("a", "mine"), ("b", "well, b"), ("c", "well, c")]
    assert server.asked == Counter("bc")


def test_held_out_rows_have_answers_too(server):
    recipe = written(api(server), data={"train": "rows.jsonl", "hold_out": 2})
    job = build(read(recipe))
    assert len(texts(job)) == 3
    assert job.ledger["rows"] == {"train": 3, "validation": 2, "test": 2}


def test_a_recipe_may_say_how_and_at_what_price(server):
    told = api(
        server, endpoint="completions", sampling={"max_tokens": 9, "temperature": 0.5},
        budget_usd=0.5, price=[1.0, 2.0],
    )  # fmt: skip
    build(read(written(told)))
    assert {body["max_tokens"] for _, body in server.seen} == {9}
    assert all("prompt" in body for _, body in server.seen)


def test_check_asks_nobody(server):
    told = read(written(api(server)))
    with pytest.raises(Failure, match="'not asked yet': 8"):
        build(told, Parts(ask=False))
    assert server.asked == Counter()
    build(told)
    assert len(texts(build(told, Parts(ask=False)))) == 7


WRONG = {
    "a budget that is reached": (
        {"budget_tokens": 200, "sampling": {"max_tokens": 9}}, "budget is reached",
    ),
    "no store": ({"store": None}, "teacher.store"),
    "a budget without a limit": ({"budget_tokens": 600}, "teacher.sampling.max_tokens"),
    "dollars without a price": (
        {"budget_usd": 1.0, "sampling": {"max_tokens": 9}}, "teacher.price",
    ),
    "another variable": ({"key_env": "NO_SUCH_KEY"}, "NO_SUCH_KEY"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_what_keeps_a_recipe_from_its_answers_is_told(server, case):
    change, words = WRONG[case]
    with pytest.raises(Failure, match=words):
        build(read(written(api(server, **change))))


def test_a_question_that_fails_each_time_ends_the_run_before_it_begins(server):
    server.faults = {"rejected": 0.4}
    with pytest.raises(Failure, match=r"of 8 answers are not in the store.*HTTP 400"):
        build(read(written(api(server))))


def test_a_password_in_the_address_is_refused_and_not_said(server):
    recipe = written(api(server) | {"base_url": "http://me:hidden@127.0.0.1/v1"})
    with pytest.raises(Failure, match="base URL") as told:
        read(recipe)
    assert "hidden" not in str(told.value)


def test_a_model_in_this_process_writes_answers_where_a_store_is_named(server):
    model, tokenizer = tiny()
    model.save_pretrained("model")
    tokenizer.save_pretrained("model")
    told = {"model": "model", "sampling": {"max_tokens": 5, "temperature": 0.0}}
    job = build(read(written({**told, "keep_truncated": True})))
    assert len(texts(job)) == 8
    assert all(answer for _, answer in texts(job))
    with pytest.raises(Failure, match="'completion'"):
        build(read(written({"model": "model", "store": None})))


@pytest.mark.slow
def test_a_run_from_the_store_with_the_server_gone_leaves_no_key_anywhere(server, monkeypatch):
    def tell(*words: str) -> int:
        monkeypatch.setattr(sys, "argv", ["stillroom", *words])
        with pytest.raises(SystemExit) as ended:
            main()
        return int(ended.value.code or 0)

    recipe = written(api(server))
    places = ["--store", "store", "--out", "answers.jsonl"]
    asked = ["--teacher", "openai:canned", "--base-url", server.url]
    assert tell("collect", "rows.jsonl", *asked, *places) == 0
    server.faults = {"broken": 1.0}
    assert tell("run", recipe, "--out", "run") == 0
    assert tell("run", recipe, "--out", "run") == 0  # finished, and taken for the same
    assert sum(server.asked.values()) == 8
    report = Path("run/report.html").read_text(encoding="utf-8")
    assert "canned" in report
    held = [p for p in Path().rglob("*") if p.is_file() and KEY.encode() in p.read_bytes()]
    assert held == []
    card = next(Path("run").rglob("README.md")).read_text(encoding="utf-8")
    assert "How the answers in" in card
