"""Answers beside the gold answer: equal texts, numbers, choices, results of queries, passed tests.

Each function takes a gold answer and makes a check of answers, or None where the gold answer is
none of its kind. A check tells whether an answer is right, None where it cannot, and why.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from stillroom.data.matching import plain
from stillroom.data.sql import Bounds, QueryError, is_ordered, same_result, select
from stillroom.failures import Failure
from stillroom.traces.answers import LETTERS, choices
from stillroom.traces.numbers import close, value
from stillroom.traces.sandbox import Limits, permitted, run_python

Check = Callable[[str], tuple[bool | None, str]]
RIGHT, OTHER = "right", "another answer"


def _told(right: bool) -> tuple[bool, str]:
    return right, RIGHT if right else OTHER


def exact(gold: str) -> Check:
    """Equal texts, ``plain``."""
    return lambda found: _told(plain(found) == plain(gold))


def numeric(
    gold: str, *, percent: bool = False, relative: float = 0.0, absolute: float = 0.0
) -> Check | None:
    """Numbers that are close (``numbers.close``)."""
    wanted = value(gold, percent=percent)

    def check(found: str) -> tuple[bool, str]:
        number = value(found, percent=percent)
        if number is None or wanted is None:
            return False, "no number"
        return _told(close(number, wanted, relative, absolute))

    return None if wanted is None else check


def choice(gold: str, options: Sequence[str] = (), *, letters: bool = True) -> Check | None:
    """The same choice, by letter or by text."""
    wanted = _place(gold, options, letters)

    def check(found: str) -> tuple[bool, str]:
        place = _place(found, options, letters)
        return (False, "no choice") if place is None else _told(place == wanted)

    return None if wanted is None else check


def _place(told: str, options: Sequence[str], letters: bool) -> int | None:
    texts = [plain(option) for option in options]
    if plain(told) in texts:
        return texts.index(plain(told))
    hits = choices(told, options, letters=letters)
    if not hits:
        return None
    return texts.index(plain(hits[0])) if plain(hits[0]) in texts else LETTERS.index(hits[0])


def pattern(gold: str, seconds: float) -> Check | None:
    """The gold answer is a regular expression that matches the answer whole, and in time."""
    import regex  # as ``re``, with a bound on time

    try:
        wanted = regex.compile(gold)
    except regex.error:
        return None

    def check(found: str) -> tuple[bool | None, str]:
        try:
            return _told(wanted.fullmatch(found, timeout=seconds) is not None)
        except TimeoutError:
            return None, f"unknown: the gold pattern took more than {seconds:g} s"

    return check


def sql(gold: str, database: Path, seconds: float) -> Check:
    """The same result on a database that is only read.

    Raises:
        Failure: there is no such database.
    """
    if not database.is_file():
        raise Failure(f"verify.database: there is no database {database}: give a SQLite file")
    bounds = Bounds(seconds=seconds)

    def check(found: str) -> tuple[bool | None, str]:
        try:
            wanted = select(database, gold, bounds)
        except QueryError as error:
            return None, f"unknown: the gold query: {error}"
        try:
            rows = select(database, found, bounds)
        except QueryError as error:
            return False, f"refused or failed: {error}"
        return _told(same_result(rows, wanted, ordered=is_ordered(gold)))

    return check


def python(tests: str, limits: Limits) -> Check:
    """Code that passes tests, in the sandbox.

    Raises:
        Failure: ``bwrap`` is missing or not permitted.
    """
    permitted()

    def check(found: str) -> tuple[bool, str]:
        ran = run_python(found, tests, limits)
        return ran.passed, RIGHT if ran.passed else ran.why

    return check
