"""A teacher behind a server that scores given tokens, as a recipe tells of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from stillroom.config.collected import budget_of, server
from stillroom.config.recipe import Recipe
from stillroom.config.specs import TeacherSpec
from stillroom.config.teachers import differs
from stillroom.config.values import within
from stillroom.core import Failure
from stillroom.data.text import Example, TextData
from stillroom.engine.parallel import Processes
from stillroom.store.answers import Store
from stillroom.store.requests import Identity, Request
from stillroom.teachers.api import Api
from stillroom.teachers.asking import Ledger
from stillroom.teachers.probing import Finding, Probe
from stillroom.teachers.scoring import Tick, write
from stillroom.teachers.served import Scorer, Served, asked, named
from stillroom.teachers.stored import Kept, Stored

QUESTION = "What is the capital of France?"
LEAST = 3
"""Tokens of a sequence that a server is probed with."""
ROUNDS = 4
"""Sequences that are asked for before any is written, by how many are in flight at once."""


def served(told: TeacherSpec, tokenizer: Any, ledger: Ledger | None = None) -> Served:
    """The server as a teacher of what ``tokenizer`` (the student's) has tokens for.

    Raises:
        Failure: its tokenizer is another one, there are not K tokens, a budget in dollars has no
            price.
    """
    if tokenizer is None:
        raise Failure("a server scores text alone; leave 'signals' out")
    if how := differs(told, tokenizer):
        raise Failure(f"{how}. It cannot score the student's tokens")
    k, vocab = Kept.of(str(told.signals)).count, max(tokenizer.get_vocab().values()) + 1
    if k >= vocab:
        raise Failure(f"topk:{k}: k must be between 1 and {vocab - 1}")
    source = Scorer(**server(told), k=k)
    return Served(source, vocab, budget_of(told, source), ledger)


def live(recipe: Recipe, tokenizer: Any) -> Served:
    """The server, asked about each batch when it is learned from: also what the student wrote.

    Raises:
        Failure: as ``served``; the student is narrowed to a view; several processes have one
            budget.
    """
    with within("teacher.signals"):
        if recipe.student.vocab == "view":
            raise Failure(
                "the K likeliest tokens are of the whole vocabulary; train with 'student.vocab: "
                "full'"
            )
        teacher = served(recipe.teacher, tokenizer)
        if teacher.budget.bounded and Processes().world > 1:
            raise Failure(
                "several processes ask, and none counts what the others spend: keep its scores in "
                "a teacher.store first, or leave the budget out"
            )
    return teacher


def identity(told: TeacherSpec) -> Identity:
    """What tells a server's scores from others, beside the tokenizer."""
    found = Scorer(**server(told), k=1).identity
    return {name: found[name] for name in ("model", "base_url")}


def keep(
    told: TeacherSpec,
    tokenizer: Any,
    stored: Stored,
    data: Sequence[TextData],
    lacks: Sequence[tuple[TextData, int]],
    tick: Tick,
) -> None:
    """Has a server score what a store lacks; attempts and their cost are written down beside it.

    Raises:
        Failure: as ``served`` and ``teachers.served.asked``; another process writes there.
    """
    store = Store(str(told.store))
    teacher = served(told, tokenizer, store)
    longest = max(len(_ids(texts.examples[index])) for texts, index in lacks)
    with store.writing():
        if teacher.budget.bounded:
            _recall(teacher, store, data)
        side = ROUNDS * told.concurrency * longest
        write(teacher, stored, lacks, budget=side, tick=tick)


def spoken(told: TeacherSpec) -> tuple[str, str]:
    """One question to a server that writes, and its answer; Failure where none comes."""
    how = replace(told.sampling, max_tokens=told.sampling.max_tokens or 64)
    source = Api(**server(told), endpoint=told.endpoint)
    (outcome,) = asked(source, [Request(QUESTION, how)], budget_of(told, source))
    return QUESTION, outcome.text


def probed(told: TeacherSpec, tokenizer: Any, texts: TextData) -> Iterator[Finding]:
    """Tests of a server that scores, on the first sequence of the data that is long enough.

    Raises:
        Failure: as ``served``; no sequence is; the server does not answer.
    """
    long = (ids for ids in map(_ids, texts.examples) if len(ids) >= LEAST)
    if (ids := next(long, None)) is None:
        raise Failure(f"no sequence of the data has {LEAST} tokens, to ask the teacher about")
    teacher = served(told, tokenizer)
    yield from Probe(teacher.source, teacher.vocab, teacher.budget, tokenizer, ids).findings()


def _recall(teacher: Served, store: Store, data: Sequence[TextData]) -> None:
    """Counts what earlier runs spent on these sequences."""
    every = (Request(_ids(example)) for texts in data for example in texts.examples)
    for name in {named(teacher.source, request) for request in every}:
        for most, outcome in store.past(name):
            teacher.budget.count(most, outcome and outcome.tokens)


def _ids(example: Example) -> list[int]:
    return [*example.prompt_ids, *example.completion_ids]
