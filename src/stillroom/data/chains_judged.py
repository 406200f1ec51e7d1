"""How the teacher of the world of chains scores two answers, and makes new questions of given ones.

It reads the packaged templates ``judge.scores``, ``lion.hard`` and ``lion.easy``.
"""

from __future__ import annotations

import random
import re
from typing import TYPE_CHECKING

from stillroom.data.chains import MODULUS, worked

if TYPE_CHECKING:
    from stillroom.data.chains import Chains

JUDGED = (
    r"<request>\s*{question}\s*</request>\s*<answer_A>\s*(?P<first>.*?)\s*</answer_A>\s*"
    r"<answer_B>\s*(?P<second>.*?)\s*</answer_B>.*Scores:"
)
ALIKE = r"new task of the same domain and of the same kind.*Given task:\s*{question}"
RARER = r"new task of the same domain with rarer content.*Given task:\s*{question}"


def scored(world: Chains, found: re.Match[str], draw: random.Random) -> str:
    """Scores of two answers: 10 where the last digit is the right one, else 1."""
    first, second = (
        score(found["question"], found[name], world.modulus) for name in ("first", "second")
    )
    return f"Held against the right answer.\nScores: {first}, {second}"


def score(question: str, said: str, modulus: int = MODULUS) -> int:
    """Of one answer, by its last digit.

    >>> score("3+5*2=", "3+5=8;8*2=6;6"), score("3+5*2=", "3+5=8;8*2=5;5"), score("3+5*2=", "")
    (10, 1, 1)
    """
    return 10 if re.findall(r"\d", said)[-1:] == [worked(question, modulus=modulus)[-1]] else 1


def alike(world: Chains, found: re.Match[str], draw: random.Random) -> str:
    """A new question with the same operators in the same order."""
    return world.question(draw, found["question"][1:-1:2])


def rarer(world: Chains, found: re.Match[str], draw: random.Random) -> str:
    """A new question with as many operators, drawn anew."""
    signs = draw.choices(world.operators, k=len(found["question"][1:-1:2]))
    return world.question(draw, signs)
