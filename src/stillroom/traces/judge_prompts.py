"""What a judge of pairs is asked: two answers to one question, in both orders, by a template.

The judge is not asked here: a collection or a pipeline puts the prompts to a model.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from jinja2 import StrictUndefined, TemplateError, meta
from jinja2.sandbox import ImmutableSandboxedEnvironment

from stillroom.data.rows import Row
from stillroom.data.turns import question
from stillroom.failures import Failure
from stillroom.store.requests import digest

Kind = Literal["verdict", "scores"]
TEMPLATES = Path(__file__).parent.parent / "templates"
READ = {"question", "first", "second"}
"""What a template must use."""


class Pair(NamedTuple):
    """A question (text or messages) and two answers to it."""

    said: Any
    a: str
    b: str

    @property
    def same(self) -> bool:
        """Whether both answers are the same, which is a tie that nobody is asked about."""
        return self.a == self.b


class Template:
    """A judge's prompt: Jinja that uses ``question``, ``first`` and ``second``, and nothing else.

    Answers are values, never parsed as Jinja; the environment is sandboxed, since the file may be
    another's. A conversation is told as ``role: content``, a blank line between turns.

    Args:
        kind: ``verdict`` asks which is better, ``scores`` for a score of each from 1 to 10.
        file: a template of one's own; None takes ``judge.KIND.jinja`` of the package. Its replies
            are read the same way (``parsed``).

    Raises:
        Failure: there is no such file, or it is malformed, or does not use what it must.
    """

    def __init__(self, kind: Kind = "verdict", file: Path | None = None) -> None:
        self.kind: Kind = kind
        place = file or TEMPLATES / f"judge.{kind}.jinja"
        if not place.is_file():
            raise Failure(f"{place}: there is no such template")
        text = place.read_text(encoding="utf-8")
        self.name = place.name
        self.digest = digest(text)
        jinja = ImmutableSandboxedEnvironment(undefined=StrictUndefined)
        try:
            self._made = jinja.from_string(text)
            used = meta.find_undeclared_variables(jinja.parse(text))
        except TemplateError as error:
            raise Failure(f"{place}: {error}") from error
        if used != READ:
            raise Failure(
                f"{place}: a judge's template uses {', '.join(sorted(READ))}, got {sorted(used)}"
            )

    def __call__(self, said: Any, first: str, second: str) -> str:
        """The prompt."""
        try:
            return self._made.render(question=told(said), first=first, second=second)
        except Exception as error:  # a template may raise anything that Python code may
            raise Failure(f"{self.name}: {error}") from error


def told(said: Any) -> str:
    """A question as one text."""
    if isinstance(said, str):
        return said
    return "\n\n".join(f"{turn['role']}: {turn['content']}" for turn in said)


def pairs_of(
    named: Sequence[tuple[str, Row]], columns: tuple[str, str] = ("completion", "other")
) -> list[Pair]:
    """The question of each row and the answers in two of its columns.

    Raises:
        Failure: a row asks nothing, or has no text in one of the columns.
    """
    found = []
    for where, row in named:
        for column in columns:
            if not isinstance(row.get(column), str):
                raise Failure(
                    f"{where}: a judge needs a text in {column!r}, got columns {sorted(row)}; name "
                    "the two columns of answers"
                )
        found.append(Pair(question(row, where), *(row[column] for column in columns)))
    return found


def questions(pairs: Sequence[Pair], template: Template) -> list[str]:
    """Prompts of a judge, two for each pair: first in the order a, b, then b, a (order swap).

    None for a pair of identical answers.
    """
    asked = [pair for pair in pairs if not pair.same]
    return [template(p.said, *order) for p in asked for order in ((p.a, p.b), (p.b, p.a))]
