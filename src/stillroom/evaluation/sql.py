"""Text-to-SQL by execution: whether the student's query gives what the reference query gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from stillroom.core import Failure
from stillroom.data.sql import QueryError, Row, is_ordered, same_result, select
from stillroom.evaluation.suite import View

COLUMNS = {
    "execution_accuracy": ("queries that give the reference's result", "higher"),
    "valid_sql": ("queries that run", "higher"),
}


def ready(view: View) -> None:
    """Raises Failure where no database is told, or none of the reference queries runs on it."""
    if not any(_tried(_database(view), query)[0] for query in _references(view)):
        raise Failure(
            f"data.database: not one of the data's answers runs on {view.database}, such as "
            f"{_references(view)[0]!r:.200}: it is another database, or no SQL"
        )


def measure(view: View) -> dict[str, float]:
    """Shares of sampled answers that run, and that give the same rows as the reference.

    Each answer, whole, is one query on ``data.database``, which it may read alone and within
    bounds (``data.sql``). Rows are compared as often as they come, in order where the reference
    says one; equal rows of such an order may be told in another way, and then count as wrong. An
    answer whose reference does not run counts as wrong. That two queries give the same here does
    not say that they mean the same: most of all where the result is empty.
    """
    database, valid, right = _database(view), 0, 0
    known: dict[str, tuple[bool, list[Row]]] = {}
    pairs = view.texts()
    for own, reference in pairs:
        if reference not in known:
            known[reference] = _tried(database, reference)
        (ran, rows), (told, wanted) = _tried(database, own), known[reference]
        valid += ran
        right += ran and told and same_result(rows, wanted, ordered=is_ordered(reference))
    return {"execution_accuracy": right / len(pairs), "valid_sql": valid / len(pairs)}


def _database(view: View) -> Path:
    if view.database is None:
        raise Failure("eval.metrics: sql runs queries; name the SQLite file as data.database")
    return view.database


def _references(view: View) -> list[str]:
    data: Any = view.data
    return [example.answer for example in data.examples]


def _tried(database: Path, query: str) -> tuple[bool, list[Row]]:
    """Whether it ran, and its rows."""
    try:
        return True, select(database, query)
    except QueryError:
        return False, []
