"""Whether an answer is right: compared with the gold answer, or run, as rejection sampling asks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt

from stillroom.data.matching import plain
from stillroom.data.rows import Row
from stillroom.data.sql import Bounds, QueryError, is_ordered, same_result, select
from stillroom.data.turns import answer as last_answer
from stillroom.failures import Failure
from stillroom.traces.answers import LETTERS, Extract, Way, choices
from stillroom.traces.numbers import close, value
from stillroom.traces.sandbox import Limits, run_python

Kind = Literal["exact", "numeric", "choice", "pattern", "sql", "python"]
NO_ANSWER, RIGHT, OTHER = "no answer", "right", "another answer"
_WAYS: dict[Kind, Way] = {
    "exact": "rest",
    "numeric": "number",
    "choice": "choice",
    "pattern": "rest",
    "sql": "code",
    "python": "code",
}


@dataclass(frozen=True)
class Verdict:
    """Whether an answer is right, which one was found, and why.

    Args:
        right: None where nobody can tell, as of a gold query that does not run itself.
        answer: what was found in the text, as it is written there; None if nothing was.
        why: ``right``, ``another answer``, ``no answer``, or what went wrong.
    """

    right: bool | None
    answer: str | None
    why: str


@dataclass(frozen=True, kw_only=True)
class Verify:
    """How answers are checked: the recipe's section ``verify``, and ``stillroom verify``.

    - ``exact``: equal texts, but for case, white space and a full stop (``data.matching.plain``).
    - ``numeric``: ``|answer - gold| <= max(relative * |gold|, absolute)``, exact fractions, so
      that 0.1 + 0.2 is 0.3; units and currencies do not count.
    - ``choice``: the same choice, told by letter or by text; yes/no is ``options: [yes, no]`` with
      ``letters: false``.
    - ``pattern``: the gold answer is a regular expression, which must match the answer whole.
    - ``sql``: the answer, a query, gives the rows that the gold query gives, in order where that
      has ORDER BY; the database is only read (``data.sql``).
    - ``python``: the tests in the row, statements that raise where it is wrong, run behind the
      code, under ``bwrap`` alone (``traces.sandbox``).

    Args:
        kind: which of these.
        way: how the answer is found in the text (``traces.answers.Extract``); None: a number, a
            choice, the last block of code, or for ``exact`` and ``pattern`` the rest.
        after: phrases behind which the answer stands, such as ``the answer is``.
        marked: whether a text without one of them has no answer.
        answer: the regular expression of ``way: pattern``.
        options: texts of the choices, in order of their letters.
        letters: whether choices have letters.
        column: where a row has its gold answer.
        percent: whether ``50%`` is 0.5, and not 50, in answer and gold answer.
        relative: how far a number may be off, as a share of the gold one.
        absolute: how far it may be off.
        database: the SQLite file of ``kind: sql``.
        tests: the column of ``kind: python`` with the tests, a text or a list of texts.
        seconds: for a query, a pattern, or a program.
        memory_mb: MiB of a program's process (``sandbox.Limits``, as the next).
        disk_mb: MiB that it may write.
        output_kb: KiB that it may print.
        processes: processes and threads at once.
    """

    kind: Kind
    way: Way | None = None
    after: list[str] | None = None
    marked: bool = False
    answer: str | None = None
    options: list[str] | None = None
    letters: bool = True
    column: str = "gold"
    percent: bool = False
    relative: Annotated[float, Ge(0)] = 0.0
    absolute: Annotated[float, Ge(0)] = 0.0
    database: str | None = None
    tests: str = "tests"
    seconds: Annotated[float, Gt(0)] = 5.0
    memory_mb: Annotated[int, Ge(64)] = 512
    disk_mb: Annotated[int, Ge(1)] = 16
    output_kb: Annotated[int, Ge(1)] = 64
    processes: Annotated[int, Ge(1)] = 8

    def __post_init__(self):
        if (self.kind == "sql") != (self.database is not None):
            raise Failure("verify.database goes with 'kind: sql', which needs it")
        _ = self.finds  # refuses what does not go together

    @property
    def finds(self) -> Extract:
        """How the answer is found."""
        return Extract(
            way=self.way or _WAYS[self.kind],
            after=self.after or (),
            marked=self.marked,
            pattern=self.answer,
            options=self.options or (),
            letters=self.letters,
            seconds=self.seconds,
        )

    def extract(self, text: str) -> str | None:
        """The final answer in a text; None if there is none."""
        return self.finds.extract(text)

    def verdict(self, row: Row, text: str, where: str = "row") -> Verdict:
        """Whether a text answers a row rightly.

        Raises:
            Failure: the row has no gold answer, or none of this kind, or no tests; ``bwrap`` is
                missing or not permitted (``kind: python``); there is no such database.
        """
        gold = self._tests(row, where) if self.kind == "python" else self._gold(row, where)
        check, told = _CHECKS[self.kind], self._read(gold, where)
        if (found := self.extract(text)) is None:
            return Verdict(False, None, NO_ANSWER)
        right, why = check(self, found, told)
        return Verdict(right, found, why)

    def _gold(self, row: Row, where: str) -> str:
        gold = row.get(self.column)
        told = isinstance(gold, str | int | float) and not isinstance(gold, bool)
        if not told or not str(gold).strip():
            raise Failure(
                f"{where}: expected a gold answer, a text or a number, in {self.column!r}, got "
                f"{gold!r:.100} of columns {sorted(row)}; verify.column (--gold-column) names "
                "another column"
            )
        return str(gold)

    def _tests(self, row: Row, where: str) -> str:
        tests = row.get(self.tests)
        told = "\n".join(tests) if _texts(tests) else tests
        if not isinstance(told, str) or not told.strip():
            raise Failure(
                f"{where}: expected unit tests, a text or a list of texts, in {self.tests!r}, got "
                f"{tests!r:.100} of columns {sorted(row)}; verify.tests (--tests-column) names "
                "another column"
            )
        return told

    def _read(self, gold: str, where: str) -> Any:
        """The gold answer as this kind compares it."""
        reads: dict[str, Callable[[str], Any]] = {
            "exact": plain,
            "numeric": lambda told: value(told, percent=self.percent),
            "choice": self._choice,
            "pattern": _compiled,
        }
        told = reads.get(self.kind, str)(gold)
        if told is None:
            raise Failure(
                f"{where}: the gold answer {gold!r:.100} in {self.column!r} is none of kind "
                f"{self.kind!r}: mend the row, or choose another kind"
            )
        return told

    def _choice(self, told: str) -> int | None:
        options = self.options or []
        folded = [plain(option) for option in options]
        if plain(told) in folded:
            return folded.index(plain(told))
        hits = choices(told, options, letters=self.letters)
        if not hits:
            return None
        hit = hits[0]
        return options.index(hit) if hit in options else LETTERS.index(hit)


def verified(
    rows: Sequence[Row],
    verify: Verify,
    text: str | None = None,
    places: Iterable[str] | None = None,
) -> list[Row]:
    """Rows with ``verified`` in their provenance: ``{right, answer, why}``.

    Args:
        rows: with gold answers or tests, and texts.
        verify: how.
        text: the column of the text; None: ``completion``, or the last turn of ``messages``.
        places: of the rows, for messages.

    Raises:
        Failure: a row has no text or no gold answer, or the verifier is refused.
    """
    told = places or (f"row {i}" for i in range(len(rows)))
    return [
        {
            **row,
            "provenance": {
                **(row.get("provenance") or {}),
                "verified": vars(verify.verdict(row, said(row, text, where), where)),
            },
        }
        for row, where in zip(rows, told, strict=True)
    ]


def said(row: Row, column: str | None = None, where: str = "row") -> str:
    """The text of a row's answer.

    Raises:
        Failure: there is none.
    """
    if column is None and "completion" not in row and "messages" in row:
        return last_answer(row["messages"], where)
    told = row.get(column or "completion")
    if not isinstance(told, str):
        raise Failure(
            f"{where}: expected a text in {column or 'completion'!r}, got {told!r:.100} of columns "
            f"{sorted(row)}"
        )
    return told


def _texts(told: Any) -> bool:
    return isinstance(told, list) and all(isinstance(part, str) for part in told)


def _compiled(pattern: str) -> Any:
    import regex

    try:
        return regex.compile(pattern)
    except regex.error:
        return None


def _equal(right: bool) -> tuple[bool, str]:
    return right, RIGHT if right else OTHER


def _exact(verify: Verify, found: str, gold: str) -> tuple[bool | None, str]:
    return _equal(plain(found) == gold)


def _numeric(verify: Verify, found: str, gold: Any) -> tuple[bool | None, str]:
    told = value(found, percent=verify.percent)
    if told is None:
        return False, "no number"
    return _equal(close(told, gold, verify.relative, verify.absolute))


def _chosen(verify: Verify, found: str, gold: int) -> tuple[bool | None, str]:
    told = verify._choice(found)
    return (False, "no choice") if told is None else _equal(told == gold)


def _pattern(verify: Verify, found: str, gold: Any) -> tuple[bool | None, str]:
    try:
        return _equal(gold.fullmatch(found, timeout=verify.seconds) is not None)
    except TimeoutError:
        return None, f"the gold pattern took more than {verify.seconds:g} s"


def _sql(verify: Verify, found: str, gold: str) -> tuple[bool | None, str]:
    database, bounds = Path(verify.database or ""), Bounds(seconds=verify.seconds)
    try:
        wanted = select(database, gold, bounds)
    except QueryError as error:
        return None, f"the gold query does not run: {error}"
    try:
        told = select(database, found, bounds)
    except QueryError as error:
        return False, f"does not run: {error}"
    return _equal(same_result(told, wanted, ordered=is_ordered(gold)))


def _python(verify: Verify, found: str, tests: str) -> tuple[bool | None, str]:
    limits = Limits(
        seconds=verify.seconds,
        memory_mb=verify.memory_mb,
        disk_mb=verify.disk_mb,
        output_kb=verify.output_kb,
        processes=verify.processes,
    )
    ran = run_python(found, tests, limits)
    return ran.passed, RIGHT if ran.passed else ran.why


_CHECKS: dict[Kind, Callable[[Verify, str, Any], tuple[bool | None, str]]] = {
    "exact": _exact,
    "numeric": _numeric,
    "choice": _chosen,
    "pattern": _pattern,
    "sql": _sql,
    "python": _python,
}
