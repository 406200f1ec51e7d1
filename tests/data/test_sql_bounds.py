"""Queries that nobody vouches for: they read, within bounds, and leave no trace."""

import hashlib
import sqlite3
import time
from pathlib import Path

import pytest

from stillroom.core import Failure
from stillroom.data.sql import Bounds, QueryError, is_ordered, same_result, select

ENDLESS = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n"
ROWS = [("iowa", 3, 1.5), ("ohio", 11, None), ("utah", 3, 0.25)]


@pytest.fixture
def database(tmp_path: Path) -> Path:
    file = tmp_path / "a ?#%.sqlite"  # a name that an address would be misread by
    connection = sqlite3.connect(file)
    connection.execute("CREATE TABLE state (name TEXT, size INTEGER, wet REAL)")
    connection.executemany("INSERT INTO state VALUES (?, ?, ?)", ROWS)
    connection.commit()
    connection.close()
    return file


def told(folder: Path) -> dict[str, str]:
    return {f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in folder.iterdir()}


def test_a_query_gives_its_rows(database):
    assert select(database, "SELECT * FROM state ORDER BY name ;") == ROWS
    assert select(database, "SELECT sum(size) FROM state WHERE name LIKE '%a%'") == [(6,)]
    nested = "SELECT name FROM state WHERE size = (SELECT max(size) FROM state)"
    assert select(database, nested) == [("ohio",)]
    few = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 4) "
    assert select(database, few + "SELECT sum(i) FROM n") == [(10,)]
    assert select(database, "SELECT name FROM state WHERE size > 99") == []


@pytest.mark.parametrize(
    "query",
    [
        "INSERT INTO state VALUES ('x', 1, 1)",
        "INSERT INTO state VALUES ('x', 1, 1) RETURNING name",
        "UPDATE state SET size = 0",
        "DELETE FROM state",
        "DROP TABLE state",
        "CREATE TABLE other (x)",
        "CREATE TEMP TABLE other (x)",
        "ATTACH '{folder}/other.sqlite' AS other",
        "ATTACH ':memory:' AS other",
        "DETACH main",
        "VACUUM",
        "VACUUM INTO '{folder}/other.sqlite'",
        "PRAGMA journal_mode = WAL",
        "PRAGMA writable_schema = 1",
        "SELECT * FROM pragma_table_info('state')",
        "SELECT load_extension('{folder}/x.so')",
        "SELECT LOAD_EXTENSION('{folder}/x.so')",
        "SELECT fts3_tokenizer('simple')",
        "BEGIN",
        "COMMIT",
        "SAVEPOINT a",
        "REINDEX",
        "ANALYZE",
        "SELECT 1; DROP TABLE state",
        "SELECT 1; SELECT 2",
        "",
        "-- nothing",
        "what is the largest state",
        "SELECT height FROM state",
        "SELECT name FROM state\0",
        "SELECT '\ud800'",
    ],
)
def test_all_else_is_refused_and_the_file_untouched(database, query):
    before = told(database.parent)
    with pytest.raises(QueryError, match="the query"):
        select(database, query.replace("{folder}", str(database.parent)))
    assert told(database.parent) == before
    assert select(database, "SELECT * FROM state") == ROWS


@pytest.mark.parametrize(
    "query",
    [
        ENDLESS,
        ENDLESS.replace("count(*)", "i"),
        f"SELECT count(*) FROM {', '.join(f'state AS s{i}' for i in range(20))}",
        f"SELECT s0.name FROM {', '.join(f'state AS s{i}' for i in range(18))} ORDER BY random()",
    ],
)
def test_an_endless_query_is_stopped(database, query):
    start = time.process_time()
    with pytest.raises(QueryError, match=r"took more than 0\.2 s|more than 10000 rows"):
        select(database, query, Bounds(seconds=0.2))
    assert time.process_time() - start < 1.5


def test_a_result_has_its_bounds(database):
    pairs = "SELECT a.name, b.name FROM state AS a, state AS b"
    assert len(select(database, pairs, Bounds(rows=9))) == 9
    with pytest.raises(QueryError, match="more than 8 rows"):
        select(database, pairs, Bounds(rows=8))
    with pytest.raises(QueryError, match="71 bytes"):
        select(database, pairs, Bounds(size=71))
    assert len(select(database, pairs, Bounds(size=72))) == 9


@pytest.mark.parametrize(
    "query",
    [
        "SELECT hex(zeroblob(900000000))",
        "SELECT replace(hex(zeroblob(100000)), '0', hex(zeroblob(1000)))",
        f"SELECT {', '.join('1' * 300)}",
        f"SELECT hex(zeroblob(400000)) LIKE '{'%0' * 300}1'",
        f"SELECT {'9' * 200_000}",
    ],
)
def test_what_would_take_much_memory_or_time_in_one_step_is_refused(database, query):
    start = time.process_time()
    with pytest.raises(QueryError):
        select(database, query)
    assert time.process_time() - start < 0.5


def test_no_database_and_none_of_sqlite(tmp_path):
    with pytest.raises(Failure, match="there is no database") as refusal:
        select(tmp_path / "none.sqlite", "SELECT 1")
    assert not isinstance(refusal.value, QueryError)
    assert not list(tmp_path.iterdir())
    (tmp_path / "text.sqlite").write_text("no database at all, but long enough for its header " * 9)
    with pytest.raises(Failure, match="is no SQLite database") as refusal:
        select(tmp_path / "text.sqlite", "SELECT * FROM state")
    assert not isinstance(refusal.value, QueryError)


def test_results_are_compared_as_often_as_rows_come():
    rows = [("a", 1), ("b", None), ("a", 1)]
    assert same_result(rows, [rows[1], rows[0], rows[2]])
    assert not same_result(rows, [rows[1], rows[0], rows[2]], ordered=True)
    assert same_result(rows, rows, ordered=True)
    assert not same_result(rows, rows[:2])  # as sets they would be one
    assert not same_result(rows, [(1, "a"), (None, "b"), (1, "a")])
    assert not same_result([("A",)], [("a",)])
    assert not same_result([(None,)], [])
    assert not same_result([("1",)], [(1,)])
    assert same_result([], [])


def test_numbers_are_compared_to_nine_digits():
    assert same_result([(0.1 + 0.2, 3)], [(0.3, 3.0)])
    assert same_result([(1e20 / 3,)], [(1e20 / 3 * (1 + 1e-13),)])
    assert not same_result([(1.0000001,)], [(1.0,)])
    assert not same_result([(2**53,)], [(2**53 + 1,)])  # whole numbers have all theirs


@pytest.mark.parametrize(
    ("query", "ordered"),
    [
        ("SELECT a FROM t ORDER BY a", True),
        ("select a from t order\n by a limit 1", True),
        ("SELECT a FROM (SELECT a FROM t ORDER BY a LIMIT 3)", False),
        ("SELECT a, rank() OVER (PARTITION BY (b) ORDER BY a) FROM t", False),
        ("SELECT a FROM (SELECT a FROM t ORDER BY a) ORDER BY (a + 1) DESC", True),
        ("SELECT 'order by' FROM t WHERE \"order by\" = ')('", False),
        ("SELECT border, bypass FROM t", False),
    ],
)
def test_whether_a_query_says_the_order_of_its_rows(query, ordered):
    assert is_ordered(query) == ordered
