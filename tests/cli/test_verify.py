"""``stillroom verify``: provenance in a file, counts on screen, refusals that name the place."""

import json
import sys

import pytest

from stillroom.cli import main
from stillroom.traces import sandbox

ROWS = [
    {"q": "1+1", "said": "it is 1, no: 2.", "right": "2"},
    {"q": "1+2", "said": "it is 4", "right": "3"},
    {"q": "1+3", "said": "who knows", "right": "4"},
]
COLUMNS = ("--gold-column", "right", "--text-column", "said")


@pytest.fixture
def say(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("STILLROOM_DEBUG", "")
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))

    def told(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["stillroom", "verify", *words])
        code = 0
        try:
            main()
        except SystemExit as ended:
            code = int(ended.code or 0)
        out, err = capsys.readouterr()
        return code, out, err

    return told


def read(file) -> list:
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_all_rows_are_written_with_provenance_and_counted(say, tmp_path):
    code, out, _ = say("a.jsonl", "--out", "b.jsonl", "--kind", "numeric", *COLUMNS)
    assert code == 0
    assert out.splitlines() == [
        "right: 1",
        "wrong, another answer: 1",
        "wrong, no answer: 1",
        "b.jsonl: 3 of 3 rows",
    ]
    done = read(tmp_path / "b.jsonl")
    assert [row["provenance"]["verified"]["right"] for row in done] == [True, False, False]
    assert [{k: row[k] for k in ROWS[0]} for row in done] == ROWS


@pytest.mark.parametrize(("keep", "kept"), [("right", ["1+1"]), ("wrong", ["1+2", "1+3"])])
def test_right_or_wrong_ones_alone_are_kept(say, tmp_path, keep, kept):
    told = ("--kind", "numeric", "--keep", keep, *COLUMNS)
    code, out, _ = say("a.jsonl", "--out", "b.jsonl", *told)
    assert (code, out.splitlines()[-1]) == (0, f"b.jsonl: {len(kept)} of 3 rows")
    assert [row["q"] for row in read(tmp_path / "b.jsonl")] == kept


def test_options_reach_the_verifier(say, tmp_path):
    told = ("--kind", "numeric", "--after", "it is", "--absolute", "1", "--marked", *COLUMNS)
    say("a.jsonl", "--out", "b.jsonl", *told)
    answers = [row["provenance"]["verified"] for row in read(tmp_path / "b.jsonl")]
    assert [(a["answer"], a["right"]) for a in answers] == [("1", True), ("4", True), (None, False)]


def test_what_is_wrong_is_told_and_nothing_is_written(say, tmp_path, monkeypatch):
    numeric = ("--kind", "numeric")
    folder = say("a.jsonl", "--out", str(tmp_path), *numeric, *COLUMNS)
    assert (folder[0], "must be a file in a folder that exists" in folder[2]) == (2, True)
    nowhere = say("a.jsonl", "--out", "no/b.jsonl", *numeric, *COLUMNS)
    assert (nowhere[0], "must be a file in a folder that exists" in nowhere[2]) == (2, True)
    gold = say("a.jsonl", "--out", "b.jsonl", *numeric, "--text-column", "said")
    assert gold[0] == 2
    assert "a.jsonl, line 1: expected a gold answer" in gold[2]
    assert "--gold-column" in gold[2]
    none = say("a.jsonl", "--out", "b.jsonl", "--keep", "right", *numeric, "--gold-column", "q")
    assert "expected a text in 'completion'" in none[2]
    monkeypatch.setenv("PATH", str(tmp_path))
    sandbox.permitted.cache_clear()
    code = say(
        *("a.jsonl", "--out", "b.jsonl", "--kind", "python", "--tests-column", "q"),
        *("--text-column", "said"),
    )
    sandbox.permitted.cache_clear()
    assert (code[0], "no 'bwrap' on the PATH" in code[2]) == (2, True)
    assert not (tmp_path / "b.jsonl").exists()
