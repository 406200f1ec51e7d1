"""Numbers as people and models write them: thousands, money, percent, fractions, powers of ten."""

from __future__ import annotations

import re
from fractions import Fraction

_DIGITS = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)"
_MONEY = r"(?:\\?[$€£¥]|US\$)"
_PLAIN = rf"(?:{_DIGITS}(?:\.\d+)?|\.\d+)"
_POWER = (
    r"(?:[eE][-+]?\d+|\s?(?:x|\*|\u00d7|\\times)\s?10\s?(?:\^|\*\*)\s?(?:\{[-+]?\d+\}|[-+]?\d+))"
)
_OVER = rf"(?:\s?/\s?{_DIGITS}(?![\d/]|\.\d))"
_LATEX = r"\\[dt]?frac\s?\{\s?-?\d+\s?\}\s?\{\s?\d+\s?\}"
_SIGN = r"(?:(?<![\w.)\]}%])[-\u2212+])?"
NUMBER = re.compile(
    rf"{_SIGN}(?:{_MONEY}\s?[-\u2212]?)?"
    rf"(?:{_LATEX}|(?<![\w.])(?:\d+\s(?=\d+/\d))?{_PLAIN}(?:{_POWER}|{_OVER})?)"
    r"(?:\s?\\?%|\spercent\b)?"
)
"""A number with its sign, currency, power or denominator and percent sign; not one in a word.

A minus behind a word, digit or bracket, or before a blank, is a difference's, or a
dash. Units stay outside.
"""
LONGEST, LARGEST = 300, 400
"""Characters of a number, and its greatest power of ten: more takes exact arithmetic too long."""


def numbers(text: str) -> list[str]:
    """All numbers of a text, as they are written."""
    return [hit.group().strip() for hit in NUMBER.finditer(text)]


def value(text: str, *, percent: bool = False) -> Fraction | None:
    """The exact value of the first number in a text; None if there is none.

    >>> value("$1,200.50"), value("-3/4 of it"), value("5e-2 kg")
    (Fraction(2401, 2), Fraction(-3, 4), Fraction(1, 20))
    >>> value("50%"), value("50%", percent=True)
    (Fraction(50, 1), Fraction(1, 2))

    Args:
        text: what holds it; words around are passed over.
        percent: whether ``50%`` is 1/2, and not 50.
    """
    hit = NUMBER.search(text)
    if hit is None or len(hit.group()) > LONGEST:
        return None
    told = re.sub(rf"{_MONEY}|,|\+(?=\s?[\d.$])", "", hit.group().replace("\u2212", "-"))
    told, parts = re.subn(r"\\?%|percent", "", told)
    sign = -1 if told.lstrip().startswith("-") else 1
    found = _unsigned(told.strip().lstrip("-").strip())
    if found is None:
        return None
    return sign * found / (100 if parts and percent else 1)


def _unsigned(told: str) -> Fraction | None:
    if told.startswith("\\"):
        over, under = re.findall(r"-?\d+", told)
        return Fraction(int(over), int(under)) if int(under) else None
    power = re.split(r"[eE]|\s?(?:x|\*|\u00d7|\\times)\s?10\s?(?:\^|\*\*)\s?", told, maxsplit=1)
    if len(power) == 2:
        exponent = int(power[1].strip("{}"))
        return None if abs(exponent) > LARGEST else Fraction(power[0]) * Fraction(10) ** exponent
    whole, _, rest = told.rpartition(" ") if re.fullmatch(r"\d+ \d+/\d+", told) else ("0", "", told)
    over, _, under = rest.partition("/")
    if under and not int(under):
        return None
    return int(whole) + Fraction(over.strip()) / (int(under) if under else 1)


def close(one: Fraction, other: Fraction, relative: float = 0.0, absolute: float = 0.0) -> bool:
    """``|one - other| <= max(relative * |other|, absolute)``, exactly."""
    return abs(one - other) <= max(Fraction(relative) * abs(other), Fraction(absolute))
