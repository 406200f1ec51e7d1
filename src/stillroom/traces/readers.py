"""Readers: the features of an answer that a trained pairwise scorer weighs."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from stillroom.data.text import Renderer, TextData
from stillroom.failures import Failure
from stillroom.models.cut import Early
from stillroom.models.text import CausalLM
from stillroom.nets.pooled import MeanState

Texts = Sequence[tuple[Any, str]]
"""Questions (texts or messages) with an answer each."""
SIDE_BY_SIDE = 8
"""Texts that a language model reads at once."""


class Reader(Protocol):
    """Reads answers as features, and does not learn."""

    @property
    def identity(self) -> Mapping[str, Any]:
        """What its features depend on, in plain values."""
        ...

    def __call__(self, texts: Texts) -> Tensor:
        """[n, d] float64."""
        ...


def plain(said: Any) -> str:
    """A question's words alone."""
    return said if isinstance(said, str) else "\n".join(turn["content"] for turn in said)


def words(text: str) -> list[str]:
    """Runs of letters and digits, in lower case."""
    return re.findall(r"\w+", text.lower())


def repeated(told: Sequence[str], n: int = 3) -> float:
    """Share of the n-grams that stood before: ``1 - distinct / all``; 0 where there is none."""
    grams = [tuple(told[i : i + n]) for i in range(len(told) - n + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def share_of(part: Sequence[str], whole: Sequence[str]) -> float:
    """Share of the distinct words of ``part`` that ``whole`` has, too."""
    return len({*part} & {*whole}) / len({*part}) if part else 0.0


_LIST = re.compile(r"^\s*(?:[-*\u2022]|\d+[.)])\s", re.MULTILINE)
_NO = re.compile(r"\b(?:sorry|cannot|can't|unable to|as an ai)\b", re.IGNORECASE)
Measure = Callable[[str, str, list[str], list[str]], float]
"""Of question and answer, as texts and as words."""
FEATURES: dict[str, Measure] = {
    "log_words": lambda q, a, qw, aw: math.log1p(len(a.split())),
    "log_words_squared": lambda q, a, qw, aw: math.log1p(len(a.split())) ** 2,
    "word_length": lambda q, a, qw, aw: sum(map(len, aw)) / max(1, len(aw)),
    "type_token_ratio": lambda q, a, qw, aw: len({*aw}) / max(1, len(aw)),
    "repeated_trigrams": lambda q, a, qw, aw: repeated(aw),
    "log_list_marks": lambda q, a, qw, aw: math.log1p(len(_LIST.findall(a))),
    "log_lines": lambda q, a, qw, aw: math.log1p(a.strip().count("\n")),
    "question_taken_up": lambda q, a, qw, aw: share_of(qw, aw),
    "answer_from_question": lambda q, a, qw, aw: share_of(aw, qw),
    "digits": lambda q, a, qw, aw: sum(map(str.isdigit, a)) / max(1, len(a)),
    "capitals": lambda q, a, qw, aw: sum(map(str.isupper, a)) / max(1, len(a)),
    "marks": lambda q, a, qw, aw: len(re.findall(r"[^\w\s]", a)) / max(1, len(a)),
    "ended": lambda q, a, qw, aw: float(a.rstrip().endswith((".", "!", "?", '"', "```", ")"))),
    "says_no": lambda q, a, qw, aw: float(bool(_NO.search(a))),
}
"""``log_words`` is the length-only scorer, which all of them therefore nest."""


@dataclass(frozen=True)
class TextFeatures:
    """Cheap features of the text: length, variety, repetition, lists, overlap with the question.

    Args:
        names: of ``FEATURES``.

    Raises:
        Failure: there is no feature of a name.
    """

    names: tuple[str, ...] = tuple(FEATURES)

    def __post_init__(self) -> None:
        if unknown := [name for name in self.names if name not in FEATURES]:
            raise Failure(f"features: there is no {unknown[0]!r}; there is {', '.join(FEATURES)}")

    @property
    def identity(self) -> Mapping[str, Any]:
        return {"reader": "text", "names": list(self.names)}

    def __call__(self, texts: Texts) -> Tensor:
        return torch.tensor([self._read(*text) for text in texts], dtype=torch.float64)

    def _read(self, said: Any, answer: str) -> list[float]:
        asked = plain(said)
        told = (asked, answer, words(asked), words(answer))
        return [FEATURES[name](*told) for name in self.names]


LENGTH = TextFeatures(("log_words",))
"""The length-only baseline's."""


class States:
    """The mean over an answer's tokens of a frozen language model's states.

    Questions are plain prompts where they are texts, else rendered by the chat template. An empty
    answer has the state of its end alone.

    Args:
        model: reads, and is not changed.
        renderer: with the model's tokenizer.
        name: tells the model from others where the scorer is kept.
        layers: its first layers that are read; None: all.
        tokens: of an answer that are read, its first.
    """

    def __init__(
        self, model: CausalLM, renderer: Renderer, name: str, *, layers: int | None, tokens: int
    ) -> None:
        self.reader = MeanState(Early(model, layers))
        self.device = next(model.parameters()).device
        self.renderer, self.tokens = renderer, tokens
        self.identity = {"reader": "states", "model": name, "layers": layers, "tokens": tokens}

    def __call__(self, texts: Texts) -> Tensor:
        data = TextData([self._example(*text) for text in texts], self.renderer.pad_id)
        parts = [
            range(i, min(i + SIDE_BY_SIDE, len(data))) for i in range(0, len(data), SIDE_BY_SIDE)
        ]
        found = [self.reader(data.batch(part).to(self.device)).cpu() for part in parts]
        return torch.cat(found) if found else torch.zeros(0, self.reader.body.width)

    def _example(self, said: Any, answer: str) -> Any:
        answer = answer or self.renderer.decode(self.renderer.stop_ids[:1]) or " "
        row = {"prompt": said, "completion": answer}
        if not isinstance(said, str):
            row = {"messages": [*said, {"role": "assistant", "content": answer}]}
        return self.renderer.cut(self.renderer.example(row), self.tokens)


class Joined:
    """Features of several readers side by side.

    Args:
        readers: in their order.
    """

    def __init__(self, *readers: Reader) -> None:
        self.readers = readers
        self.identity = {"reader": "joined", "of": [dict(one.identity) for one in readers]}

    def __call__(self, texts: Texts) -> Tensor:
        return torch.cat([one(texts) for one in self.readers], 1)
