"""What a teacher is asked, what came of it, and the key under which a store finds it again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

from annotated_types import Ge, Gt, Le

Identity = Mapping[str, Any]
"""Which teacher it is: kind, model, and all else that its answers depend on."""

ARRIVED = ("answer", "truncated", "refusal", "empty")
"""Outcomes that are the teacher's words; the others (``malformed``, ``rejected``, ``failed``) leave
the question open."""


@dataclass(frozen=True, kw_only=True)
class Decoding:
    """How a teacher that is asked for text chooses its words; null leaves it to the teacher.

    Args:
        temperature: 0 takes the likeliest.
        top_p: the least set of tokens with this probability is drawn from.
        max_tokens: of an answer, its end included; a budget requires it.
        stop: texts that end an answer, and are not part of it.
        seed: copy ``k`` of a question is asked with ``seed + k``.
    """

    temperature: Annotated[float, Ge(0)] | None = None
    top_p: Annotated[float, Gt(0), Le(1)] | None = None
    max_tokens: Annotated[int, Ge(1)] | None = None
    stop: tuple[str, ...] = ()
    seed: int | None = None


@dataclass(frozen=True)
class Request:
    """One question: a plain prompt or a list of messages, and which copy of it this is."""

    said: Any
    decoding: Decoding = field(default_factory=Decoding)
    copy: int = 0

    @property
    def messages(self) -> list[Mapping[str, Any]] | None:
        """The messages, where it is no plain prompt."""
        return None if isinstance(self.said, str) else list(self.said)

    @property
    def seed(self) -> int | None:
        return None if self.decoding.seed is None else self.decoding.seed + self.copy


@dataclass(frozen=True)
class Tokens:
    """Tokens of a question and of its answer."""

    prompt: int = 0
    answer: int = 0

    def __add__(self, other: Tokens) -> Tokens:
        return Tokens(self.prompt + other.prompt, self.answer + other.answer)

    def __sub__(self, other: Tokens) -> Tokens:
        return Tokens(self.prompt - other.prompt, self.answer - other.answer)

    @property
    def total(self) -> int:
        return self.prompt + self.answer


@dataclass(frozen=True)
class Outcome:
    """What came of one attempt.

    Args:
        kind: of ``ARRIVED``, or what went wrong.
        text: the answer.
        why: what was wrong, in words.
        tokens: as the teacher counted them; None where that is not known.
        again: whether another attempt may fare better.
        after: seconds that the server asks to wait before it.
        fatal: no other question would fare better either.
    """

    kind: str
    text: str = ""
    why: str = ""
    tokens: Tokens | None = None
    again: bool = False
    after: float = 0.0
    fatal: bool = False

    @property
    def arrived(self) -> bool:
        return self.kind in ARRIVED


def digest(value: Any) -> str:
    """The SHA-256 of a plain value as canonical JSON."""
    told = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(told.encode("utf-8", "surrogatepass")).hexdigest()


def key(identity: Identity, rendered: Any, copy: int) -> str:
    """The name of a question: who is asked, exactly what (words or token ids, decoding), which."""
    return digest([dict(identity), rendered, copy])
