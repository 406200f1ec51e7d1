"""Answers of a recipe's teacher: which rows get them, which are dropped, what ends it early."""

import json
from pathlib import Path

import pytest
from servers import Server
from speakers import Canned, tiny

from stillroom import api
from stillroom.config.build import Parts, build
from stillroom.config.recipe import make
from stillroom.core import Failure

pytest.importorskip("httpx2", reason="the extra 'api' is not installed")
pytestmark = pytest.mark.extra("api")

KEY = "sk-planted-0123456789abcdef"
QUESTIONS = [f"question {i}" for i in range(12)]


def say(prompt):
    return f"so you said {prompt}"


@pytest.fixture
def server():
    with Server(Canned(say)) as running:
        yield running


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    """Makes a recipe over rows; ``teacher`` is told by the test, ``store`` is a folder beside."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)

    def made(rows=None, test=None, **teacher):
        for split, told in (("train", rows), ("test", test)):
            told = [{"prompt": q} for q in QUESTIONS] if told is None else told
            text = "".join(json.dumps(row) + "\n" for row in told)
            Path(f"{split}.jsonl").write_text(text, encoding="utf-8")
        told = {
            "method": {"name": "seqkd"},
            "student": {"lm": {"model_type": "windowed"}, "vocab_size": 300},
            "teacher": {"store": "store", "sampling": {"max_tokens": 12}, **teacher},
            "data": {"train": "train.jsonl", "test": "test.jsonl"},
            "train": {"steps": 2, "batch": 4},
            "eval": {"every": None, "metrics": ["likelihood"], "samples": 0},
            "sampling": {"max_new_tokens": 4},
            "run": {"threads": 1},
        }
        return make(told, folder=tmp_path)

    return made


def asked(server, **more):
    return {"api": "openai:canned", "base_url": server.url, **more}


def pairs(job):
    return [(example.prompt, example.answer) for example in job.streams["train"].examples]


def test_only_rows_without_an_answer_are_asked_and_rows_keep_their_order(recipe, server):
    rows = [
        {"prompt": "a", "completion": "own"},
        {"prompt": "b"},
        {"prompt": "c", "completion": None},
        {"prompt": "d", "completion": "own too"},
    ]
    job = build(recipe(rows=rows, test=rows[:1], **asked(server)))
    assert pairs(job) == [("a", "own"), ("b", say("b")), ("c", say("c")), ("d", "own too")]
    assert server.asked == {"b": 1, "c": 1}


def test_conversations_end_with_the_answer(recipe, server):
    _, tokenizer = tiny()
    turns = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hello"}]
    rows = [{"messages": turns}]
    job = build(recipe(rows=rows, test=rows, **asked(server)), Parts(tokenizer=tokenizer))
    [(prompt, answer)] = pairs(job)
    assert prompt == "<system>be brief\n<user>hello\n<assistant>"
    assert answer.startswith(say("hello"))
    assert server.seen[0][1]["messages"] == turns


def test_dropped_answers_are_left_out_and_counted(recipe):
    def some(prompt):
        return "" if prompt == "mute" else "word " * (20 if prompt == "long" else 2) + "end"

    rows = [{"prompt": p} for p in ("a", "mute", "b", "long")]
    with Server(Canned(some)) as server:
        job = build(recipe(rows=rows, test=rows[:1], **asked(server)))
        assert [prompt for prompt, _ in pairs(job)] == ["a", "b"]
        assert job.ledger["left_out"] == {"answer empty": 1, "answer truncated": 1}
        (told,) = job.ledger["collected"].values()
        assert (told["answered"], told["dropped"]) == (3, {"empty": 1, "truncated": 1})
        job = build(recipe(rows=rows, test=rows[:1], **asked(server, keep_truncated=True)))
        assert [prompt for prompt, _ in pairs(job)] == ["a", "b", "long"]
        assert set(server.asked.values()) == {1}


def test_a_budget_that_is_reached_says_what_is_there_and_a_larger_one_goes_on(recipe, server):
    # the most of a request: 10 or 11 bytes, 256 + 16 of frame, 12 of answer; it tells 10 + 5
    with pytest.raises(Failure, match=r"^teacher: .* of 12 answers are not in the store") as told:
        build(recipe(**asked(server, concurrency=1, budget_tokens=330)))
    assert "the budget is reached: raise it" in str(told.value)
    first = dict(server.asked)
    assert 0 < len(first) < 12
    assert sum(server.tokens.values()) <= 330
    build(recipe(**asked(server, budget_tokens=50_000)))
    assert server.asked == dict.fromkeys(QUESTIONS, 1)


@pytest.mark.parametrize("fault", ["unauthorised", "no model"])
def test_a_fault_that_stays_ends_it_before_a_run_folder_is_made(recipe, server, fault):
    server.faults = {fault: 1.0}
    words = "key in OPENAI_API_KEY" if fault == "unauthorised" else "no model 'canned'"
    with pytest.raises(Failure, match=words) as told:
        api.run(recipe(**asked(server)), Path("run"))
    assert str(told.value).startswith("teacher: ")
    assert KEY not in str(told.value)
    assert not Path("run").exists()


def test_a_model_of_this_process_answers_where_a_store_is_named(recipe):
    model, tokenizer = tiny()
    model.save_pretrained("model")
    tokenizer.save_pretrained("model")
    told = {"model": "model", "sampling": {"temperature": 0.0, "max_tokens": 6}}
    rows = [{"prompt": "to be"}]
    told = recipe(rows=rows, test=rows, keep_truncated=True, **told)
    [(prompt, answer)] = pairs(build(told, Parts(tokenizer=tokenizer)))
    ids = tokenizer("to be", return_tensors="pt").input_ids
    made = model.generate(ids, max_new_tokens=6, do_sample=False)[0, ids.shape[1] :]
    assert (prompt, answer) == ("to be", tokenizer.decode(made, skip_special_tokens=True))
