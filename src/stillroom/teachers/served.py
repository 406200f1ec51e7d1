"""A teacher behind a server that gives log-probabilities of given tokens: top-k, on-policy too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from stillroom.catalogue import closure
from stillroom.core import Batch, Failure, Signals, Sparse
from stillroom.store.budget import Budget
from stillroom.store.requests import Identity, Outcome, Request, Tokens, key
from stillroom.teachers.api import Api
from stillroom.teachers.asking import Asking, Ledger, Source, finished
from stillroom.teachers.entries import rows_of, sparse_of
from stillroom.teachers.replies import answer_of


@dataclass(frozen=True)
class Told(Outcome):
    """An outcome with all that the reply's one choice says."""

    choice: Mapping[str, Any] = field(default_factory=dict)


def told_of(reply: Any) -> Outcome:
    """Reads a reply; see ``Told``."""
    outcome = answer_of(reply)
    return Told(**vars(outcome), choice=reply["choices"][0]) if outcome.arrived else outcome


@dataclass(kw_only=True)
class Scorer(Api):
    """Asks for the log-probabilities of prompts that are given as token ids (``prompt_logprobs``).

    The protocol is vLLM's. Temperature and top_p are 1 where a request tells none, so that those
    which a server takes from a model's folder change nothing.

    Args:
        k: how many of each token's likeliest.
        next: also of each token that it writes.
    """

    k: int
    next: bool = False

    def rendered(self, request: Request) -> dict[str, Any]:
        how = request.decoding
        told = {
            "prompt": request.said,
            "max_tokens": how.max_tokens or 1,
            "temperature": 1.0 if how.temperature is None else how.temperature,
            "top_p": how.top_p or 1.0,
            "prompt_logprobs": self.k,
            **({"logprobs": self.k} if self.next else {}),
        }
        return {"path": "completions", "body": {"model": self.model, **told}}

    def most(self, request: Request) -> Tokens:
        said = request.said
        prompt = super().most(request).prompt if isinstance(said, str) else len(said)
        return Tokens(prompt, request.decoding.max_tokens or 1)

    async def ask(self, requests: Sequence[Request]) -> list[Outcome]:
        (request,) = requests
        outcome = await self.post(request, told_of)
        if outcome.kind != "rejected":
            return [outcome]
        asked = f"the {self.k} likeliest of each token were asked for (vLLM: --max-logprobs)"
        return [replace(outcome, why=f"{outcome.why}; {asked}")]


class Unkept:
    """In place of a store, where nothing is to be found again: the budget alone counts."""

    def begin(self, identity: Identity, key: str, rendered: Any, most: Tokens) -> int:
        return 0

    def end(self, attempt: int, outcome: Outcome) -> None:
        return None


def named(source: Source, request: Request) -> str:
    """The key of a question."""
    return key(source.identity, source.rendered(request), request.copy)


def asked(
    source: Source, requests: Sequence[Request], budget: Budget, ledger: Ledger | None = None
) -> list[Any]:
    """Outcomes of all requests, in order, all of which arrived; equal ones are asked once.

    Raises:
        Failure: the budget would be passed, or a request brought nothing; what is wrong is said.
    """
    names = [named(source, request) for request in requests]
    outcomes: dict[str, Outcome] = {}

    def ended(name: str | None, outcome: Outcome | None) -> None:
        if name is not None and outcome is not None:
            outcomes[name] = outcome

    questions = dict(zip(names, requests, strict=True))
    asking = Asking(source, ledger or Unkept(), budget, questions, ended)
    finished(asking.run())
    if asking.error is not None:
        raise asking.error
    if asking.stopped is not None:
        raise Failure(
            f"{asking.stopped}: {budget.says(budget.spent)} are spent, and "
            f"{len(questions) - len(outcomes)} of {len(questions)} requests would pass it; raise "
            "teacher.budget_tokens or teacher.budget_usd"
        )
    if lost := [outcome for outcome in outcomes.values() if not outcome.arrived]:
        raise Failure(
            f"{source.identity['model']!r} did not answer {len(lost)} of {len(questions)} "
            f"requests: {lost[0].why}"
        )
    return [outcomes[name] for name in names]


class Served:
    """Scores the tokens of a batch by a server: the K likeliest of each row, and the rest.

    Sequences are sent as token ids, ``source.lanes`` at once, and each at most once a batch.

    Args:
        source: whom to ask.
        vocab: ids of its tokenizer are below this.
        budget: bounds on the tokens of all requests.
        ledger: where attempts are written down.
    """

    fresh = True
    signals = closure({"topk", "text"})

    def __init__(
        self, source: Scorer, vocab: int, budget: Budget, ledger: Ledger | None = None
    ) -> None:
        self.source, self.vocab, self.budget, self.ledger = source, vocab, budget, ledger

    def __call__(self, batch: Batch, *, grad: bool = False) -> Signals:
        """``sparse`` at the batch's rows; Failure where a reply is not as it must be."""
        length, owner = batch["ids"].shape[1], batch.owner
        sequences, places = [], []
        for i in range(batch.size):
            real = batch["real"][i]
            start = i * length + int(real.int().argmax())
            sequences.append(batch["ids"][i][real].tolist())
            places.append((batch["rows"][owner == i] - start).tolist())
        asks = [i for i, rows in enumerate(places) if rows]
        told = asked(self.source, [Request(sequences[i]) for i in asks], self.budget, self.ledger)
        k, vocab, device = self.source.k, self.vocab, batch["ids"].device
        rows = [
            row
            for i, one in zip(asks, told, strict=True)
            for row in rows_of(one.choice, sequences[i], places[i], k, vocab)
        ]
        found = sparse_of(rows, k, vocab)
        moved = {name: v.to(device) if isinstance(v, Tensor) else v for name, v in found.items()}
        return Signals(sparse=Sparse(moved))
