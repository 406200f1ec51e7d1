"""Self-consistency: the answer that most of several samples of one question agree on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from stillroom.data.rows import Row
from stillroom.data.turns import question
from stillroom.failures import Failure
from stillroom.store.requests import digest

Ties = Literal["none", "first"]
Answers = Sequence[str | None] | Callable[[Row], str | None]


@dataclass(frozen=True)
class Vote:
    """The majority among the answers to a question.

    Args:
        answer: None where nobody has one, or the most frequent ones tie and ties are not broken.
        share: votes of the most frequent answer over n: the confidence of self-consistency.
        n: samples, those without an answer included: they agree with nobody.
        tied: whether several answers are the most frequent.
    """

    answer: str | None
    share: float
    n: int
    tied: bool


def majority(answers: Sequence[str | None], ties: Ties = "none") -> Vote:
    """Self-consistency, majority vote of extracted answers (arXiv 2203.11171, unweighted).

    ``answer = argmax_a #{i: a_i = a}``, ``share = max_a #{i: a_i = a} / n``

    Answers are equal if their texts are: bring them into one form first.

    Args:
        answers: one for each sample; None where none could be extracted.
        ties: of the most frequent answers: ``none`` makes no majority of them, ``first`` takes the
            one that came first.

    >>> majority(["4", "5", None, "4"])
    Vote(answer='4', share=0.5, n=4, tied=False)
    >>> majority(["4", "5"]).answer is None, majority(["5", "4"], "first").answer
    (True, '5')
    """
    counts = Counter(answer for answer in answers if answer is not None)
    if not counts:
        return Vote(None, 0.0, len(answers), False)
    most = max(counts.values())
    first, *others = (answer for answer, count in counts.items() if count == most)
    answer = None if others and ties == "none" else first
    return Vote(answer, most / len(answers), len(answers), bool(others))


def voted(rows: Sequence[Row], answers: Answers, ties: Ties = "none") -> list[dict[str, Any]]:
    """Rows with the vote of all rows of their question in provenance ``vote``.

    ``vote`` is {answer, share, n, tied, agrees}; ``agrees`` says whether the row's own answer is
    the majority's (a row without one does not agree), null where there is no majority. Rows are of
    one question by their ``id``, or without it by the question itself, wherever they stand.

    Args:
        rows: several answers to each question; all columns stay.
        answers: the extracted answer of each row, or a function that extracts it.
        ties: as for ``majority``.

    Raises:
        Failure: there are more or fewer answers than rows, or a row has neither id nor question.
    """
    own = [answers(row) for row in rows] if callable(answers) else list(answers)
    if len(own) != len(rows):
        raise Failure(f"voted: there are {len(rows)} rows, but {len(own)} answers; give one a row")
    names = [_question(row, f"row {i}") for i, row in enumerate(rows)]
    groups: dict[str, list[str | None]] = {}
    for name, answer in zip(names, own, strict=True):
        groups.setdefault(name, []).append(answer)
    votes = {name: majority(group, ties) for name, group in groups.items()}
    return [
        _with(row, votes[name], answer) for row, name, answer in zip(rows, names, own, strict=True)
    ]


def _question(row: Row, where: str) -> str:
    """What rows of one question share."""
    told = ["id", row["id"]] if row.get("id") is not None else ["asks", question(row, where)]
    return digest(told)


def _with(row: Row, vote: Vote, own: str | None) -> dict[str, Any]:
    agrees = None if vote.answer is None else own == vote.answer
    told = {**vars(vote), "agrees": agrees}
    return {**row, "provenance": {**(row.get("provenance") or {}), "vote": told}}
