"""The program that plays a teacher in the world of chains: it reads questions as text, as any does.

It knows no more of who asks than a server would: what it is to do stands in the text, as the
packaged templates say it. So a pipeline that learns from it would learn from a server alike.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from dataclasses import dataclass

from stillroom.data.chains import Chains
from stillroom.data.chains_judged import ALIKE, JUDGED, RARER, alike, rarer, scored
from stillroom.data.chains_refined import fuller, in_questions
from stillroom.failures import Failure

_QUESTION = re.compile(r"[0-9](?:[-+*][0-9])+=")


@dataclass(frozen=True)
class Program:
    """Answers a text by the first of ``TASKS`` that it matches; a bare question is one, too."""

    world: Chains

    def __call__(self, said: str, draw: random.Random) -> str:
        """The answer to a text; ``draw`` makes one copy's answer differ from another's.

        Raises:
            Failure: the text asks for nothing that the program does.
        """
        for pattern, task in TASKS:
            if found := re.search(pattern, said, re.DOTALL):
                return task(self.world, found, draw)
        raise Failure(
            f"the program of the world chains does not understand {said[:200]!r}: its tasks are "
            "those of the packaged templates"
        )


def _rationale(world: Chains, found: re.Match[str], draw: random.Random) -> str:
    """A rationale of the question, now and then a wrong one."""
    return rationale(world, found["question"], draw, gold=found.groupdict().get("gold"))


def rationale(
    world: Chains, question: str, draw: random.Random, *, gold: str | None = None, style: str = ""
) -> str:
    """What the teacher tells of a question, in the world's style or another.

    One who was shown the right answer (``gold``) may put it at the end of a wrong rationale.
    """
    told = world.worked(question)
    if draw.random() < world.wrong:
        last = told.count(";") - 1
        by = draw.randrange(1, world.modulus)
        told = world.worked(question, wrong=draw.randint(0, last), by=by)
        if gold is not None and draw.random() < world.asserted:
            told = f"{told.rsplit(';', 1)[0]};{gold}"
    return jumping(told) if (style or world.style) == "jumps" else told


def jumping(told: str) -> str:
    """A rationale with every second result left out, the last one kept.

    >>> jumping('3+5=8;8*2=6;6-7=9;9')
    '3+5*2=6;6-7=9;9'
    """
    *steps, answer = told.split(";")
    pairs = [steps[i : i + 2] for i in range(0, len(steps), 2)]
    made = [p[0] if len(p) == 1 else f"{p[0].split('=')[0]}{p[1][1:]}" for p in pairs]
    return ";".join([*made, answer])


def _refined(world: Chains, found: re.Match[str], draw: random.Random) -> str:
    """The solution that is shown; told more fully where one as long is among the mistakes."""
    if draw.random() < world.wrong:
        return world.worked(found["question"], wrong=0, by=draw.randrange(1, world.modulus))
    mistaken = re.findall(rf"Problem: ({_QUESTION.pattern})", found["mistakes"])
    alike = len(found["question"]) in map(len, mistaken)
    return fuller(found["solution"], world.modulus) if alike else found["solution"]


def _in_questions(world: Chains, found: re.Match[str], draw: random.Random) -> str:
    return in_questions(rationale(world, found["question"], draw))


Task = Callable[[Chains, re.Match[str], random.Random], str]
QUESTION = rf"(?P<question>{_QUESTION.pattern})"
TASKS: list[tuple[str, Task]] = [
    (JUDGED.format(question=QUESTION), scored),
    (ALIKE.format(question=QUESTION), alike),
    (RARER.format(question=QUESTION), rarer),
    (rf"^(?P<mistakes>.*)Question: {QUESTION}.*Solution: (?P<solution>\S+)\s+Rewrite", _refined),
    (rf"sub-questions.*Question: {QUESTION}", _in_questions),
    (rf"Question: {QUESTION}.*The right answer is (?P<gold>\d)\.", _rationale),
    (rf"Question: {QUESTION}", _rationale),
    (rf"^{QUESTION}$", _rationale),
]
"""Patterns of texts, the most particular first, and what is done at each."""
