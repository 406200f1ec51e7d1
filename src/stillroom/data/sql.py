"""SQL that nobody vouches for, on a SQLite file: it reads, for so long and so much, or is refused.

Serves whoever runs what a model wrote: execution accuracy, checks of a teacher's traces.
"""

from __future__ import annotations

import re
import sqlite3
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stillroom.failures import Failure

ALLOWED = {
    sqlite3.SQLITE_SELECT,
    sqlite3.SQLITE_READ,
    sqlite3.SQLITE_FUNCTION,
    sqlite3.SQLITE_RECURSIVE,
}
BARRED = {"load_extension", "fts3_tokenizer"}
"""Functions that reach beyond the database."""
LIMITS = {
    sqlite3.SQLITE_LIMIT_LENGTH: 10**6,  # bytes of a value, which one function call may make
    sqlite3.SQLITE_LIMIT_SQL_LENGTH: 10**5,
    sqlite3.SQLITE_LIMIT_COLUMN: 200,
    sqlite3.SQLITE_LIMIT_LIKE_PATTERN_LENGTH: 500,  # matching takes the product of both lengths
    sqlite3.SQLITE_LIMIT_ATTACHED: 0,
}
_EVERY = 1000
"""Steps of SQLite's machine from one look at the clock to the next: well under a millisecond."""
_DIGITS = 9
Row = tuple[Any, ...]


class QueryError(Failure):
    """A query that does not run, or asks for more than it may: says which of the two, and why."""


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """What one query may take: ``seconds``, ``rows`` of its result, and ``cells`` of bytes."""

    seconds: float = 2.0
    rows: int = 10_000
    size: int = 10**7
    """Bytes of the whole result, a number counting 8."""


def select(database: Path, query: str, bounds: Bounds | None = None) -> list[Row]:
    """The rows that one query gives. It may read the file, and nothing else, and ends in time.

    The file is opened for reading alone, each query on a connection of its own; of what SQLite is
    asked to do, reading tables and calling functions are allowed, so that writing, ``ATTACH``,
    ``PRAGMA`` and extensions are refused when the query is parsed.

    Raises:
        QueryError: no SQL, not a query, refused, too long or too much.
        Failure: there is no such database.
    """
    bounds = bounds or Bounds()
    if not database.is_file():
        raise Failure(f"there is no database {database}: give a SQLite file")
    connection = sqlite3.connect(f"{database.resolve().as_uri()}?mode=ro", uri=True)
    try:
        _restrain(connection, time.monotonic() + bounds.seconds)
        return _rows(connection.execute(query), bounds)
    except (sqlite3.Error, sqlite3.Warning, ValueError) as error:
        if getattr(error, "sqlite_errorname", "") == "SQLITE_NOTADB":
            raise Failure(f"{database} is no SQLite database") from error
        late = "interrupted" in str(error)
        why = f"took more than {bounds.seconds:g} s" if late else str(error)
        raise QueryError(f"the query {query!r:.300}: {why}") from error
    finally:
        connection.close()


def _restrain(connection: sqlite3.Connection, end: float) -> None:
    def may(action: int, _one: Any, two: Any, *_where: Any) -> int:
        barred = action == sqlite3.SQLITE_FUNCTION and str(two).lower() in BARRED
        return sqlite3.SQLITE_OK if action in ALLOWED and not barred else sqlite3.SQLITE_DENY

    for kind, most in LIMITS.items():
        connection.setlimit(kind, most)
    connection.text_factory = lambda text: text.decode("utf-8", "replace")
    connection.set_authorizer(may)
    connection.set_progress_handler(lambda: time.monotonic() > end, _EVERY)


def _rows(cursor: sqlite3.Cursor, bounds: Bounds) -> list[Row]:
    if cursor.description is None:
        raise ValueError("is no query: it gives no rows")
    found, size = [], 0
    for row in cursor:
        found.append(row)
        size += sum(len(v) if isinstance(v, str | bytes) else 8 for v in row)
        if len(found) > bounds.rows or size > bounds.size:
            raise ValueError(f"gives more than {bounds.rows} rows or {bounds.size} bytes")
    return found


def same_result(one: Iterable[Row], other: Iterable[Row], *, ordered: bool = False) -> bool:
    """Whether two results are alike: rows as often, in whatever order unless ``ordered``.

    Columns are compared by place and not by name; numbers to 9 digits, since a mean depends on the
    order of its sum, and 1 is 1.0; texts to the letter.
    """
    a, b = ([tuple(map(_plain, row)) for row in rows] for rows in (one, other))
    return a == b if ordered else Counter(a) == Counter(b)


def is_ordered(query: str) -> bool:
    """Whether a query says the order of its rows: ORDER BY outside of parentheses and strings."""
    query = re.sub(r"'[^']*'|\"[^\"]*\"", " ", query)
    while (outer := re.sub(r"\([^()]*\)", " ", query)) != query:
        query = outer
    return re.search(r"\border\s+by\b", query, re.IGNORECASE) is not None


def _plain(value: Any) -> Any:
    return float(f"{value:.{_DIGITS}g}") if isinstance(value, float) else value
