"""``filter``, ``decontaminate`` and ``mix`` at the command line."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from stillroom.cli import main


@pytest.fixture
def say(monkeypatch, capsys, tmp_path):
    """Gives words to the command line; returns its exit code and what it printed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "160")

    def told(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["stillroom", *words])
        with pytest.raises(SystemExit) as ended:
            main()
        return int(ended.value.code or 0), *capsys.readouterr()

    return told


def put(name, rows):
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return name


def got(name):
    return [json.loads(line) for line in Path(name).read_text(encoding="utf-8").splitlines()]


ROWS = [
    {"prompt": "Name a river.", "completion": "The Rhine is one.", "id": 1},
    {"prompt": "Name a lake.", "completion": "No.", "id": 2},
    {"prompt": "Name a hill.", "completion": "I'm sorry, but I can't do this.", "id": 3},
    {"prompt": "Name a wood.", "completion": "The rhine is 1!", "id": 4},
]


def test_filter_writes_what_stays_and_beside_it_what_does_not(say):
    put("rows.jsonl", ROWS)
    rules = ("--min-words", "3", "--refusals", "--max-jaccard", "0.9")
    code, out, _ = say("filter", "rows.jsonl", "--out", "kept.jsonl", *rules)
    assert code == 0
    assert "1 of 4 rows; dropped: 1 min_words, 1 refusals, 1 duplicate" in out
    (row,) = got("kept.jsonl")
    assert {k: row[k] for k in ROWS[0]} == ROWS[0]
    assert [step["by"] for step in row["provenance"]["filtered"]] == ["rules", "duplicates"]
    dropped = got("kept.jsonl.dropped.jsonl")
    assert [(row["id"], row["dropped"]["row"], row["dropped"]["kind"]) for row in dropped] == [
        (2, 1, "min_words"),
        (3, 2, "refusals"),
        (4, 3, "duplicate"),
    ]


def test_filter_reads_patterns_a_pool_and_another_column(say):
    put("rows.jsonl", ROWS)
    put("pool.jsonl", [{"prompt": "Name a lake!"}])
    Path("own.txt").write_text("name a river\n\n", encoding="utf-8")
    rules = ("--patterns", "own.txt", "--max-rouge", "0.9", "--pool", "pool.jsonl")
    code, out, _ = say("filter", "rows.jsonl", "--out", "o.jsonl", "--column", "prompt", *rules)
    assert code == 0
    assert "2 of 4 rows; dropped: 1 patterns, 1 pool" in out
    code, _, err = say("filter", "rows.jsonl", "--out", "o.jsonl", "--pool", "pool.jsonl")
    assert (code, "--pool is read by" in err) == (2, True)
    code, _, err = say("filter", "rows.jsonl", "--out", "o.jsonl", "--patterns", "none.txt")
    assert (code, "there is no file none.txt" in err) == (2, True)


def test_a_filter_that_keeps_nothing_writes_no_rows_and_drops_an_old_list(say):
    put("rows.jsonl", ROWS)
    put("o.jsonl.dropped.jsonl", [{"old": 1}])
    assert say("filter", "rows.jsonl", "--out", "o.jsonl")[0] == 0
    assert len(got("o.jsonl")) == 4
    assert not Path("o.jsonl.dropped.jsonl").exists()
    code, _, err = say("filter", "rows.jsonl", "--out", "none.jsonl", "--min-words", "99")
    assert (code, "no row is left, so none.jsonl is not written" in err) == (2, True)
    assert not Path("none.jsonl").exists()
    assert len(got("none.jsonl.dropped.jsonl")) == 4


def test_decontaminate_names_the_set_and_the_text(say):
    put("rows.jsonl", [{"prompt": "ANN HAS SIXTEEN EGGS AND EATS THREE"}, *ROWS])
    put("test.jsonl", [{"question": "Ann has 16 eggs, and eats 3.", "answer": "13"}])
    put("other.jsonl", [{"prompt": "Who was the first to climb it?"}])
    files = ("--against", "other.jsonl", "--against", "test.jsonl")
    code, out, _ = say("decontaminate", "rows.jsonl", *files, "--out", "o.jsonl")
    assert code == 0
    assert "4 of 5 rows; dropped: 1 test.jsonl" in out
    (row,) = got("o.jsonl.dropped.jsonl")
    assert row["dropped"]["why"].endswith("test.jsonl, text 0: Ann has 16 eggs, and eats 3.")
    put("odd.jsonl", [{"text": "x"}])
    code, _, err = say("decontaminate", "rows.jsonl", "--against", "odd.jsonl", "--out", "o.jsonl")
    assert (code, "which column holds the text? Give --against-column" in err) == (2, True)
    told = ("--against", "odd.jsonl", "--against-column", "text", "--out", "o.jsonl")
    assert say("decontaminate", "rows.jsonl", *told)[0] == 0


def test_mix_counts_and_refuses(say):
    put("a.jsonl", [{"prompt": f"a{i}"} for i in range(10)])
    put("b.jsonl", [{"prompt": f"b{i}"} for i in range(3)])
    code, out, _ = say("mix", "a.jsonl=2", "b.jsonl", "--rows", "9", "--out", "o.jsonl")
    assert (code, "9 rows: 6 of a.jsonl, 3 of b.jsonl" in out) == (0, True)
    first = got("o.jsonl")
    assert sorted(row["prompt"][0] for row in first) == [*"aaaaaabbb"]
    assert say("mix", "a.jsonl=2", "b.jsonl", "--rows", "9", "--out", "o.jsonl")[0] == 0
    assert got("o.jsonl") == first
    code, out, _ = say("mix", "a.jsonl=4", "b.jsonl=4", "--caps", "--out", "o.jsonl")
    assert (code, "7 rows: 4 of a.jsonl, 3 of b.jsonl" in out) == (0, True)
    bad = {
        "b.jsonl has 3 rows, and 4": ("a.jsonl", "b.jsonl", "--rows", "8"),
        "named twice": ("a.jsonl", "a.jsonl=2"),
        "expected FILE=NUMBER": ("a.jsonl=x",),
        "whole number": ("a.jsonl=1.5", "--caps"),
        "leave --rows": ("a.jsonl=1", "--caps", "--rows", "3"),
    }
    for message, words in bad.items():
        code, _, err = say("mix", *words, "--out", "o.jsonl")
        assert (code, message in err) == (2, True), (message, err)
