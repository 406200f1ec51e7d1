"""Ways in which a question of a test set comes again among training rows, each by a stated rule."""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Callable, Iterable

Rewrite = Callable[[str, random.Random], str]

SENTENCE = re.compile(r"(?<!Mr\.)(?<!Mrs\.)(?<!Ms\.)(?<!Dr\.)(?<!St\.)(?<=[.!?])[\"\u201d]?\s+")
_KEPT = (
    "Mr Mrs Ms Dr St Monday Tuesday Wednesday Thursday Friday Saturday Sunday January February "
    "March April May June July August September October November December"
)
_OTHERS = (
    "Amara Bilal Chidi Dagny Eszter Farid Gwen Hiro Ines Jorge Keiko Lars Mbali Nadia Oren Priya "
    "Quinn Rafael Sanne Tomas Umar Vera Wei Ximena Yusuf Zofia"
)
_ONES = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen "
    "fifteen sixteen seventeen eighteen nineteen"
)
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety"
KEPT, OTHERS, ONES, TENS = set(_KEPT.split()), _OTHERS.split(), _ONES.split(), _TENS.split()
WHOLE = re.compile(r"(\$?)(?<![\d.,/])(\d{1,3}(?:,\d{3})+|\d+)(?![\d/]|[.,]\d)(%?)")
"""Whole numbers with what may stand around them; fractions, decimals and times stay as they are."""


def case(text: str, draw: random.Random) -> str:
    """All lower, all upper, Every Word Capitalised, or sWAPPED, by draw."""
    return draw.choice([str.lower, str.upper, str.title, str.swapcase])(text)


def punctuation(text: str, draw: random.Random) -> str:
    """Apostrophes go without a gap, other marks leave a blank; those between digits stay."""
    text = re.sub(r"['\u2019]", "", text)
    return " ".join(re.sub(r"(?<!\d)[^\w\s]|[^\w\s](?!\d)", " ", text).split())


def number_words(text: str, draw: random.Random) -> str:
    """Whole numbers up to 999,999 in words, $3 as "three dollars"; "and" after hundreds by draw."""
    joint = draw.choice([" and ", " "])

    def told(found: re.Match[str]) -> str:
        value = int(found[2].replace(",", ""))
        if value > 999_999:
            return found[0]
        unit = (" dollars" if found[1] else "") + (" percent" if found[3] else "")
        return spelled(value, joint) + unit

    return WHOLE.sub(told, text)


def spelled(value: int, joint: str) -> str:
    """A number from 0 to 999,999 in words, as in "two thousand one hundred and twenty-five"."""
    if value < 20:
        return ONES[value]
    if value < 100:
        return TENS[value // 10 - 2] + (f"-{ONES[value % 10]}" if value % 10 else "")
    unit, name = (1000, "thousand") if value >= 1000 else (100, "hundred")
    rest = value % unit
    between = joint if rest < 100 else " "
    return f"{spelled(value // unit, joint)} {name}{between + spelled(rest, joint) if rest else ''}"


def names(known: set[str]) -> Rewrite:
    """Each proper name of ``known`` gives place to another, the same throughout the text."""

    def rewrite(text: str, draw: random.Random) -> str:
        drawn = iter(draw.sample(OTHERS, len(OTHERS)))
        instead: dict[str, str] = {}
        for word in re.findall(r"[A-Za-z]+", text):
            if word in known and word not in instead:
                instead[word] = next(drawn)
        return re.sub(r"[A-Za-z]+", lambda found: instead.get(found[0], found[0]), text)

    return rewrite


def proper(texts: Iterable[str]) -> set[str]:
    """Words with a capital inside a sentence and never without one; no days, months, titles."""
    inside: set[str] = set()
    lower: Counter[str] = Counter()
    for sentence in (s for text in texts for s in SENTENCE.split(text)):
        said = re.findall(r"[A-Za-z]+", sentence)
        inside.update(word for word in said[1:] if re.fullmatch(r"[A-Z][a-z]+", word))
        lower.update(word for word in said if word.islower())
    return {word for word in inside - KEPT if not lower[word.lower()]}


def moved(text: str, draw: random.Random) -> str:
    """Sentences in another order; a single sentence stays."""
    parts = SENTENCE.split(text)
    order = parts
    while len(set(parts)) > 1 and order == parts:
        order = draw.sample(parts, len(parts))
    return " ".join(order)


def shortened(text: str, draw: random.Random) -> str:
    """One sentence less, any of them; a single sentence stays."""
    parts = SENTENCE.split(text)
    if len(parts) > 1:
        parts.pop(draw.randrange(len(parts)))
    return " ".join(parts)


def other_numbers(text: str, draw: random.Random) -> str:
    """Each whole number gives place to another of as many digits: a new problem in old words."""

    def told(found: re.Match[str]) -> str:
        digits = len(found[2].replace(",", ""))
        value = draw.randrange(10 ** (digits - 1), 10**digits)
        return f"{found[1]}{value}{found[3]}"

    return WHOLE.sub(told, text)


def together(steps: Iterable[Rewrite]) -> Rewrite:
    """One rewrite after the other."""
    every = list(steps)

    def rewrite(text: str, draw: random.Random) -> str:
        for step in every:
            text = step(text, draw)
        return text

    return rewrite


def rewrites(texts: Iterable[str]) -> dict[str, Rewrite]:
    """All by name; names are those that occur in ``texts``."""
    swapped = names(proper(texts))
    single: dict[str, Rewrite] = {
        "case": case,
        "punctuation": punctuation,
        "numbers in words": number_words,
        "names swapped": swapped,
        "sentences reordered": moved,
        "one sentence dropped": shortened,
    }
    # sentences and names are told by marks and capitals, so these go last
    order = [swapped, shortened, moved, number_words, punctuation, case]
    return {**single, "all of these": together(order), "other numbers (no copy)": other_numbers}
