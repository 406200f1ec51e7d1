"""How a system answers in the world of chains: final answers by length, and the steps before."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from stillroom.core import Failure
from stillroom.data.chains import MODULUS, Chains
from stillroom.evaluation.suite import View

COLUMNS = {
    "solved": ("questions with the right final answer", "higher"),
    "solved_short": ("the same, of the shortest questions", "higher"),
    "solved_long": ("the same, of the longest questions", "higher"),
    "sound": ("written steps that are right by themselves", "higher"),
    "answer_characters": ("characters an answer", None),
}
_STEP = re.compile(r"(\d)((?:[-+*]\d)+)=(\d+)")


def measure(view: View) -> dict[str, float]:
    """Shares of the split's questions, each answered once; the last digit is the final answer.

    ``sound`` is of all steps that are written, ``3+5*2=6`` being one; 0 where none is: a system
    that writes bare answers has none.

    Raises:
        Failure: the data are not of the world ``chains``.
    """
    if not isinstance(view.world, Chains):
        raise Failure("eval.metrics: chains checks the answers of the world chains alone")
    data: Any = view.data
    said = [own for own, _ in view.texts()]
    asked = [example.prompt for example in data.examples for _ in range(view.copies)]
    gold = [view.world.row(question, "answer")["gold"] for question in asked]
    right = [final(own) == answer for own, answer in _zip(said, gold)]
    lengths = [len(q) // 2 - 1 for q in asked]
    steps = [sound for own in said for sound in checked(own, view.world.modulus)]
    return {
        "solved": _share(right),
        "solved_short": _share([r for r, n in _zip(right, lengths) if n == min(lengths)]),
        "solved_long": _share([r for r, n in _zip(right, lengths) if n == max(lengths)]),
        "sound": _share(steps),
        "answer_characters": sum(map(len, said)) / len(said),
    }


def final(text: str) -> str | None:
    """The last digit of a text."""
    found = re.findall(r"\d", text)
    return found[-1] if found else None


def checked(text: str, modulus: int = MODULUS) -> list[bool]:
    """Of each step ``a+b=c`` that is written, whether it is right.

    >>> checked("3+5=8;8*2=7;9+1*2=0;0")
    [True, False, True]
    """
    return [_worth(step, modulus) for step in _STEP.finditer(text)]


def _worth(step: re.Match[str], modulus: int) -> bool:
    value = int(step[1])
    for sign, digit in re.findall(r"([-+*])(\d)", step[2]):
        value = {"+": value + int(digit), "-": value - int(digit), "*": value * int(digit)}[sign]
    return step[3] == str(value % modulus)


def _zip(*lists: Sequence[Any]) -> Any:
    return zip(*lists, strict=True)


def _share(told: Sequence[bool]) -> float:
    return sum(told) / len(told) if told else 0.0
