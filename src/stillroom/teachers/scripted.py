"""A program that answers texts: the counterpart of a server in a made-up world."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from stillroom.store.prices import FREE, Price
from stillroom.store.requests import Identity, Outcome, Request, Tokens, key
from stillroom.teachers.asking import Ask, Rest
from stillroom.teachers.replies import judged

CHARACTERS = 4
"""Of a token, as it is counted here."""
LENGTH = 512
"""Tokens of an answer at most, where nothing is told."""


class Scripted:
    """Answers by a function of the text, and of numbers drawn from the question's own key.

    So an answer is a pure function of the question and its copy. It reads one text: of messages
    the last. Tokens are counted as a quarter of the characters.

    Args:
        program: ``program(text, draw) -> answer``.
        name: of the world.
        told: all that its answers depend on, as plain values.
    """

    lanes = 1
    size = 64

    def __init__(
        self, program: Callable[[str, random.Random], str], name: str, told: Mapping[str, Any]
    ) -> None:
        self.program = program
        self.identity: Identity = {"kind": "world", "model": name, "told": dict(told)}

    def price(self) -> Price:
        return FREE

    def rendered(self, request: Request) -> dict[str, Any]:
        how = request.decoding
        return {"said": request.said, "temperature": how.temperature, "seed": how.seed}

    def most(self, request: Request) -> Tokens:
        return Tokens(_tokens(_text(request)), request.decoding.max_tokens or LENGTH)

    async def __aenter__(self) -> Scripted:
        return self

    async def __aexit__(self, *error: object) -> None:
        return None

    def patient(self, ask: Ask, rest: Rest) -> Ask:
        """``ask`` itself: a program answers at once."""
        return ask

    async def ask(self, requests: Sequence[Request]) -> list[Outcome]:
        return [self.answer(request) for request in requests]

    def answer(self, request: Request) -> Outcome:
        """What the program says."""
        said = _text(request)
        drawn = random.Random(key(self.identity, self.rendered(request), request.copy))
        told = self.program(said, drawn)
        return judged(told, "stop", None, Tokens(_tokens(said), _tokens(told)))


def _text(request: Request) -> str:
    return request.messages[-1]["content"] if request.messages else request.said


def _tokens(text: str) -> int:
    return -(-len(text) // CHARACTERS)
