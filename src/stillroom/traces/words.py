"""A text as the words that stay the same however it is written: case, punctuation, numbers.

Serves near-duplicates and the search for evaluation data: both compare word n-grams.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence

_DIGITS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen "
    "fifteen sixteen seventeen eighteen nineteen"
)
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety"
SMALL = {word: value for value, word in enumerate(_DIGITS.split())}
TENS = {word: 20 + 10 * i for i, word in enumerate(_TENS.split())}
_BEGIN = {*SMALL, *TENS, "a"}
_SIGNS = [
    (re.compile(r"[\u2018\u2019\u02bc'`]"), ""),  # Janet's: one word, as where the mark is left out
    (re.compile(r"(?<=\d),(?=\d{3}(?!\d))"), ""),  # 1,000
    (re.compile(r"\$\s*(\d+(?:\.\d+)?)"), r"\1 dollars "),
    (re.compile(r"(?<=\d)\s*%"), " percent "),
    (re.compile(r"(\d+\.\d*?)0+(?!\d)"), r"\1"),  # 2.50 and 2.00
]
_WORD = re.compile(r"\d+(?:\.\d+)?|[^\W\d_]+")


def words(text: str) -> list[str]:
    """The words of a text, written one way.

    NFKC and case folding; punctuation left out, that of ``Janet's`` without a gap; ``$2.50`` is
    ``2.5 dollars`` and ``30%`` is ``30 percent``; numbers in English words are digits
    (``numbered``). A decimal point stays.

    >>> words("He paid $1,200.00 for TWENTY-FIVE of Janet's ducks.")
    ['he', 'paid', '1200', 'dollars', 'for', '25', 'of', 'janets', 'ducks']
    """
    text = unicodedata.normalize("NFKC", text).casefold()
    for pattern, instead in _SIGNS:
        text = pattern.sub(instead, text)
    return numbered(_WORD.findall(text))


def numbered(told: Sequence[str]) -> list[str]:
    """Words with the numbers from 0 to 999,999 among them as digits.

    "Twenty five", "a hundred and five", "twelve hundred", "two thousand and one". Ordinals and
    fractions stay words, and so does "a" where neither "hundred" nor "thousand" follows. Where two
    numbers stand side by side ("two three") each is its own; "one hundred and two" is one number,
    also where a list of two was meant.
    """
    found, at = [], 0
    while at < len(told):
        value, after = _whole(told, at) if told[at] in _BEGIN else (0, at)
        found.append(str(value) if after > at else told[at])
        at = max(after, at + 1)
    return found


def _whole(told: Sequence[str], at: int) -> tuple[int, int]:
    """The number that begins here, and the place after it: this place, where none does."""
    return _scaled(told, at, "thousand", 1000, _hundreds)


def _hundreds(told: Sequence[str], at: int) -> tuple[int, int]:
    return _scaled(told, at, "hundred", 100, _tens)


def _scaled(
    told: Sequence[str], at: int, name: str, unit: int, smaller: Callable[..., tuple[int, int]]
) -> tuple[int, int]:
    """A smaller number, or where ``name`` follows it so many units and what comes behind."""
    if list(told[at : at + 2]) == ["a", name]:
        value, after = 1, at + 1
    else:
        value, after = smaller(told, at)
    if after == at or list(told[after : after + 1]) != [name]:
        return value, after
    value, after = value * unit, after + 1
    begin = after + (list(told[after : after + 1]) == ["and"])
    more, end = smaller(told, begin)
    return (value + more, end) if end > begin else (value, after)


def _tens(told: Sequence[str], at: int) -> tuple[int, int]:
    word, follows = (told[at] if at < len(told) else ""), told[at + 1 : at + 2]
    if word in SMALL:
        return SMALL[word], at + 1
    if word not in TENS:
        return 0, at
    unit = SMALL.get(follows[0], 0) if follows else 0
    return (TENS[word] + unit, at + 2) if 0 < unit < 10 else (TENS[word], at + 1)


def grams(told: Sequence[str], n: int) -> set[tuple[str, ...]]:
    """Runs of ``n`` words, each once; of a shorter text the whole; of none nothing."""
    return {tuple(told[i : i + n]) for i in range(max(1, len(told) - n + 1))} if told else set()
