"""What sampled answers look like: length, ends, variety, repetition."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from stillroom.evaluation.suite import View

COLUMNS = {
    "length": ("tokens an answer", None),
    "eos_rate": ("answers that end by themselves", None),
    "distinct_1": ("different words, share", None),
    "distinct_2": ("different word pairs, share", None),
    "repetition": ("4-grams seen before in the same answer", None),
}
_GRAM = 4


def measure(view: View) -> dict[str, float]:
    """Numbers of one sampled answer a prompt, to be held against the teacher's row.

    Neither more nor less is better of itself. Of several answers to each prompt the numbers are
    means over sets of one each: more text has fewer different words for its length.
    """
    answers, stops = view.answers(), set(view.student.stop_ids)
    sets = [_describe(answers[i :: view.copies], stops) for i in range(view.copies)]
    return {name: sum(told[name] for told in sets) / len(sets) for name in COLUMNS}


def teacher(view: View) -> dict[str, float]:
    """The same of the teacher's recorded answers."""
    data: Any = view.data
    answers = [list(example.completion_ids) for example in data.examples]
    return _describe(answers, set(view.student.stop_ids))


def _describe(answers: Sequence[Sequence[int]], stops: set[int]) -> dict[str, float]:
    words = [[t for t in answer if t not in stops] for answer in answers]
    singles = [w for answer in words for w in answer]
    pairs = [p for answer in words for p in pairwise(answer)]
    return {
        "length": sum(map(len, answers)) / len(answers),
        "eos_rate": sum(answer[-1] in stops for answer in answers) / len(answers),
        "distinct_1": len(set(singles)) / max(1, len(singles)),
        "distinct_2": len(set(pairs)) / max(1, len(pairs)),
        "repetition": sum(map(_repeated, words)) / len(words),
    }


def _repeated(answer: Sequence[int]) -> float:
    grams = [tuple(answer[i : i + _GRAM]) for i in range(len(answer) - _GRAM + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0
