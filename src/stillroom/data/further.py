"""What a row holds beside question and answer: further answers, its weight, its gold answer."""

from __future__ import annotations

import math

from stillroom.data.rows import Row
from stillroom.data.turns import answer
from stillroom.failures import Failure

COT = "cot"
"""The column of an answer with its chain of thought, beside the completion."""
REJECTED = "rejected"
"""The column of a worse answer to the same question; the completion is then the chosen one."""
WEIGHT = "weight"
"""The column of how much a row, or its pair of answers, counts."""
GOLD = "gold"
"""The column of the bare gold answer, which nothing learns from: evaluation compares with it."""
ANSWERS = {COT: "the answer with its chain of thought", REJECTED: "a worse answer"}
"""Columns of further answers that every form of rows keeps, and what they hold."""


def with_answer(row: Row, column: str, where: str = "row") -> Row:
    """The row whose answer is the further one in a column (``cot``, ``rejected``).

    Raises:
        Failure: there is no text.
    """
    said = row.get(column)
    if not isinstance(said, str) or not said:
        raise Failure(
            f"{where}: expected a text in {column!r}, {ANSWERS.get(column, 'a further answer')}, "
            f"got columns {sorted(row)}; write it there, or make it from others by data.columns"
        )
    if "messages" not in row:
        return {**row, "completion": said}
    answer(row["messages"], where)
    *asked, last = row["messages"]
    return {"messages": [*asked, {**last, "content": said}]}


def weight(row: Row, where: str = "row") -> float | None:
    """How much the row counts, its column ``weight``; None where it has none.

    Raises:
        Failure: it is not a finite number from 0 on.
    """
    told = row.get(WEIGHT)
    if told is None:
        return None
    number = isinstance(told, int | float) and not isinstance(told, bool)
    if not number or not math.isfinite(told) or told < 0:
        raise Failure(
            f"{where}: expected a number from 0 on in 'weight', got {told!r:.200}; leave the "
            "column out where rows count alike"
        )
    return float(told)


def gold(row: Row, where: str = "row") -> str | None:
    """The bare gold answer as text, the column ``gold``; None where it has none.

    Raises:
        Failure: it is neither a text nor a number.
    """
    told = row.get(GOLD)
    if told is None:
        return None
    if isinstance(told, bool) or not isinstance(told, str | int | float):
        raise Failure(f"{where}: expected a text or a number in 'gold', got {told!r:.200}")
    return str(told)
