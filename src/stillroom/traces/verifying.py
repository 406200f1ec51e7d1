"""Whether an answer is right: compared with the gold answer, or run, as rejection sampling asks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from annotated_types import Ge, Gt

from stillroom.data.rows import Row
from stillroom.failures import Failure
from stillroom.traces import comparing
from stillroom.traces.answers import Extract, Way
from stillroom.traces.comparing import Check
from stillroom.traces.sandbox import Limits
from stillroom.traces.texts import text_of

Kind = Literal["exact", "numeric", "choice", "pattern", "sql", "python"]
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
        why: ``right``, ``another answer``, ``no answer``, or what went wrong: one word or a few,
            and behind a colon more.
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
        pattern: the regular expression of ``way: pattern``.
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
    pattern: str | None = None
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
            pattern=self.pattern,
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
        if (check := self._check(gold)) is None:
            raise Failure(
                f"{where}: the gold answer {gold!r:.100} in {self.column!r} is none of kind "
                f"{self.kind!r}: mend the row, or choose another kind"
            )
        if (found := self.extract(text)) is None:
            return Verdict(False, None, "no answer")
        right, why = check(found)
        return Verdict(right, found, why)

    def _check(self, gold: str) -> Check | None:
        match self.kind:
            case "exact":
                return comparing.exact(gold)
            case "numeric":
                near = {"relative": self.relative, "absolute": self.absolute}
                return comparing.numeric(gold, percent=self.percent, **near)
            case "choice":
                return comparing.choice(gold, self.options or (), letters=self.letters)
            case "pattern":
                return comparing.pattern(gold, self.seconds)
            case "sql":
                return comparing.sql(gold, Path(self.database or ""), self.seconds)
            case "python":
                return comparing.python(gold, self._limits())

    def _limits(self) -> Limits:
        return Limits(
            seconds=self.seconds,
            memory_mb=self.memory_mb,
            disk_mb=self.disk_mb,
            output_kb=self.output_kb,
            processes=self.processes,
        )

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
        told = tests
        if isinstance(tests, list) and all(isinstance(test, str) for test in tests):
            told = "\n".join(tests)
        if not isinstance(told, str) or not told.strip():
            raise Failure(
                f"{where}: expected unit tests, a text or a list of texts, in {self.tests!r}, got "
                f"{tests!r:.100} of columns {sorted(row)}; verify.tests (--tests-column) names "
                "another column"
            )
        return told


def verified(
    rows: Sequence[Row],
    verify: Verify,
    text: str = "completion",
    places: Iterable[str] | None = None,
) -> list[Row]:
    """Rows with ``verified`` in their provenance: ``{right, answer, why}``.

    Args:
        rows: with gold answers or tests, and texts.
        verify: how.
        text: the column of the text; ``completion`` may be the last turn of ``messages``.
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
                "verified": vars(verify.verdict(row, text_of(row, text, where), where)),
            },
        }
        for row, where in zip(rows, told, strict=True)
    ]
