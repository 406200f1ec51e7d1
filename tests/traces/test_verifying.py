"""Verdicts against golds worked out by hand; refusals name the row; provenance is only added to."""

import os
import sqlite3
from pathlib import Path

import pytest

from stillroom.core import Failure
from stillroom.data.rows import read_rows
from stillroom.traces import sandbox
from stillroom.traces.verifying import Verdict, Verify, verified

ENDLESS = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n"
NAMES = "SELECT name FROM state WHERE size = 2"
CODE = "Here:\n```python\ndef double(x):\n    return 2 * x\n```\nDone."


def bwrap() -> str:
    try:
        sandbox.permitted()
    except Failure as failure:
        return str(failure)
    return ""


boxed = pytest.mark.skipif(bool(bwrap()), reason=bwrap() or "it is permitted")


@pytest.fixture
def database(tmp_path: Path) -> Path:
    file = tmp_path / "a.sqlite"
    with sqlite3.connect(file) as connection:
        connection.execute("CREATE TABLE state (name TEXT, size INTEGER)")
        connection.executemany("INSERT INTO state VALUES (?, ?)", [("a", 1), ("b", 2), ("c", 2)])
    connection.close()
    return file


@pytest.mark.parametrize(
    ("told", "text", "gold", "right", "why"),
    [
        ({"kind": "exact"}, " New  York.", "new york", True, "right"),
        ({"kind": "exact"}, "New York City", "new york", False, "another answer"),
        ({"kind": "exact", "after": ["is"]}, "It is 1,200", 1200, True, "right"),
        ({"kind": "numeric"}, "so $1,200.00 in all", "1200", True, "right"),
        ({"kind": "numeric"}, "1201", 1200, False, "another answer"),
        ({"kind": "numeric"}, "0.1 + 0.2 is 0.3", 0.3, True, "right"),
        ({"kind": "numeric"}, "3/4", "0.75", True, "right"),
        ({"kind": "numeric"}, "2e3 m", "2,000", True, "right"),
        ({"kind": "numeric"}, "-5", "5", False, "another answer"),
        ({"kind": "numeric"}, "50%", "0.5", False, "another answer"),
        ({"kind": "numeric", "percent": True}, "50%", "0.5", True, "right"),
        ({"kind": "numeric", "relative": 0.125}, "9", "8", True, "right"),
        ({"kind": "numeric", "relative": 0.125}, "9.01", "8", False, "another answer"),
        ({"kind": "numeric", "absolute": 0.5}, "0.5", "0", True, "right"),
        ({"kind": "numeric"}, "I do not know", "1", False, "no answer"),
        ({"kind": "numeric", "way": "boxed"}, r"\boxed{x}", "1", False, "no number"),
        ({"kind": "numeric", "way": "boxed"}, r"1, no \boxed{\frac{6}{8}}", ".75", True, "right"),
        ({"kind": "choice"}, "It is (B).", "B", True, "right"),
        ({"kind": "choice"}, "b.", "B", True, "right"),
        ({"kind": "choice"}, "It is (B).", "C", False, "another answer"),
        ({"kind": "choice", "options": ["red", "blue"]}, "Blue!", "B", True, "right"),
        ({"kind": "choice", "options": ["red", "blue"]}, "(B)", "blue", True, "right"),
        ({"kind": "choice", "options": ["red", "blue"]}, "(A)", "blue", False, "another answer"),
        (
            {"kind": "choice", "options": ["yes", "no"], "letters": False},
            "No.",
            "no",
            True,
            "right",
        ),
        (
            {"kind": "choice", "options": ["yes", "no"], "letters": False},
            "It depends.",
            "no",
            False,
            "no answer",
        ),
        ({"kind": "pattern"}, "Ada Lovelace", r"(Ada )?Lovelace", True, "right"),
        ({"kind": "pattern"}, "Ada Lovelace II", r"(Ada )?Lovelace", False, "another answer"),
        (
            {"kind": "pattern", "seconds": 0.1},
            "a" * 60 + "b",
            r"(a|aa)+",
            None,
            "unknown: the gold pattern took more than 0.1 s",
        ),
    ],
)
def test_a_verdict(told, text, gold, right, why):
    verdict = Verify(**told).verdict({"gold": gold}, text)
    assert (verdict.right, verdict.why) == (right, why)
    assert (verdict.answer is None) == (why == "no answer")


@pytest.mark.parametrize(
    ("kind", "row", "message"),
    [
        ("numeric", {}, "line 7: expected a gold answer"),
        ("numeric", {"gold": None}, "line 7: expected a gold answer"),
        ("exact", {"gold": " "}, "line 7: expected a gold answer"),
        ("exact", {"gold": True}, "line 7: expected a gold answer"),
        ("numeric", {"gold": "many"}, "line 7: the gold answer 'many' in 'gold' is none of kind"),
        ("choice", {"gold": "maybe"}, "line 7: the gold answer 'maybe'"),
        ("pattern", {"gold": "("}, "line 7: the gold answer"),
        ("python", {"gold": "1"}, "line 7: expected unit tests"),
    ],
)
def test_a_row_that_cannot_be_verified_is_named(kind, row, message):
    with pytest.raises(Failure, match=message):
        Verify(kind=kind).verdict(row, "no answer at all", "line 7")


def test_fields_that_do_not_go_together_are_refused():
    for told in (
        {"kind": "sql"},
        {"kind": "exact", "database": "a"},
        {"kind": "exact", "pattern": "a"},
    ):
        with pytest.raises(Failure, match=r"verify\."):
            Verify(**told)


@pytest.mark.parametrize(
    ("query", "gold", "right", "why"),
    [
        (f"{NAMES} ORDER BY 1 DESC", f"{NAMES} ORDER BY 1 DESC", True, "right"),
        (f"{NAMES} ORDER BY 1 DESC", f"{NAMES} ORDER BY 1", False, "another answer"),
        (f"{NAMES} ORDER BY 1 DESC", NAMES, True, "right"),
        ("```sql\nSELECT name FROM state WHERE NOT size = 1\n```", NAMES, True, "right"),
        ("SELECT name FROM state", "SELECT nome FROM state", None, "unknown: the gold query"),
        (ENDLESS, "SELECT 1", False, "took more than 0.2 s"),
        ("ATTACH '{folder}/b.sqlite' AS b", "SELECT 1", False, "refused or failed"),
        ("DELETE FROM state", "SELECT 1", False, "refused or failed"),
        ("SELECT load_extension('x')", "SELECT 1", False, "refused or failed"),
        ("SELECT zeroblob(10000000000)", "SELECT 1", False, "refused or failed"),
        ("no SQL", "SELECT 1", False, "refused or failed"),
    ],
)
def test_queries_are_compared_by_their_rows_and_only_read(database, query, gold, right, why):
    before = database.read_bytes()
    verify = Verify(kind="sql", database=str(database), seconds=0.2)
    verdict = verify.verdict({"gold": gold}, query.format(folder=database.parent))
    assert verdict.right is right
    assert why in verdict.why
    assert database.read_bytes() == before
    assert [file.name for file in database.parent.iterdir()] == [database.name]


def test_a_database_that_is_missing_is_told():
    with pytest.raises(Failure, match=r"verify\.database: there is no database"):
        Verify(kind="sql", database="none.sqlite").verdict({"gold": "SELECT 1"}, "SELECT 1")


@boxed
@pytest.mark.parametrize(
    ("text", "right", "why"),
    [
        (CODE, True, "right"),
        (CODE.replace("2 *", "3 *"), False, "failed: AssertionError"),
        ("import sys\nsys.exit(0)", False, "ended before the tests did"),
        ("while True: pass", False, "took more than 1 s"),
        ("", False, "no answer"),
    ],
)
def test_programs_pass_their_tests_or_not(text, right, why):
    row = {"checks": ["assert double(2) == 4", "assert double(0) == 0"]}
    seconds = 1.0 if "1 s" in why else 30.0
    verdict = Verify(kind="python", tests="checks", seconds=seconds).verdict(row, text)
    assert (verdict.right, verdict.why) == (right, why)


def test_without_bwrap_programs_are_refused(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    sandbox.permitted.cache_clear()
    try:
        with pytest.raises(Failure, match="no 'bwrap' on the PATH"):
            Verify(kind="python").verdict({"tests": "assert True"}, "x = 1")
    finally:
        sandbox.permitted.cache_clear()


def test_provenance_is_added_to_and_nothing_else_changes():
    rows = [
        {"prompt": "1+1", "completion": "2", "gold": 2, "id": 7, "provenance": {"asked": {"n": 1}}},
        {"messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": "3"}]}
        | {"gold": "2"},
    ]
    before = repr(rows)
    first, second = verified(rows, Verify(kind="numeric"))
    assert repr(rows) == before
    assert first["provenance"] == {
        "asked": {"n": 1},
        "verified": {"right": True, "answer": "2", "why": "right"},
    }
    assert {k: v for k, v in first.items() if k != "provenance"} == {
        k: v for k, v in rows[0].items() if k != "provenance"
    }
    told = second["provenance"]["verified"]
    assert told == {"right": False, "answer": "3", "why": "another answer"}
    with pytest.raises(Failure, match=r"row 1: expected a text in 'answer'"):
        verified([{"answer": "2", "gold": 2}, {"gold": 2}], Verify(kind="numeric"), "answer")


def test_real_answers_of_a_teacher():
    folder = os.environ.get("STILLROOM_DATA")
    if folder is None:
        pytest.skip("set STILLROOM_DATA to the folder of real data")
    verify = Verify(kind="numeric", after=["the answer (arabic numerals) is"], column="gold_answer")
    file = Path(folder) / "teacher-rationales" / "multiarith.gpt3-zero-shot-cot.jsonl"
    same = 0
    for where, row in read_rows(file):
        verdict = verify.verdict(row, row["teacher_response"], where)
        same += verdict.right == (row["teacher_answer"] == row["gold_answer"])
    assert same == 600
    assert isinstance(verdict, Verdict)
