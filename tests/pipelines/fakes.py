"""A counterpart of ``core.Work`` that trains nothing, and keeps what it was asked and taught."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from stillroom.core import Lesson
from stillroom.data.templates import template
from stillroom.traces.verifying import Verify, verified

Row = Mapping[str, Any]


class FakeWork:
    """A teacher that is a function of a text, and students that ``write(prompt, folder)``."""

    def __init__(
        self,
        program: Callable[[str], str],
        train: Sequence[Row],
        validation: Sequence[Row] = (),
        *,
        write: Callable[[str, Path], str] = lambda prompt, folder: "",
        steps: int = 8,
    ) -> None:
        self.program, self.wrote = program, write
        self.rows = [{"id": f"train/{i}", **row} for i, row in enumerate(train)]
        self.validation = [{"id": f"validation/{i}", **row} for i, row in enumerate(validation)]
        self.steps, self.batch, self.seed = steps, 4, 0
        self.said: list[str] = []
        self.lessons: list[Lesson] = []
        self.ledger: dict[str, dict[str, float]] = {}

    def ask(self, what: str, rows: Sequence[Row], *, n: int = 1, **how: Any) -> list[Row]:
        fill = template(what)
        texts = [fill(row) for row in rows for _ in range(n)]
        self.said += texts
        told = [row for row in rows for _ in range(n)]
        answers = [
            {**row, "completion": self.program(t)} for row, t in zip(told, texts, strict=True)
        ]
        asked = {"teacher": "teacher", "template": what}
        return [
            {**row, "provenance": {**row.get("provenance", {}), "asked": asked}}
            for row in answers
            if row["completion"]
        ]

    def write(self, student: Path, rows: Sequence[Row], **how: Any) -> list[Row]:
        told = [{**row, "completion": self.wrote(row["prompt"], student)} for row in rows]
        return [{"provenance": {}, **row} for row in told if row["completion"]]

    def verified(self, rows: Sequence[Row]) -> list[Row]:
        return verified(rows, Verify(kind="numeric"))

    def right(self, rows: Sequence[Row]) -> list[Row]:
        return [row for row in self.verified(rows) if row["provenance"]["verified"]["right"]]

    def reply(self, model: Any, prompts: Sequence[str]) -> list[str]:
        return [self.wrote(prompt, model) for prompt in prompts]

    def teach(self, lesson: Lesson) -> Path:
        self.lessons.append(lesson)
        return Path(lesson.name)

    def tell(self, what: str, **numbers: float) -> None:
        self.ledger[what] = numbers


def drawn(program: Callable[[str, random.Random], str]) -> Callable[[str], str]:
    """A program of a world whose draws depend on the text alone."""
    return lambda said: program(said, random.Random(said))
