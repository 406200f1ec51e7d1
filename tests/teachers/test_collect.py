"""``stillroom collect`` in one process: what it writes, what it says, what it refuses."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from servers import Server
from speakers import Canned, tiny

from stillroom.cli import main
from stillroom.data.forms import shaped
from stillroom.data.rows import read_rows
from stillroom.store.answers import FILE, Store

pytest.importorskip("httpx2", reason="the extra 'api' is not installed")
pytestmark = pytest.mark.extra("api")

KEY = "sk-planted-0123456789abcdef"


def say(prompt: str) -> str:
    """Some prompts get an empty answer, some one of more than 8 words."""
    if prompt.endswith("3"):
        return ""
    return " ".join(["word"] * 12) if prompt.endswith("5") else f"so {prompt}"


@pytest.fixture
def server():
    with Server(Canned(say)) as running:
        yield running


@pytest.fixture
def tell(monkeypatch, capsys, tmp_path):
    """Gives words to ``stillroom collect``; returns its exit code, output and errors."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("STILLROOM_DEBUG", "")

    def told(url: str, *words: str, rows: Any = None) -> tuple[int, str, str]:
        made = [{"prompt": f"q{i}", "level": i} for i in range(10)] if rows is None else rows
        Path("rows.jsonl").write_text("".join(json.dumps(r) + "\n" for r in made), encoding="utf-8")
        given = ["--teacher", "openai:canned", "--base-url", url] if url else []
        places = ["--store", "store", "--out", "out.jsonl"]
        monkeypatch.setattr(
            sys, "argv", ["stillroom", "collect", "rows.jsonl", *given, *places, *words]
        )
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out, err

    return told


def lines(name: str = "out.jsonl") -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(name).read_text(encoding="utf-8").splitlines()]


def ledger() -> dict[str, Any]:
    return json.loads(Path("out.jsonl.ledger.json").read_text(encoding="utf-8"))


def test_rows_come_in_order_with_their_columns_and_drops_are_told(tell, server):
    code, out, err = tell(server.url, "--max-tokens", "8")
    assert code == 0
    wanted = [i for i in range(10) if i not in (3, 5)]
    assert lines() == [{"prompt": f"q{i}", "level": i, "completion": f"so q{i}"} for i in wanted]
    told = ledger()
    assert (told["questions"], told["answered"], told["left"]) == (10, 8, 0)
    assert told["dropped"] == {"empty": 1, "truncated": 1}
    assert lines("out.jsonl.dropped.jsonl") == [
        {"row": "rows.jsonl, line 4", "copy": 0, "kind": "empty",
         "why": "the answer is empty (it ended by stop)"},
        {"row": "rows.jsonl, line 6", "copy": 0, "kind": "truncated",
         "why": "the answer met its limit of tokens"},
    ]  # fmt: skip
    assert "10 to ask" in err
    assert "price: not known" in err
    assert "8 answers to 10 questions" in out
    assert "$" not in out
    tokens = {"prompt_tokens": server.tokens["prompt"], "answer_tokens": server.tokens["answer"]}
    assert told["cost"] == tokens


def test_all_in_the_store_needs_no_server_and_no_key(tell, server, monkeypatch):
    tell(server.url, "--max-tokens", "8")
    first = Path("out.jsonl").read_bytes()
    Path("out.jsonl").unlink()
    server.faults = {"broken": 1.0}
    asked = dict(server.asked)
    monkeypatch.delenv("OPENAI_API_KEY")
    code, _, err = tell(server.url, "--max-tokens", "8")
    assert (code, err, dict(server.asked)) == (0, "", asked)
    assert Path("out.jsonl").read_bytes() == first
    told = ledger()
    assert told["from_store"] == 10
    assert told["cost"] == {"prompt_tokens": 0, "answer_tokens": 0}
    assert told["cost_without_store"] == told["cost_of_all_runs"] != told["cost"]


def test_truncated_answers_may_be_kept_without_asking_again(tell, server):
    tell(server.url, "--max-tokens", "8")
    code, _, _ = tell(server.url, "--max-tokens", "8", "--keep-truncated")
    assert code == 0
    assert len(lines()) == 9
    assert lines()[4]["completion"] == " ".join(["word"] * 8)
    assert max(server.asked.values()) == 1


def test_several_answers_are_several_requests_with_seeds_of_their_own(tell, server):
    assert (
        tell(server.url, "--n", "3", "--seed", "10", rows=[{"prompt": "a"}, {"prompt": "b"}])[0]
        == 0
    )
    assert [row["prompt"] for row in lines()] == ["a"] * 3 + ["b"] * 3
    assert server.asked == {"a": 3, "b": 3}
    assert sorted(body["seed"] for _, body in server.seen) == [10, 10, 11, 11, 12, 12]
    assert all("n" not in body for _, body in server.seen)


FORMS = {
    "messages": (
        {"messages": [{"role": "user", "content": "a"}]},
        {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "so a"}]},
    ),
    "answered messages": (
        {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "old"}]},
        {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "so a"}]},
    ),
    "alpaca": ({"instruction": "a", "input": "", "output": "old"}, {"prompt": "a"}),
    "sharegpt": (
        {"conversations": [{"from": "human", "value": "a"}]},
        {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "so a"}]},
    ),
    "prompt": ({"prompt": "a", "completion": "old"}, {"prompt": "a"}),
}


@pytest.mark.parametrize("form", FORMS)
def test_what_it_writes_of_each_form_can_be_trained_on_as_it_stands(tell, server, form):
    row, wanted = FORMS[form]
    assert tell(server.url, rows=[row, row])[0] == 0
    assert set(server.asked) == {"a"}
    assert all({**wanted, "completion": "so a"}.items() <= made.items() for made in lines())
    _, made = shaped(read_rows("out.jsonl"))
    answers = [
        r["messages"][-1]["content"] if "messages" in r else r["completion"] for _, r in made
    ]
    assert answers == ["so a", "so a"]


def test_a_budget_reached_in_mid_run_leaves_good_rows_and_a_larger_one_goes_on(tell, server):
    rows = [{"prompt": f"n{i}a"} for i in range(40)]
    words = ("--max-tokens", "8", "--concurrency", "4", "--price", "1,2")
    code, _, err = tell(server.url, *words, "--budget-tokens", "500", rows=rows)
    assert code == 2
    assert "the budget is reached" in err
    assert "goes on" in err
    assert "budget: 500 tokens" in err
    told = ledger()
    assert 0 < told["answered"] == len(lines()) < 40
    assert told["answered"] + told["left"] == 40
    assert told["stopped"]
    assert sum(server.tokens.values()) <= 500
    code, _, err = tell(server.url, *words, "--budget-usd", "0.01", rows=rows)
    assert code == 0
    assert len(lines()) == 40
    assert set(server.asked.values()) == {1}
    cost = (server.tokens["prompt"] + 2 * server.tokens["answer"]) / 1e6
    assert ledger()["cost_of_all_runs"]["dollars"] == pytest.approx(cost)


REFUSED = {
    "unauthorised": ["401", "OPENAI_API_KEY"],
    "no model": ["404", "no model 'canned'"],
    "no money": ["429", "insufficient_quota"],
    "rejected": ["20 questions in a row", "400"],
}


@pytest.mark.parametrize("fault", REFUSED)
def test_a_fault_that_stays_is_one_clear_message_with_nothing_half_written(tell, server, fault):
    rows = [{"prompt": f"n{i}a"} for i in range(60)]
    server.faults = {fault: 1.0}
    code, out, err = tell(server.url, rows=rows)
    assert (code, out) == (2, "")
    told = err.splitlines()[-1]
    assert told.startswith("error: ")
    assert [word for word in [*REFUSED[fault], "0 of 60", "store"] if word not in told] == []
    assert "stillroom itself" not in err
    assert KEY not in err
    assert sorted(p.name for p in Path().iterdir()) == ["rows.jsonl", "store"]
    server.faults = {}
    assert tell(server.url, rows=rows)[0] == 0  # nothing is in the way of the next run
    assert len(lines()) == 60


def test_where_no_answer_is_left_the_file_is_not_written_and_the_ledger_is(tell, server):
    code, _, err = tell(server.url, rows=[{"prompt": "a3"}])
    assert code == 2
    assert "no question was answered" in err
    assert not Path("out.jsonl").exists()
    assert ledger()["dropped"] == {"empty": 1}


def test_a_run_without_drops_takes_the_list_of_drops_away(tell, server):
    tell(server.url)
    assert Path("out.jsonl.dropped.jsonl").exists()
    tell(server.url, rows=[{"prompt": "a"}])
    assert not Path("out.jsonl.dropped.jsonl").exists()


WRONG = {
    "dollars without a price": (["--max-tokens", "8", "--budget-usd", "1"], ["--price IN,OUT"]),
    "a budget without a limit": (["--budget-tokens", "900"], ["--max-tokens"]),
    "half a price": (["--price", "1"], ["--price", "IN,OUT", "'1'"]),
    "a price below 0": (["--price", "1,-2"], ["--price", "below 0"]),
    "no price": (["--price", "nan,1"], ["--price"]),
    "a folder as file": (["--out", "."], ["--out"]),
    "a file nowhere": (["--out", "no/where.jsonl"], ["--out", "folder that exists"]),
    "a key that is not set": (["--key-env", "NO_SUCH_KEY"], ["NO_SUCH_KEY"]),
    "an address with a password": (["--base-url", "http://a:pw@b/v1"], ["environment variable"]),
    "an address of a local model": (["--teacher", "some/model"], ["--base-url", "some/model"]),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_does_not_fit_is_told_before_anything_is_asked(tell, server, case):
    words, fragments = WRONG[case]
    code, _, err = tell(server.url, *words)
    assert code == 2
    assert [f for f in fragments if f not in err] == []
    assert "stillroom itself" not in err
    assert sum(server.asked.values()) == 0


ROWS = {
    "no prompt": ([{"text": "a"}], "fit no form"),
    "a prompt that is no text": ([{"prompt": 3}], "line 1"),
    "a turn without content": ([{"messages": [{"role": "user"}]}], "role and content"),
    "messages that ask nothing": ([{"messages": []}], "line 1"),
    "half a character": ([{"prompt": "\ud83d"}], "cannot be written"),
}


@pytest.mark.parametrize("case", ROWS)
def test_a_row_that_asks_nothing_is_named(tell, server, case):
    rows, words = ROWS[case]
    code, _, err = tell(server.url, rows=rows)
    assert code == 2
    assert words in err
    assert sum(server.asked.values()) == 0


def test_a_store_that_is_none_is_refused_and_left_alone(tell, server):
    Path("store").mkdir()
    Path("store", FILE).write_text("notes", encoding="utf-8")
    code, _, err = tell(server.url)
    assert code == 2
    assert "damaged or is none" in err
    assert Path("store", FILE).read_text(encoding="utf-8") == "notes"
    assert sum(server.asked.values()) == 0


def test_half_a_character_in_an_answer_is_written_as_a_mark(tell):
    with Server(Canned(lambda prompt: "so \ud83d")) as server:
        assert tell(server.url, rows=[{"prompt": "a"}])[0] == 0
    assert lines()[0]["completion"] == "so ?"


def test_a_local_folder_answers_through_the_same_store(tell, tmp_path):
    model, tokenizer = tiny()
    model.save_pretrained("model")
    tokenizer.save_pretrained("model")
    words = ("--teacher", "model", "--temperature", "0", "--max-tokens", "6", "--keep-truncated")
    code, _, err = tell("", *words)
    assert code == 0, err
    assert len(lines()) == 10
    assert ledger()["cost"]["dollars"] == 0.0
    first = Path("out.jsonl").read_bytes()
    code, _, err = tell("", *words)
    assert (code, err, Path("out.jsonl").read_bytes()) == (0, "", first)
    assert ledger()["from_store"] == 10
    tokenizer.chat_template = "{{ messages }}"
    tokenizer.save_pretrained("model")
    code, _, err = tell("", *words)
    assert code == 2
    assert "template is" in err
    assert Path("out.jsonl").read_bytes() == first
    assert len(Store("store").sources()) == 1
