"""A pipeline's questions to the recipe's teacher: priced before, kept, counted, never twice."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from stillroom.config.collected import asked_by_one, budget_of, source_of
from stillroom.config.recipe import Recipe
from stillroom.config.values import within
from stillroom.core import Failure
from stillroom.data.rows import Row
from stillroom.data.templates import template
from stillroom.store.answers import Store
from stillroom.store.budget import Budget, Cost
from stillroom.store.requests import Outcome, Request
from stillroom.teachers.cached import Cached
from stillroom.teachers.scripted import Scripted

ANSWER = "answer"
"""The template of a plain answer, which data may hold already."""


class Answering:
    """Puts rows to the teacher through templates, and writes what that cost into a ledger.

    The recipe's budget bounds all questions of a pipeline together.
    """

    def __init__(self, recipe: Recipe, world: Any, ledger: list[dict[str, Any]]) -> None:
        self.recipe, self.told, self.world, self.ledger = recipe, recipe.teacher, world, ledger
        self.templates: Mapping[str, str] = recipe.pipeline.templates if recipe.pipeline else {}
        self.spent = Cost()

    def ask(
        self, what: str, rows: Sequence[Row], *, n: int = 1, temperature: float | None = None
    ) -> list[Row]:
        """As ``core.Work.ask``.

        Raises:
            Failure: the data hold no such answers, the budget is reached, the teacher fails.
        """
        if not rows:
            return []
        with within(f"teacher, asked {what!r}"):
            if self.told.recorded:
                return self._recorded(what, rows, n)
            fill = template(what, self._files())
            how = self.told.sampling
            how = how if temperature is None else replace(how, temperature=temperature)
            requests = [Request(fill(row), how, copy) for row in rows for copy in range(n)]
            outcomes, model = self._outcomes(what, requests)
        asked = {"teacher": "teacher", "model": model, "template": what}
        return [
            {**row, "completion": found.text, "provenance": _with(row, {**asked, "copy": copy})}
            for (row, copy), found in zip(
                [(row, copy) for row in rows for copy in range(n)], outcomes, strict=True
            )
            if found.kind == "answer"
        ]

    def _files(self) -> dict[str, str]:
        """The person's own templates, sought beside the recipe too."""
        found = {}
        for name, file in self.templates.items():
            beside = self.recipe.folder / file
            found[name] = str(beside if beside.is_file() else file)
        return found

    def _recorded(self, what: str, rows: Sequence[Row], n: int) -> list[Row]:
        """Answers that the data hold: ``completions``, a list, or the one ``completion``."""
        if what != ANSWER:
            raise Failure(
                "the teacher's answers are recorded, so it cannot be asked anything else: give a "
                "teacher that answers (api, model with store, or world)"
            )
        found = []
        for row in rows:
            said = row.get("completions") or [row.get("completion")]
            told = [{"teacher": "data", "copy": copy} for copy in range(n)]
            found += [
                {**row, "completion": text, "provenance": _with(row, asked)}
                for asked, text in zip(told, said, strict=False)  # as many as there are
                if text
            ]
        if not found:
            raise Failure("no row has a completion: name a teacher that writes them")
        self.ledger.append({"what": "answers of the data", "answers": len(found)})
        return found

    def _outcomes(self, what: str, requests: Sequence[Request]) -> tuple[list[Outcome], str]:
        source = source_of(self.told, self.world)
        if isinstance(source, Scripted) and self.told.store is None:
            # a function of the question: nothing is lost when it is asked again
            outcomes = asyncio.run(source.ask(requests))
            self._count(what, outcomes, {"questions": len(requests)})
            return outcomes, source.identity["model"]
        if self.told.store is None:
            raise Failure("name a folder as teacher.store, in which the answers are kept")
        cached = Cached(source, Store(self.told.store), requests, self._left(source))
        about, most = cached.estimate()
        open_, before = len(cached.open), cached.before
        asked_by_one(cached, self.told.store)
        self.spent += cached.budget.spent
        outcomes = [cached.judged(k, keep_truncated=self.told.keep_truncated) for k in cached.keys]
        told = cached.budget.told
        numbers = {
            "questions": len(requests),
            "from_store": len(requests) - open_,
            "estimate": told(about),
            "at_most": told(most),
            "cost": told(cached.budget.spent - before),
            "cost_of_all_runs": told(cached.budget.spent),
        }
        self._count(what, [o for o in outcomes if o], numbers)
        return [o or Outcome("left") for o in outcomes], source.identity["model"]

    def _left(self, source: Any) -> Budget:
        """What the questions before left of the recipe's budget."""
        whole = budget_of(self.told, source)
        usd = None if whole.usd is None else max(0.0, whole.usd - self.spent.dollars)
        tokens = None if whole.tokens is None else max(0, whole.tokens - self.spent.tokens.total)
        return Budget(usd, tokens, whole.price)

    def _count(self, what: str, outcomes: Sequence[Outcome], numbers: Mapping[str, Any]) -> None:
        kinds = Counter(o.kind for o in outcomes)
        answers = kinds.pop("answer", 0)
        words = sum(o.tokens.answer for o in outcomes if o.tokens)
        told = {"answers": answers, "dropped": dict(kinds), "answer_tokens": words}
        self.ledger.append({"what": f"asked {what}", **numbers, **told})


def _with(row: Row, asked: Mapping[str, Any]) -> dict[str, Any]:
    return {**row.get("provenance", {}), "asked": dict(asked)}
