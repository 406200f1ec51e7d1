"""Putting questions to a source: some at a time, within a budget, each attempt written down."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, suppress
from functools import partial
from typing import Any, Protocol

from stillroom.failures import Failure
from stillroom.store.budget import Budget
from stillroom.store.prices import Price
from stillroom.store.requests import Identity, Outcome, Request, Tokens

IN_A_ROW = 20
"""Questions that fail one after the other before the source is given up."""

Ask = Callable[[Sequence[Request]], Awaitable[Sequence[Outcome]]]
Rest = Callable[[float], Awaitable[None]]


class Source(AbstractAsyncContextManager[Any], Protocol):
    """Anything that answers questions: a server, a model in this process."""

    identity: Identity
    lanes: int
    """Calls of ``ask`` at once."""
    size: int
    """Questions of one call."""

    def price(self) -> Price | None:
        """None where it is not known."""
        ...

    def rendered(self, request: Request) -> Any:
        """All that the answer depends on, beside ``identity`` and the copy, as plain values."""
        ...

    def most(self, request: Request) -> Tokens:
        """What an attempt costs at most; an answer of 0 tokens has no bound."""
        ...

    def patient(self, ask: Ask, rest: Rest) -> Ask:
        """``ask``, repeated as long as that may help, with ``rest`` between."""
        ...

    async def ask(self, requests: Sequence[Request]) -> Sequence[Outcome]:
        """One attempt at up to ``size`` questions."""
        ...


class Ledger(Protocol):
    """Where attempts and what came of them are written down; see ``store.answers.Store``."""

    def begin(self, identity: Identity, key: str, rendered: Any, most: Tokens) -> int: ...
    def end(self, attempt: int, outcome: Outcome) -> None: ...


class Asking:
    """One run over open questions. When it must end early, what is in flight still arrives.

    Args:
        source: whom to ask.
        store: where attempts and outcomes are written.
        budget: what is spent already, and the bounds.
        questions: by key.
        tick: called with each key and its final outcome, and with None whenever an attempt ended.
    """

    def __init__(
        self,
        source: Source,
        store: Ledger,
        budget: Budget,
        questions: Mapping[str, Request],
        tick: Callable[[str | None, Outcome | None], None],
    ) -> None:
        self.source, self.store, self.budget = source, store, budget
        self.questions, self.tick = questions, tick
        self.stopped: str | None = None
        """Why it ended before all was asked, where the budget said so."""
        self.error: Exception | None = None
        self.faults: Counter[str] = Counter()
        """Attempts that brought no answer, by what was wrong."""
        self._in_a_row = 0

    async def run(self) -> None:
        self._changed, self._ended = asyncio.Condition(), asyncio.Event()
        names, size = list(self.questions), self.source.size
        chunks = iter([names[i : i + size] for i in range(0, len(names), size)])
        async with self.source:
            await asyncio.gather(*(self._lane(chunks) for _ in range(self.source.lanes)))

    async def _lane(self, chunks: Iterator[list[str]]) -> None:
        for chunk in chunks:
            ask = self.source.patient(partial(self._attempt, chunk), self._rest)
            try:
                outcomes = await ask([self.questions[name] for name in chunk])
                for name, outcome in zip(chunk, outcomes, strict=False):  # none where it ended
                    await self._judge(name, outcome)
            except Exception as error:  # in other lanes something may be in flight
                await self._end(error=error)

    async def _attempt(self, chunk: Sequence[str], requests: Sequence[Request]) -> list[Outcome]:
        """One attempt, written before and after; no outcomes where it may not be made."""
        most = [self.budget.widened(self.source.most(request)) for request in requests]
        if not await self._held(chunk, most):
            return []
        numbers = [
            self.store.begin(self.source.identity, name, self.source.rendered(request), bound)
            for name, request, bound in zip(chunk, requests, most, strict=True)
        ]
        outcomes = list(await self.source.ask(requests))
        for name, number, outcome in zip(chunk, numbers, outcomes, strict=True):
            self.store.end(number, outcome)
            self.budget.settle(name, outcome.tokens)
            self.faults.update([] if outcome.arrived else [outcome.why])
        async with self._changed:
            self._changed.notify_all()
        self.tick(None, None)
        return outcomes

    async def _held(self, chunk: Sequence[str], most: Sequence[Tokens]) -> bool:
        """Waits until the budget has room; where it never will, ends the run."""

        def settled() -> bool:
            return self._ended.is_set() or self.budget.room(*most) or self.budget.idle

        async with self._changed:
            await self._changed.wait_for(settled)
        if self._ended.is_set():
            return False
        if not self.budget.room(*most):
            await self._end(stopped="the budget is reached")
            return False
        for name, bound in zip(chunk, most, strict=True):
            self.budget.hold(name, bound)
        return True

    async def _judge(self, name: str, outcome: Outcome) -> None:
        """Takes the final outcome of a question, or ends the run where no other would do better."""
        if outcome.fatal:
            await self._end(error=Failure(outcome.why))
            return
        self._in_a_row = 0 if outcome.arrived else self._in_a_row + 1
        self.tick(name, outcome)
        if self._in_a_row >= IN_A_ROW:
            why = f"{IN_A_ROW} questions in a row brought no answer; the last: {outcome.why}"
            await self._end(error=Failure(why))

    async def _end(self, *, error: Exception | None = None, stopped: str | None = None) -> None:
        self.error, self.stopped = self.error or error, self.stopped or stopped
        self._ended.set()
        async with self._changed:
            self._changed.notify_all()

    async def _rest(self, seconds: float) -> None:
        """Sleeps, but not beyond the end of the run."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._ended.wait(), seconds)


def finished(work: Coroutine[Any, Any, None]) -> None:
    """Runs it to its end, in a thread where this one has a loop already (a notebook)."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        asyncio.run(work)
        return
    with ThreadPoolExecutor(1) as pool:
        pool.submit(asyncio.run, work).result()
