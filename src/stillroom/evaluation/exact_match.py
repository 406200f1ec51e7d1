"""Exact match of sampled answers with the teacher's: whole, or the final answer alone."""

from __future__ import annotations

from typing import Any

from stillroom.core import Failure
from stillroom.data.matching import found, plain
from stillroom.evaluation.suite import View

COLUMNS = {
    "exact_match": ("answers equal to the teacher's", "higher"),
    "answer_match": ("final answers equal to the teacher's", "higher"),
}


def ready(view: View) -> None:
    """Raises Failure where the teacher's texts hold nothing that ``eval.answer`` finds."""
    data: Any = view.data
    for i, example in enumerate(data.examples if view.answer else ()):
        if found(view.answer or "", example.answer) is None:
            raise Failure(
                f"eval.answer: {view.answer!r} finds nothing in the teacher's answer to example "
                f"{i}, which ends in {example.answer[-60:]!r}: mend the pattern or the data"
            )


def measure(view: View) -> dict[str, float]:
    """Shares of answers whose ``plain`` text is the teacher's.

    ``exact_match`` compares whole answers, ``answer_match`` what ``eval.answer`` finds in both; an
    answer in which it finds nothing is wrong. Without a pattern there is the first number alone.
    """
    pairs, pattern = view.texts(), view.answer
    told = {"exact_match": sum(plain(a) == plain(b) for a, b in pairs) / len(pairs)}
    if pattern is not None:
        ends = [(found(pattern, a), found(pattern, b)) for a, b in pairs]
        told["answer_match"] = sum(a == b for a, b in ends) / len(pairs)
    return told
