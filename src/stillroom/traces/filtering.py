"""Rules that keep or drop a row by its text: length, repetition, refusals, letters, copies.

Every rule is off until it is told; a dropped row has the first that it broke.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

from stillroom.data.rows import Row
from stillroom.failures import Failure
from stillroom.traces.rules import RULES, Text
from stillroom.traces.texts import Dropped, Kept, noted, text_of


@dataclass(frozen=True, kw_only=True)
class Filter:
    """Rules for one text of a row, in the order in which they are asked.

    Args:
        min_words: parts between blanks, at least.
        max_words: at most.
        min_characters: at least.
        max_characters: at most.
        min_tokens: at least, by the tokenizer that is given.
        max_tokens: at most.
        ended: the last character, quotes and brackets aside, ends a sentence (``rules.ENDS``).
            Off, since tables, code and bare answers end otherwise.
        max_repetition: share of 4-grams of words that stand earlier in the same text,
            ``1 - different / all``, as ``evaluation/generation.py`` counts it on tokens.
        max_line_run: how often one line, not empty, may stand below itself.
        refusals: drop what begins as in ``rules.REFUSALS``.
        patterns: further regular expressions, which are asked in the same way.
        min_letters: share of letters of any script among what is not blank.
        min_ascii: share of ASCII among all characters.
        max_copied: share of the text's different 4-grams of words, normalised, that the question
            holds.
        plain_start: the first character is ASCII and no punctuation.
        without: words that must not occur, letter case aside.

    Raises:
        Failure: a bound is out of its range, or an expression is none.
    """

    min_words: int | None = None
    max_words: int | None = None
    min_characters: int | None = None
    max_characters: int | None = None
    min_tokens: int | None = None
    max_tokens: int | None = None
    ended: bool = False
    max_repetition: float | None = None
    max_line_run: int | None = None
    refusals: bool = False
    patterns: Sequence[str] = ()
    min_letters: float | None = None
    min_ascii: float | None = None
    max_copied: float | None = None
    plain_start: bool = False
    without: Sequence[str] = ()

    def __post_init__(self) -> None:
        for name in ("max_repetition", "min_letters", "min_ascii", "max_copied"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise Failure(f"{name} is a share from 0 to 1, got {value}")
        for name, value in self.told().items():
            if type(value) is int and value < 0:
                raise Failure(f"{name} is a count, got {value}")
        for pattern in self.patterns:
            try:
                re.compile(pattern)
            except re.error as error:
                raise Failure(f"the pattern {pattern!r}: {error}") from error

    def told(self) -> dict[str, Any]:
        """The rules that are on."""
        every = {f.name: getattr(self, f.name) for f in fields(self)}
        return {
            name: v for name, v in every.items() if v is not None and v is not False and v != ()
        }


LION = Filter(min_words=4, plain_start=True, without=("instruction",))
"""What Lion drops of new instructions: three words or fewer, an odd beginning, that word."""


def filtered(
    rows: Sequence[Row],
    rules: Filter,
    column: str = "completion",
    tokenize: Callable[[str], Sequence[Any]] | None = None,
) -> Kept:
    """Rows whose text breaks no rule, and the others, each with the first rule that it broke.

    Args:
        rows: any rows.
        rules: what is asked.
        column: the text that is looked at: ``completion``, ``prompt`` or another (``text_of``).
        tokenize: text to tokens, for the rules that count them.

    Raises:
        Failure: a row lacks the text, or tokens are counted without a tokenizer.
    """
    asked = rules.told()
    if (counts := {"min_tokens", "max_tokens"} & set(asked)) and tokenize is None:
        raise Failure(f"{min(counts)}: tokens of which tokenizer? Give one, or count words")
    told = [f for f in fields(rules) if f.name in asked]
    kept, dropped = [], []
    for place, row in enumerate(rows):
        where = f"row {place}"
        text = Text(text_of(row, column, where), row, where, tokenize)
        broken = ((f.name, RULES[f.name](text, asked[f.name])) for f in told)
        kind, why = next(((name, why) for name, why in broken if why), ("", ""))
        if why:
            dropped.append(Dropped(place, row, kind, why))
        else:
            kept.append(noted(row, {"by": "rules", "column": column, **asked}))
    return Kept(kept, dropped)
