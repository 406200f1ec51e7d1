"""What each rule of a filter measures, and how it says that a text breaks it."""

from __future__ import annotations

import re
import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from stillroom.data.rows import Row
from stillroom.traces.texts import text_of
from stillroom.traces.words import grams, words

ENDS = ".!?\u2026\u3002\uff01\uff1f"
"""Marks that end a sentence; what may follow them (quotes, brackets) is in ``CLOSERS``."""
CLOSERS = "\"'\u201d\u2019\u00bb)]}*`$"
REFUSALS = (
    r"(no,? )?(i'?m|i am) (very |so |really )?sorry,? (but|i)\b",
    r"(no,? )?sorry,? (but )?i\b",
    r"((my|i) )?apolog(i[sz]e|ies)\b",
    r"(unfortunately,? )?(i|we) (cannot|can not|can't|won't|will not) "
    r"(?!(believe|emphasi[sz]e|help but|overstate|stress|thank|wait)\b)",
    r"(unfortunately,? )?(i'm|i am|we are) (unable|not able)\b",
    r"(unfortunately,? )?i (do not|don't) (have|feel comfortable|possess)\b",
    r"(unfortunately,? )?as an? ([a-z-]+ ){0,2}(ai|intelligence|language model|open model)\b",
    r"(i'm|i am) an? ([a-z-]+ )?(ai|language model)\b",
    r"i must (decline|refuse)\b",
)
"""How a refusal begins, on lower case with straight apostrophes, marks before it left out."""
_GRAM = 4


@dataclass(frozen=True)
class Text:
    """One text of a row, and what rules may ask beside it."""

    text: str
    row: Row
    where: str
    tokenize: Callable[[str], Sequence[Any]] | None


def _bounds(name: str, size: Callable[[Text], int]) -> dict[str, Callable[[Text, Any], str]]:
    def least(told: Text, bound: int) -> str:
        return f"{count} {name}, fewer than {bound}" if (count := size(told)) < bound else ""

    def most(told: Text, bound: int) -> str:
        return f"{count} {name}, more than {bound}" if (count := size(told)) > bound else ""

    return {f"min_{name}": least, f"max_{name}": most}


def _share(told: str, share: Callable[[Text], float], *, below: bool) -> Callable[..., str]:
    def broken(text: Text, bound: float) -> str:
        value = share(text)
        return f"{told}: {value:.3g}" if (value < bound if below else value > bound) else ""

    return broken


def _repetition(told: Text) -> float:
    said = told.text.split()
    runs = [tuple(said[i : i + _GRAM]) for i in range(len(said) - _GRAM + 1)]
    return 1 - len(set(runs)) / len(runs) if runs else 0.0


def _letters(told: Text) -> float:
    solid = "".join(told.text.split())
    return sum(map(str.isalpha, solid)) / max(1, len(solid))


def _ascii(told: Text) -> float:
    return sum(map(str.isascii, told.text)) / max(1, len(told.text))


def _copied(told: Text) -> float:
    asked = text_of(told.row, "prompt", told.where)
    own = grams(words(told.text), _GRAM)
    return len(own & grams(words(asked), _GRAM)) / max(1, len(own))


def _line_run(told: Text) -> float:
    lines = (line.strip() for line in told.text.splitlines())
    return max((len([*run]) for line, run in groupby(lines) if line), default=0)


def _ended(told: Text, _on: bool) -> str:
    text = told.text.rstrip().rstrip(CLOSERS)
    return "" if text.endswith(tuple(ENDS)) else f"ends with {told.text[-20:]!r}"


def _begins(told: Text, patterns: Sequence[str]) -> str:
    text = re.sub(r"^[\W_]+", "", told.text.lower().replace("\u2019", "'"))
    found = (pattern for pattern in patterns if re.match(pattern, text, re.IGNORECASE))
    return f"begins {told.text.strip()[:60]!r}" if next(found, None) is not None else ""


def _plain_start(told: Text, _on: bool) -> str:
    first = told.text.strip()[:1]
    odd = not first or first in string.punctuation or not first.isascii()
    return f"begins with {first!r}" if odd else ""


def _without(told: Text, barred: Sequence[str]) -> str:
    held = set(re.findall(r"\w+", told.text.casefold()))
    found = [word for word in barred if word.casefold() in held]
    return f"holds {found[0]!r}" if found else ""


RULES: Mapping[str, Callable[[Text, Any], str]] = {
    **_bounds("words", lambda told: len(told.text.split())),
    **_bounds("characters", lambda told: len(told.text)),
    **_bounds("tokens", lambda told: len(told.tokenize(told.text)) if told.tokenize else 0),
    "ended": _ended,
    "max_repetition": _share("share of repeated 4-grams", _repetition, below=False),
    "max_line_run": _share("times one line below itself", _line_run, below=False),
    "refusals": lambda told, _on: _begins(told, REFUSALS),
    "patterns": _begins,
    "min_letters": _share("share of letters", _letters, below=True),
    "min_ascii": _share("share of ASCII", _ascii, below=True),
    "max_copied": _share("share of 4-grams of the question", _copied, below=False),
    "plain_start": _plain_start,
    "without": _without,
}
"""By name of the rule: text and what was told of it, to the sentence that drops it, or nothing."""
