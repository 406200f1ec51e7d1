"""How the teacher of the world of chains tells more of a rationale, and tells it in questions."""

from __future__ import annotations

import re
from functools import partial

from stillroom.data.chains import MODULUS, worked

_LONG = re.compile(r"(\d[-+*]\d)((?:[-+*]\d)+)=\d")


def fuller(told: str, modulus: int = MODULUS) -> str:
    """A rationale with the first step of several operations told as its first one and the rest.

    >>> fuller('3+5*2=6;6-7=9;9')
    '3+5=8;8*2=6;6-7=9;9'
    """
    return _LONG.sub(partial(_parted, modulus=modulus), told, count=1)


def _parted(step: re.Match[str], modulus: int) -> str:
    first = worked(f"{step[1]}=", modulus=modulus).split(";")[0]
    return f"{first};{first[-1]}{step[0][3:]}"


def in_questions(told: str) -> str:
    """A rationale as sub-questions with answers: what is done, and the step that comes of it.

    >>> print(in_questions('3+5=8;8*2=6;6'))
    Q: 3+5
    A: 3+5=8
    Q: *2
    A: 8*2=6
    """
    steps = told.split(";")[:-1]
    asked = [step.split("=")[0][i > 0 :] for i, step in enumerate(steps)]
    return "\n".join(f"Q: {q}\nA: {s}" for q, s in zip(asked, steps, strict=True))
