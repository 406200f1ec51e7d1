"""Rows that lack an answer, and rows that hold the one that a teacher gave."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from stillroom.data.rows import Row
from stillroom.data.turns import question
from stillroom.failures import Failure
from stillroom.store.requests import Decoding, Outcome, Request
from stillroom.teachers.cached import Cached


@dataclass(frozen=True)
class Answered:
    """A row's question and what became of it.

    Args:
        where: the place of the row.
        copy: which of several questions of the row.
        outcome: None where it is still open.
        row: with ``completion``, its messages ending with the answer; None where there is none.
    """

    where: str
    copy: int
    outcome: Outcome | None
    row: Row | None


def requests_of(
    named: Sequence[tuple[str, Row]], decoding: Decoding, copies: int = 1
) -> list[Request]:
    """``copies`` questions of each row, in order.

    Raises:
        Failure: a row asks nothing, or a turn of its messages is no text.
    """
    asked = [(where, question(row, where)) for where, row in named]
    for where, said in asked:
        try:
            json.dumps(said, ensure_ascii=False).encode()
        except (TypeError, UnicodeEncodeError) as error:
            raise Failure(f"{where}: the question cannot be written as JSON: {error}") from error
        for turn in [] if isinstance(said, str) else said:
            if not isinstance(turn.get("role"), str) or not isinstance(turn.get("content"), str):
                raise Failure(f"{where}: a turn of messages needs texts in role and content")
    return [Request(said, decoding, copy) for _, said in asked for copy in range(copies)]


def answered(
    named: Sequence[tuple[str, Row]], cached: Cached, copies: int = 1, *, keep_truncated: bool
) -> list[Answered]:
    """What became of each question that ``requests_of`` made of the rows, in order."""
    pairs = [(*pair, copy) for pair in named for copy in range(copies)]
    found = []
    for (where, row, copy), name in zip(pairs, cached.keys, strict=True):
        outcome = cached.judged(name, keep_truncated=keep_truncated)
        came = outcome and outcome.kind == "answer"
        made = _with(row, where, outcome.text) if outcome and came else None
        found.append(Answered(where, copy, outcome, made))
    return found


def _with(row: Row, where: str, text: str) -> Row:
    said = question(row, where)
    if isinstance(said, str):
        return {**row, "prompt": said, "completion": text}
    turns = [*said, {"role": "assistant", "content": text}]
    return {**row, "messages": turns, "completion": text}
