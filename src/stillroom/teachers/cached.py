"""Any source of answers behind a store: nothing asked twice, no budget passed, nothing lost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from stillroom.failures import Failure
from stillroom.store.answers import Store
from stillroom.store.budget import Budget, Cost
from stillroom.store.requests import Identity, Outcome, Request, Tokens, key
from stillroom.teachers.asking import Asking, Source, finished

Tick = Callable[["Cached"], None]


class Cached:
    """The questions of one collection, put to a source through a store.

    A question whose answer had arrived is not asked again, be it in another process, or an answer
    that is then dropped. Equal questions are one. What a budget bounds is the cost of all attempts
    at these questions, of earlier runs too.

    Args:
        source: whom to ask.
        store: where all is kept.
        requests: the questions, in the order of their rows.
        budget: bounds and price.
    """

    def __init__(
        self, source: Source, store: Store, requests: Sequence[Request], budget: Budget
    ) -> None:
        self.source, self.store, self.budget = source, store, budget
        self.keys = [key(source.identity, source.rendered(r), r.copy) for r in requests]
        self.questions = dict(zip(self.keys, requests, strict=True))
        self.stopped: str | None = None
        """Why it ended before all was asked, where the budget said so."""
        self.faults: Mapping[str, int] = {}
        """Attempts of this run that brought no answer, by what was wrong."""
        self.look()

    def look(self) -> None:
        """Reads what the store holds of these questions."""
        self.outcomes: dict[str, Outcome] = {}
        self.budget.spent = Cost()
        for name in self.questions:
            for most, outcome in self.store.past(name):
                self.budget.count(most, outcome and outcome.tokens)
                if outcome and outcome.arrived:
                    self.outcomes.setdefault(name, outcome)
        self.found = frozenset(self.outcomes)
        """Keys whose answers were there before this run."""
        self.before = self.budget.spent

    @property
    def open(self) -> dict[str, Request]:
        """The questions without an outcome, by key, in order."""
        return {k: asked for k, asked in self.questions.items() if k not in self.outcomes}

    def estimate(self) -> tuple[Cost, Cost]:
        """About what the open questions cost (4 bytes a token, answers of full length); at most."""
        most = [self.source.most(asked) for asked in self.open.values()]
        about = [Tokens(tokens.prompt // 4, tokens.answer) for tokens in most]
        return self.budget.cost(*about), self.budget.cost(*most)

    def run(self, tick: Tick = lambda cached: None) -> None:
        """Asks what is open; ``tick`` is called whenever an attempt has ended.

        Raises:
            Failure: another process writes the store, or it holds answers of the same model with
                another tokenizer or template; a budget, but no bound on the length of answers; a
                fault that no question can pass.
        """
        if not self.open:
            return
        self._check()
        with self.store.writing():
            self.look()  # what another process wrote meanwhile
            self._ask(tick)

    def _ask(self, tick: Tick) -> None:
        def ended(name: str | None, outcome: Outcome | None) -> None:
            if name is not None and outcome is not None:
                self.outcomes[name] = outcome
            tick(self)

        asking = Asking(self.source, self.store, self.budget, self.open, ended)
        self.faults = asking.faults
        finished(asking.run())
        self.stopped = asking.stopped
        if asking.error is None:
            return
        if not isinstance(asking.error, Failure):
            raise asking.error
        arrived = sum(outcome.arrived for outcome in self.outcomes.values())
        why = str(asking.error).rstrip(".")
        raise Failure(
            f"{why}. {arrived} of {len(self.questions)} answers are in the store "
            f"{self.store.folder}, and stay there{self._others()}"
        )

    def _check(self) -> None:
        if self.budget.bounded and not all(self.source.most(r).answer for r in self.open.values()):
            raise Failure(
                "a budget needs a bound on the length of answers: give --max-tokens (in a recipe "
                "teacher.sampling.max_tokens)"
            )
        own = self.source.identity
        for other in self.store.sources():
            same = [other.get(name) == own[name] for name in ("kind", "model")]
            if own["kind"] == "local" and all(same) and other != own:
                raise Failure(
                    f"the store {self.store.folder} holds answers of {own['model']} as it was "
                    f"before: {differences(other, own)}. Give another store, or the model that was"
                )

    def _others(self) -> str:
        """How the teachers whose answers are there differ from this one, where it has none."""
        own = self.source.identity
        there = [other for other in self.store.sources() if other != own]
        if not there or any(outcome.arrived for outcome in self.outcomes.values()):
            return ""
        return "; it holds answers of other teachers: " + "; or ".join(
            differences(other, own) for other in there
        )

    def ledger(self, *, keep_truncated: bool = False) -> dict[str, Any]:
        """What became of each row's question and what it cost, in plain values."""
        judged = [self.judged(name, keep_truncated=keep_truncated) for name in self.keys]
        kinds = Counter("left" if outcome is None else outcome.kind for outcome in judged)
        run = self.budget.spent - self.before
        new = [self.outcomes[k] for k in self.outcomes if k not in self.found]
        told = [self.outcomes[k].tokens for k in self.keys if k in self.outcomes]
        whole = self.budget.cost(*(t for t in told if t))
        known = self.budget.cost(*(o.tokens for o in new if o.tokens))
        return {
            "teacher": dict(self.source.identity),
            "questions": len(self.keys),
            "answered": kinds.pop("answer", 0),
            "left": kinds.pop("left", 0),
            "dropped": dict(kinds),
            "from_store": sum(name in self.found for name in self.keys),
            "faults": dict(self.faults),
            "price": self.budget.price.says if self.budget.price else "not known: tokens only",
            "cost": self.budget.told(run),
            "cost_of_all_runs": self.budget.told(self.budget.spent),
            "cost_without_store": self.budget.told(run + whole - known),
            **({"stopped": self.stopped} if self.stopped else {}),
        }

    def judged(self, name: str, *, keep_truncated: bool = False) -> Outcome | None:
        """The outcome of a question, its kind ``answer`` where a row is made of it."""
        outcome = self.outcomes.get(name)
        if outcome and outcome.kind == "truncated" and keep_truncated:
            kind = "answer" if outcome.text.strip() else "empty"
            return Outcome(kind, outcome.text, outcome.why, outcome.tokens)
        return outcome


def differences(other: Identity, own: Identity) -> str:
    """What tells two teachers apart, in words."""
    names = [name for name in {**own, **other} if other.get(name) != own.get(name)]
    return ", ".join(
        f"{n} is {_short(other.get(n))} there, {_short(own.get(n))} here" for n in names
    )


def _short(value: Any) -> str:
    return f"{value!r:.60}"
