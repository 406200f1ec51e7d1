"""Exact match of sampled answers with the teacher's: whole, or the final answer alone."""

from __future__ import annotations

import re
import unicodedata
from typing import Any

from stillroom.core import Failure
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


def found(pattern: str, text: str) -> str | None:
    """The first group of a pattern's last match (all of it without groups), ``plain``."""
    hits = list(re.finditer(pattern, text))
    if not hits:
        return None
    return plain(hits[-1].group(1 if hits[-1].re.groups else 0) or "")


def plain(text: str) -> str:
    """What is compared: case, form and amount of white space do not count.

    Unicode NFKC, case-folded, white space to single blanks and none at the ends, no full stop at
    the end, no commas between thousands (``1,200.`` is ``1200``).
    """
    text = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    return re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", text.removesuffix("."))
