"""Chains of modular arithmetic: a made-up text world with rationales, and a program as teacher.

A question is ``3+5*2-7=``, worked from left to right, each result modulo 10. Its rationale has a
step an operation, and ends with the answer: ``3+5=8;8*2=6;6-7=9;9``.
"""

from __future__ import annotations

import random
import string
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from annotated_types import Ge, Le, MinLen

from stillroom.core import Failure

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from stillroom.data.chains_teacher import Program

MODULUS = 10
"""Where nothing else is told."""
Row = dict[str, str]


@dataclass(frozen=True)
class Chains:
    """Questions of several steps whose answers and rationales a program can make and check.

    A tenth of all questions, drawn by a hash of their text, is for validation and test, so that
    nothing that is asked of the teacher, or made by it, is tested on.

    Args:
        world_seed: draws which questions are never trained on.
        rows: of the training split.
        held: of validation, and of test: the numbers of steps come as often as each other.
        steps: operations of a question: the least, and the most.
        rarer: of the training questions each further step is so much rarer; 1 is not.
        operators: that occur.
        modulus: numbers are below it, and results are taken by it.
        written: completion of the training rows: the ``rationale``, the ``answer`` alone,
            ``nothing``, for a teacher to write, or the ``form``: a rationale whose results are
            drawn blindly, from which a student learns how one is written, and no arithmetic: what
            pretraining is elsewhere.
        wrong: share of the teacher's rationales in which one step is wrong, and what follows from
            it.
        asserted: share of these that end with the right answer all the same, where the teacher was
            shown it: the rationale does not lead there.
        style: how the teacher tells a rationale, unless asked otherwise: ``full`` has each step,
            ``jumps`` only every second result.
    """

    world_seed: int = 0
    rows: Annotated[int, Ge(1)] = 1024
    held: Annotated[int, Ge(1)] = 256
    steps: tuple[Annotated[int, Ge(1)], Annotated[int, Ge(1)]] = (2, 4)
    rarer: Annotated[float, Ge(0.01), Le(1)] = 1.0
    operators: Annotated[str, MinLen(1)] = "+-*"
    modulus: Annotated[int, Ge(2), Le(10)] = MODULUS
    written: Literal["rationale", "answer", "nothing", "form"] = "rationale"
    wrong: Annotated[float, Ge(0), Le(1)] = 0.0
    asserted: Annotated[float, Ge(0), Le(1)] = 0.0
    style: Literal["full", "jumps"] = "full"

    def __post_init__(self) -> None:
        if self.steps[0] > self.steps[1]:
            raise Failure(f"steps: the least comes first, got {list(self.steps)}")
        if unknown := set(self.operators) - set("+-*"):
            raise Failure(f"operators: known are + - *, got {''.join(sorted(unknown))!r}")
        if (most := (2 * self.held) / (self.steps[1] - self.steps[0] + 1)) > self._few() / 20:
            raise Failure(
                f"held: {most:.0f} questions of {self.steps[0]} steps are too many of about "
                f"{self._few() / 10:.0f}; lower it, or let the least number of steps be larger"
            )

    def _few(self) -> int:
        """Questions with the least number of steps."""
        return self.modulus * (self.modulus * len(self.operators)) ** self.steps[0]

    def tokenizer(self) -> PreTrainedTokenizerFast:
        """A token a character of ASCII that can be printed, and one for the end of a line."""
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers
        from transformers import PreTrainedTokenizerFast

        signs = [*string.printable[:95], "\n"]
        ids = {word: i for i, word in enumerate(["<pad>", "<eos>", *signs])}
        made = Tokenizer(models.WordLevel(ids, unk_token="<pad>"))  # of other signs
        made.pre_tokenizer = pre_tokenizers.Split("", "isolated")
        made.decoder = decoders.Fuse()
        return PreTrainedTokenizerFast(
            tokenizer_object=made,
            pad_token="<pad>",
            eos_token="<eos>",
            clean_up_tokenization_spaces=False,
        )

    def program(self) -> Program:
        """The teacher that answers, by text alone."""
        from stillroom.data.chains_teacher import Program

        return Program(self)

    def splits(self, seed: int) -> dict[str, list[Row]]:
        """Rows by split, drawn with ``1000 + seed``; no question is there twice."""
        draw, seen = random.Random(1000 + seed), set[str]()
        least, most = self.steps
        lengths = range(least, most + 1)
        shares = [self.rarer ** (n - least) for n in lengths]
        drawn = draw.choices(lengths, shares, k=self.rows)
        train = [self._fresh(draw, n, seen, held=False) for n in drawn]
        tests = [
            self._fresh(draw, lengths[i % len(lengths)], seen, held=True)
            for i in range(2 * self.held)
        ]
        told = [self.row(q, self.written) for q in train]
        kept = [self.row(q, "rationale") for q in tests]
        return {"train": told, "validation": kept[: self.held], "test": kept[self.held :]}

    def worked(self, question: str, **told: Any) -> str:
        """The rationale of a question (``worked``)."""
        return worked(question, modulus=self.modulus, **told)

    def row(self, question: str, written: str) -> Row:
        """A question with its bare answer, and with what is ``written`` of it."""
        chain = self.worked(question)
        texts = {"rationale": chain, "answer": chain.rsplit(";", 1)[-1]}
        if written == "form":
            texts["form"] = self.worked(question, blindly=random.Random(question))
        told = {"completion": texts[written]} if written in texts else {}
        return {"prompt": question, **told, "gold": texts["answer"]}

    def question(self, draw: random.Random, operators: Sequence[str]) -> str:
        """One with these operators, not of those that are held out."""
        return self._fresh(draw, len(operators), set(), held=False, operators=operators)

    def _fresh(
        self,
        draw: random.Random,
        length: int,
        seen: set[str],
        *,
        held: bool,
        operators: Sequence[str] | None = None,
    ) -> str:
        for _ in range(10_000):
            signs = operators or draw.choices(self.operators, k=length)
            digits = [str(draw.randrange(self.modulus)) for _ in range(length + 1)]
            told = digits[0] + "".join(s + d for s, d in zip(signs, digits[1:], strict=True)) + "="
            if told not in seen and self.is_held(told) == held:
                seen.add(told)
                return told
        raise Failure(f"rows: there are not so many questions of {length} steps; lower it")

    def is_held(self, question: str) -> bool:
        """Whether a question belongs to validation or test."""
        return random.Random(f"{self.world_seed} {question}").random() < 0.1


def worked(
    question: str,
    *,
    wrong: int | None = None,
    by: int = 1,
    modulus: int = MODULUS,
    blindly: random.Random | None = None,
) -> str:
    """The rationale of a question, a step an operation, and the answer at its end.

    ``wrong``: the place of a step whose result is off ``by`` so much; those after it go on from
    there. ``blindly`` draws each result.

    >>> worked("3+5*2-7=")
    '3+5=8;8*2=6;6-7=9;9'
    >>> worked("3+5*2-7=", wrong=1)
    '3+5=8;8*2=7;7-7=0;0'
    """
    value, steps = int(question[0]), []
    for i, (sign, digit) in enumerate(zip(question[1:-1:2], question[2:-1:2], strict=True)):
        result = {"+": value + int(digit), "-": value - int(digit), "*": value * int(digit)}[sign]
        result = (result + by * (i == wrong)) % modulus
        if blindly is not None:
            result = blindly.randrange(modulus)
        steps.append(f"{value}{sign}{digit}={result}")
        value = result
    return ";".join([*steps, str(value)])
