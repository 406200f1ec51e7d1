"""Pairs of answers to one question: the teacher's over the student's, right ones over wrong ones.

A pair is a row with ``completion`` (the chosen answer) and ``rejected``, which the method
``preference`` learns from. Nothing is read or written.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from stillroom.data.rows import Row
from stillroom.data.turns import answer, question
from stillroom.failures import Failure
from stillroom.store.requests import digest

Pick = Literal["first", "all"]
By = Literal["verified", "vote"]
_WHERE: dict[str, tuple[str, str]] = {"verified": ("verified", "right"), "vote": ("vote", "agrees")}
"""By signal the step of the provenance and its entry, true of a chosen answer, false of others."""


@dataclass(frozen=True)
class Paired:
    """Pairs, in order of the questions, and why questions have none: ``{why: how many}``."""

    rows: Sequence[Row]
    without: dict[str, int] = field(default_factory=dict)


def teacher_over_student(
    teacher: Sequence[Row], student: Sequence[Row], *, pick: Pick = "first", most: int = 1
) -> Paired:
    """Pseudo-preference pairs: the teacher's answer is taken to be better than the student's.

    Source: PLaD (arXiv 2406.02886). Rows of one question have its ``id``, or the same question.

    Args:
        teacher: its answers.
        student: its answers to the same questions.
        pick: ``first``: the first answer of each that are not equal; ``all``: combinations.
        most: of ``all``, pairs a question.

    Raises:
        Failure: a row has no question, or no answer.
    """
    _check(most)
    theirs, own = _grouped(teacher, "teacher"), _grouped(student, "student")
    found, without = [], Counter[str]()
    for name in dict.fromkeys([*theirs, *own]):
        lacks = "no answer of the teacher" if name not in theirs else None
        lacks = "no answer of the student" if name not in own else lacks
        sides = theirs.get(name, []), own.get(name, [])
        found += _made(
            sides, "teacher over student", without, lacks, 1 if pick == "first" else most
        )
    return Paired(found, dict(without))


def right_over_wrong(
    rows: Sequence[Row], *, by: By = "verified", pick: Pick = "first", most: int = 1
) -> Paired:
    """Pairs of a right and a wrong answer to one question, as verified before.

    Source: REDI (arXiv 2505.24850), which takes the first of each.

    Args:
        rows: several answers to each question, in any order.
        by: ``verified``: what ``stillroom verify`` said; ``vote``: whether an answer agrees with
            most others. Answers of which nothing is known are in no pair.
        pick: ``first``: the first right and the first wrong one; ``all``: combinations, in
            rounds that use each answer of the larger side once.
        most: of ``all``, pairs a question.

    Raises:
        Failure: a row has no question, no answer, or was not verified.
    """
    _check(most)
    found, without = [], Counter[str]()
    for group in _grouped(rows, "row").values():
        marks = [_mark(row, by, where) for where, row in group]
        right, wrong = (
            [g for g, m in zip(group, marks, strict=True) if m is w] for w in (True, False)
        )
        lacks = None if right and wrong else "no right answer" if not right else "no wrong answer"
        lacks = "no answer is known to be right or wrong" if not right and not wrong else lacks
        found += _made(
            (right, wrong),
            f"right over wrong by {by}",
            without,
            lacks,
            1 if pick == "first" else most,
        )
    return Paired(found, dict(without))


Named = Sequence[tuple[str, Row]]


def _grouped(rows: Iterable[Row], what: str) -> dict[str, list[tuple[str, Row]]]:
    """Rows with their places by question, in order."""
    found: dict[str, list[tuple[str, Row]]] = {}
    for i, row in enumerate(rows):
        where = f"{what} {i}"
        asks = ["id", row["id"]] if row.get("id") is not None else ["asks", question(row, where)]
        found.setdefault(digest(asks), []).append((where, row))
    return found


def _said(row: Row, where: str) -> str:
    """The answer's text."""
    if "completion" not in row and "messages" in row:
        return answer(row["messages"], where)
    if not isinstance(said := row.get("completion"), str) or not said:
        raise Failure(f"{where}: expected a text in 'completion', got columns {sorted(row)}")
    return said


def _mark(row: Row, by: By, where: str) -> bool | None:
    step, entry = _WHERE[by]
    told = (row.get("provenance") or {}).get(step)
    if told is None:
        raise Failure(
            f"{where}: its provenance has no {step!r}; run 'stillroom "
            f"{'verify' if by == 'verified' else 'judge'}' on these rows first"
        )
    return told.get(entry)


def _made(
    sides: tuple[Named, Named], how: str, without: Counter[str], lacks: str | None, most: int
) -> list[dict[str, Any]]:
    """Pairs of one question; where there is none, the reason is counted."""
    if lacks is not None:
        without[lacks] += 1
        return []
    texts = [[_said(row, where) for where, row in side] for side in sides]
    places = _spread(*map(len, sides))
    kept, seen = [], set()
    for i, j in places:
        told = texts[0][i], texts[1][j]
        if told[0] != told[1] and told not in seen and len(kept) < most:
            seen.add(told)
            kept.append(_pair(sides[0][i][1], sides[1][j][1], told[1], how))
    if not kept:
        without["all answers are equal"] += 1
    return kept


def _spread(first: int, second: int) -> list[tuple[int, int]]:
    """All pairs of places, in rounds that use each of the more once: (0, 0), (1, 1), ..."""
    if first < second:
        return [(i, j) for j, i in _spread(second, first)]
    return [(i, (i + turn) % second) for turn in range(second) for i in range(first)]


def _pair(chosen: Row, rejected: Row, said: str, how: str) -> dict[str, Any]:
    told = {
        "how": how,
        "chosen": chosen.get("provenance") or {},
        "rejected": rejected.get("provenance") or {},
    }
    return {
        **chosen,
        "rejected": said,
        "provenance": {**(chosen.get("provenance") or {}), "pair": told},
    }


def _check(most: int) -> None:
    if most < 1:
        raise Failure(f"most: a question has at least one pair, got {most}")
