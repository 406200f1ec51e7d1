"""Answers that the data lack, asked of the recipe's teacher through its store."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from stillroom.config.recipe import Recipe
from stillroom.config.specs import TeacherSpec
from stillroom.config.values import plain, within
from stillroom.core import Failure
from stillroom.data.rows import Row
from stillroom.engine.parallel import Processes
from stillroom.store.answers import Store
from stillroom.store.budget import Budget
from stillroom.store.prices import told_price
from stillroom.store.requests import digest
from stillroom.teachers.answering import answered, requests_of
from stillroom.teachers.api import Api
from stillroom.teachers.asking import Source
from stillroom.teachers.cached import Cached
from stillroom.teachers.scripted import Scripted
from stillroom.teachers.watching import watched
from stillroom.teachers.writing import writer

Named = list[tuple[str, Row]]
OPENAI = "openai:"
"""Before the name of a model in ``teacher.api``: the protocol that its server speaks."""


@dataclass
class Collected:
    """Rows by split, all with answers, and what is to be told of those that were asked for."""

    rows: dict[str, Named]
    left_out: dict[str, int] = field(default_factory=dict)
    files: list[dict[str, Any]] = field(default_factory=list)
    collected: dict[str, Any] = field(default_factory=dict)


def collected(recipe: Recipe, rows: Mapping[str, Named], *, ask: bool) -> Collected:
    """Rows of which those without an answer have the teacher's.

    The store is read first; what it lacks is asked, by one process for all. A row whose answer is
    refused, cut short or empty is left out, and counted. A teacher in this process is asked only
    where the recipe names a store for its answers.

    Args:
        recipe: its ``teacher`` says whom.
        rows: by split.
        ask: False asks nobody, and leaves out what the store lacks.

    Raises:
        Failure: as ``Cached.run``; no store is named; the budget is reached; a question was
            rejected, or failed each time: a run is taken up on the same rows only, so none is
            left out for what may pass.
    """
    told = recipe.teacher
    wanted = [pair for named in rows.values() for pair in named if _lacks(pair[1])]
    if not wanted or not (told.api or (told.model and told.store)):
        return Collected(dict(rows))
    with within("teacher"):
        if told.store is None:
            raise Failure("name a folder as teacher.store, in which the answers are kept")
        cached = _cached(told, told.store, wanted)
        if ask:
            asked_by_one(cached, told.store)
        return _filled(rows, wanted, cached, told)


def _lacks(row: Row) -> bool:
    if "messages" in row:
        turns = row["messages"]
        return (
            bool(turns) and isinstance(turns[-1], Mapping) and turns[-1].get("role") != "assistant"
        )
    return row.get("completion") is None


def _cached(told: TeacherSpec, store: str, wanted: Sequence[tuple[str, Row]]) -> Cached:
    source, requests = source_of(told), requests_of(wanted, told.sampling)
    return Cached(source, Store(store), requests, budget_of(told, source))


def source_of(told: TeacherSpec, world: Any = None) -> Source:
    """What answers questions by text: a server, a model in this process, a world's program.

    Raises:
        Failure: the teacher writes no text.
    """
    if told.api:
        return Api(**server(told), endpoint=told.endpoint)
    if told.model:
        names = ("dtype", "revision", "device_map", "trust_remote_code")
        return writer(told.model, **{name: getattr(told, name) for name in names})
    if told.world and "program" in dir(world):
        return Scripted(world.program(), type(world).__name__, plain(world))
    raise Failure(
        "it writes no text that can be asked for: give teacher.api, or teacher.model with a store "
        "(or, in the world chains, teacher.world)"
    )


def server(told: TeacherSpec) -> dict[str, Any]:
    """What tells an ``Api`` whom to ask."""
    return {
        "model": str(told.api).removeprefix(OPENAI),
        "base_url": told.base_url,
        "lanes": told.concurrency,
        "key_env": told.key_env,
    }


def budget_of(told: TeacherSpec, source: Source) -> Budget:
    """The bounds that are told, at the price that is told or known."""
    price = told_price(*told.price) if told.price else source.price()
    return Budget(told.budget_usd, told.budget_tokens, price)


def asked_by_one(cached: Cached, store: str) -> None:
    """Asks by the main process; the others wait, and read what came.

    Raises:
        Failure: as ``Cached.run``; a question is still open when it is over.
    """
    processes = Processes()
    error: Failure | None = None
    if processes.main:
        try:
            watched(cached)
        except Failure as failure:
            error = failure
    (error, *_) = processes.everyone(error)
    if error is not None:
        raise error
    cached.look()
    if not cached.open:
        return
    if cached.stopped:
        why = f"{cached.stopped}: raise it, or use the rows that 'stillroom collect' writes"
    else:
        why = "run it again to ask once more, or use the rows that 'stillroom collect' writes"
    faults = "; ".join(f"{n} times {what}" for what, n in cached.faults.items())
    raise Failure(
        f"{len(cached.open)} of {len(cached.questions)} answers are not in the store {store} "
        f"({faults or 'none was asked for'}): {why}"
    )


def _filled(
    rows: Mapping[str, Named], wanted: Named, cached: Cached, told: TeacherSpec
) -> Collected:
    answers = answered(wanted, cached, keep_truncated=told.keep_truncated)
    texts = [a.outcome.text for a in answers if a.outcome and a.row]
    dropped = Counter(
        f"answer {a.outcome.kind}" if a.outcome else "not asked yet" for a in answers if not a.row
    )
    if not texts:
        raise Failure(
            f"no row has an answer: {dict(dropped)}; a run asks for what is not yet asked"
        )
    waiting = iter(answers)
    filled = {
        split: [(where, next(waiting).row if _lacks(row) else row) for where, row in named]
        for split, named in rows.items()
    }
    ledger = cached.ledger(keep_truncated=told.keep_truncated)
    kept = {name: ledger[name] for name in ("teacher", "questions", "answered", "dropped")}
    kept["tokens_of_all_runs"] = cached.budget.spent.tokens.total
    name = f"answers of {cached.source.identity['model']}"
    return Collected(
        {
            split: [(w, row) for w, row in named if row is not None]
            for split, named in filled.items()
        },
        dict(dropped),
        [{"file": name, "rows": len(texts), "sha256": digest(texts)}],
        {name: kept},
    )
