"""Execution accuracy: what a query gives counts, not how it is written."""

import json
import sqlite3
from pathlib import Path

import pytest

from stillroom.core import Failure
from stillroom.data.text import Example, TextData
from stillroom.evaluation.sql import measure, ready
from stillroom.evaluation.suite import Suite, View


class Letters:
    pad_id = 0

    def decode(self, ids):
        return "".join(map(chr, ids))


@pytest.fixture
def database(tmp_path: Path) -> Path:
    file = tmp_path / "a.sqlite"
    connection = sqlite3.connect(file)
    connection.execute("CREATE TABLE state (name TEXT, size INTEGER)")
    connection.executemany("INSERT INTO state VALUES (?, ?)", [("a", 1), ("b", 2), ("c", 2)])
    connection.commit()
    connection.close()
    return file


def view(database: Path | None, own: list[str], told: list[str], copies: int = 1) -> View:
    data = TextData([Example("?", text, (1,), (2,)) for text in told], 0)
    answers = [[ord(c) for c in text] for text in own]
    given = {"renderer": Letters(), "database": database, "copies": copies}
    return View(players={}, data=data, _answers=answers, **given)


SIZE = "SELECT size FROM state"
NAMES = "SELECT name FROM state WHERE size = 2"


@pytest.mark.parametrize(
    ("own", "reference", "right", "valid"),
    [
        ("select s.name from state s where s.size > 1 order by 1 desc", NAMES, 1, 1),
        ("SELECT name AS who FROM state WHERE NOT size = 1;", f"{NAMES} ;", 1, 1),
        (f"{NAMES} ORDER BY name", f"{NAMES} ORDER BY name DESC", 0, 1),
        (f"{NAMES} ORDER BY name DESC", f"{NAMES} ORDER BY name DESC", 1, 1),
        ("SELECT DISTINCT size FROM state", SIZE, 0, 1),
        ("SELECT size, size FROM state", SIZE, 0, 1),
        ("SELECT size * 1.0 FROM state", SIZE, 1, 1),
        ("SELECT sise FROM state", SIZE, 0, 0),
        ("DELETE FROM state", SIZE, 0, 0),
        ("", SIZE, 0, 0),
        (SIZE, "SELECT sise FROM state", 0, 1),
        ("SELECT sise FROM state", "SELECT sise FROM state", 0, 0),
        ("SELECT 1 WHERE 0", "SELECT name FROM state WHERE size > 9", 1, 1),
        ("SELECT sise FROM state", "SELECT name FROM state WHERE size > 9", 0, 0),
        ("SELECT 1 WHERE 0", "SELECT sise FROM state", 0, 1),
    ],
)
def test_one_answer(database, own, reference, right, valid):
    told = measure(view(database, [own], [reference]))
    assert told == {"execution_accuracy": right, "valid_sql": valid}


def test_shares_over_several_answers_to_each_question(database):
    own = [SIZE, NAMES, "nothing", NAMES]
    assert measure(view(database, own, [SIZE, NAMES], copies=2)) == {
        "execution_accuracy": 0.5,
        "valid_sql": 0.75,
    }


def test_no_database_and_another_one_are_told_before_any_answer_is_sampled(database, tmp_path):
    with pytest.raises(Failure, match=r"name the SQLite file as data\.database"):
        ready(view(None, [], [SIZE]))
    with pytest.raises(Failure, match=r"data\.database: not one of the data's answers runs on"):
        ready(view(database, [], ["SELECT x FROM other", "of what?"]))
    with pytest.raises(Failure, match="there is no database"):
        ready(view(tmp_path / "none.sqlite", [], [SIZE]))
    assert ready(view(database, [], ["of what?", SIZE])) is None
    data = TextData([Example("?", "of what?", (1,), (2,))], 0)
    suite = Suite(["sql"], {"test": data}, renderer=Letters(), database=database)
    with pytest.raises(Failure, match="not one of the data's answers"):
        suite.measure({}, "test")


def test_a_number_of_it_is_told_by_the_file(database):
    with pytest.raises(Failure, match="no 'execution_accuracy'; 'sql' gives this number"):
        Suite(["execution_accuracy"], {})


def test_the_file_was_not_written_to(database):
    before = database.read_bytes()
    measure(view(database, ["DROP TABLE state", "UPDATE state SET size = 0"], [SIZE, SIZE]))
    assert database.read_bytes() == before
    assert json.dumps([f.name for f in database.parent.iterdir()]) == '["a.sqlite"]'
