"""What a pipeline works with: a teacher asked, lessons taught, answers written, all kept."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer

from stillroom.config.asking import Answering
from stillroom.config.lessons import Build, Lessons
from stillroom.config.recipe import Recipe
from stillroom.config.values import plain, within
from stillroom.core import Failure, Lesson, Pipeline
from stillroom.data.rows import Row
from stillroom.data.text import Renderer
from stillroom.data.turns import answer, question
from stillroom.models import text
from stillroom.models.sources import fingerprint
from stillroom.pipelines._stages import code_of, stage
from stillroom.rollouts.sampling import Sampling, sample
from stillroom.store.requests import digest
from stillroom.traces.verifying import verified


class Work:
    """Implements ``core.Work`` for one recipe.

    Args:
        recipe: with a pipeline.
        rows: questions by split; the test split is not looked at.
        world: that they are of.
        build: makes a job of a recipe and of the rows of its training split; None are its own.
        again: how many times all was made anew before; 0 takes what is kept.
    """

    def __init__(
        self,
        recipe: Recipe,
        rows: Mapping[str, Sequence[tuple[str, Row]]],
        world: Any,
        build: Build,
        again: int = 0,
    ) -> None:
        assert recipe.pipeline is not None
        if recipe.train.steps is None:
            raise Failure("train.steps: a pipeline parts them over its lessons; give their number")
        self.recipe, self.again = recipe, again
        self.lessons = Lessons(recipe, build, again)
        self.pipeline: Pipeline = recipe.pipeline
        self.rows, self.validation = (
            [_question(row, f"{split}/{i}", where) for i, (where, row) in enumerate(rows[split])]
            if split in rows
            else []
            for split in ("train", "validation")
        )
        self.steps, self.seed = recipe.train.steps, recipe.run.seed
        self.ledger: list[dict[str, Any]] = []
        self.tokenizer: Any = None
        """The student's, once the last lesson is known."""
        self._loaded: dict[Path, tuple[Any, Any]] = {}
        self.answering = Answering(recipe, world, self.ledger)

    def ask(
        self, what: str, rows: Sequence[Row], *, n: int = 1, temperature: float | None = None
    ) -> list[Row]:
        return self.answering.ask(what, rows, n=n, temperature=temperature)

    def verified(self, rows: Sequence[Row]) -> list[Row]:
        if (verify := self.recipe.verifier) is None:
            raise Failure("verify: say how an answer is checked, such as {kind: numeric}")
        found = verified(rows, verify, places=[str(row["id"]) for row in rows])
        whose = {row["provenance"].get("asked", {}).get("teacher", "data") for row in found}
        right = sum(bool(row["provenance"]["verified"]["right"]) for row in found)
        self.tell(f"verified, of {' and '.join(sorted(whose))}", answers=len(found), right=right)
        return found

    def right(self, rows: Sequence[Row]) -> list[Row]:
        return [row for row in self.verified(rows) if row["provenance"]["verified"]["right"]]

    def tell(self, what: str, **numbers: float) -> None:
        self.ledger.append({"what": what, **numbers})

    @property
    def said(self) -> str:
        """The ledger so far, for messages."""
        return json.dumps(self.ledger, ensure_ascii=False)[:2000]

    def plan(self) -> dict[str, Any]:
        """What is known before anything is asked."""
        most = self.pipeline.questions(self)
        return {"pipeline": [{"what": "questions to the teacher, at most", "questions": most}]}

    def examples(self) -> list[Row]:
        """Rows of the form that lessons have, whatever they will say."""
        return [{**r, "completion": r.get("completion") or r.get("gold") or "?"} for r in self.rows]

    def reply(self, model: Any, prompts: Sequence[str]) -> list[str]:
        """What a model (a folder, or one in memory) writes to plain prompts; nothing is kept."""
        if isinstance(model, Path):
            if model not in self._loaded:
                self._loaded[model] = text.load(str(model)), AutoTokenizer.from_pretrained(model)
            model, tokenizer = self._loaded[model]
        else:
            tokenizer = self.tokenizer
        rows = [{"prompt": prompt} for prompt in prompts]
        answers = _written(model, tokenizer, rows, 1, self.recipe.sampling, self.seed)
        return [said for (said,) in answers]

    def teach(self, lesson: Lesson) -> Path:
        self._check(lesson)
        folder, numbers = self.lessons.taught(lesson)
        self.tell(f"taught {lesson.name}", **numbers)
        return folder

    def _check(self, lesson: Lesson) -> None:
        if lesson.rows is not None and not lesson.rows:
            raise Failure(f"{lesson.name}: no row is left to learn from: {self.said}")

    def last(self) -> Lesson:
        """Runs the pipeline up to its last lesson, whose rows must be some.

        Raises:
            Failure: as the pipeline; nothing is left to learn from, or it spent more steps than the
                recipe gives.
        """
        name = type(self.pipeline).__name__
        with within("pipeline"):
            lesson = self.pipeline.run(self)
            with within(name):
                self._check(lesson)
            taken = self.lessons.spent.steps + lesson.steps
            if taken > self.steps:
                raise Failure(f"{name}: train.steps gives {self.steps} and {taken} were taken")
        return lesson

    def write(
        self,
        student: Path,
        rows: Sequence[Row],
        *,
        n: int = 1,
        temperature: float = 0.0,
    ) -> list[Row]:
        how = replace(self.recipe.sampling, temperature=temperature)
        key = {"rows": digest([_asked(row) for row in rows]), "n": n, "sampling": plain(how)}
        key |= {"student": fingerprint(str(student)), "seed": self.seed, "again": self.again}

        def make(folder: Path) -> None:
            model, tokenizer = text.load(str(student)), AutoTokenizer.from_pretrained(student)
            told = _written(model, tokenizer, rows, n, how, self.seed)
            said = json.dumps(told, ensure_ascii=False)
            (folder / "answers.json").write_text(said, encoding="utf-8")

        place = stage("written", make, code=code_of(), **key)
        answers = json.loads((place / "answers.json").read_text(encoding="utf-8"))
        by = {"teacher": "student", "temperature": temperature}
        return [
            {**row, "completion": said, "provenance": _asked_of(row, {**by, "copy": copy})}
            for row, copies in zip(rows, answers, strict=True)
            for copy, said in enumerate(copies)
            if said
        ]


def _written(
    model: Any, tokenizer: Any, rows: Sequence[Row], n: int, how: Sampling, seed: int
) -> list[list[str]]:
    renderer = Renderer(tokenizer, model.stop_ids)
    prompts = [renderer.asked(row)[1] for row in rows]
    answers = sample(model, prompts, torch.arange(len(rows)), n, seed=seed, sampling=how)
    said = [renderer.decode(ids) for ids in answers]
    return [said[i : i + n] for i in range(0, len(said), n)]


def _question(row: Row, id: str, where: str) -> Row:
    """A row with an id; what answers its messages stands apart from them."""
    asked = question(row, where)
    if isinstance(asked, str):
        return {"id": id, **row}
    told = {"id": id, **row, "messages": asked}
    if len(asked) == len(row["messages"]):
        return told
    return {**told, "completion": answer(row["messages"], where)}


def _asked_of(row: Row, asked: Mapping[str, Any]) -> dict[str, Any]:
    return {**row.get("provenance", {}), "asked": dict(asked)}


def _asked(row: Row) -> list[Any]:
    return [row.get("prompt"), row.get("messages")]
