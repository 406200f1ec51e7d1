"""Which part of a text is its final answer."""

import time

import pytest

from stillroom.core import Failure
from stillroom.traces.answers import Extract, boxed, choices

IS = ["the answer is"]


@pytest.mark.parametrize(
    ("told", "text", "wanted"),
    [
        ({"way": "number"}, "First 3, then 4 more: 7 apples.", "7"),
        ({"way": "number", "after": IS}, "3 and 4. The  Answer\nis $7, not 8.", "$7"),
        ({"way": "number", "after": IS}, "The answer is 1. No: the answer is 2. Or 3", "2"),
        ({"way": "number", "after": IS}, "First 3, then 4", "4"),
        ({"way": "number", "after": IS, "marked": True}, "First 3, then 4", None),
        ({"way": "number", "after": IS}, "3 and 4. The answer is unknown", None),
        ({"way": "number", "after": ["so:", *IS]}, "The answer is 5. So: 6", "6"),
        ({"way": "number"}, "none at all", None),
        ({"way": "hashes"}, "a\n#### 1\nb\n#### 1,234 \n", "1,234"),
        ({"way": "hashes"}, "a # 5", None),
        ({"way": "boxed"}, r"\boxed{1}, so \boxed{\frac{1}{2}}.", r"\frac{1}{2}"),
        ({"way": "boxed"}, r"\boxed{1", None),
        ({"way": "rest"}, " all of it\n", "all of it"),
        ({"way": "rest", "after": IS}, "The answer is: Ada Lovelace\nSure.", "Ada Lovelace"),
        ({"way": "rest"}, "  ", None),
        ({"way": "pattern", "pattern": r"x = (\S+)"}, "x = 1 x = 1,234.", "1234"),
        ({"way": "pattern", "pattern": r"\d+"}, "1 22", "22"),
        ({"way": "pattern", "pattern": r"\d+"}, "a", None),
        ({"way": "code"}, "a\n```\nx\n```\nb\n```python\ny = 1\n```\n", "y = 1"),
        ({"way": "code"}, "SELECT 1", "SELECT 1"),
    ],
)
def test_extract(told, text, wanted):
    assert Extract(**told).extract(text) == wanted


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("(B)", ["B"]),
        ("b.", ["B"]),
        ("B) blue", ["B"]),
        ("**C**", ["C"]),
        ("A whale and I", []),
        ("I think (d) is it", ["D"]),
        ("Not (A), but C.", ["A", "C"]),
        ("so it is A.", ["A"]),
        ("Bob's ABC", []),
        ("I'd say so", []),
    ],
)
def test_letters(text, wanted):
    assert choices(text) == wanted


def test_options_are_told_by_letter_or_by_the_longest_text():
    colours = ["blue", "dark blue", "red"]
    assert choices("Dark blue, or (C)", colours) == ["dark blue", "C"]
    assert choices("(D) or bluest", colours) == []
    assert choices("YES! Not nothing", ["yes", "no"], letters=False) == ["yes"]
    assert choices("A", ["yes", "no"], letters=False) == []


def test_boxes_hold_nested_and_escaped_braces():
    assert boxed(r"\fbox{a} \boxed{\boxed{b}c} \boxed{\{d} }") == ["a", r"\boxed{b}c", "b", r"\{d"]


def test_what_never_ends_ends_in_time():
    start = time.monotonic()
    assert Extract(way="pattern", pattern=r"(a|aa)+$", seconds=0.2).extract("a" * 60 + "b") is None
    assert Extract(way="boxed").extract(r"\boxed{" * 40_000) is None
    assert Extract(way="number").extract("9" * 50_000 + "," * 50_000) is not None
    assert time.monotonic() - start < 20


def test_what_does_not_go_together_is_refused():
    for told in ({"way": "pattern"}, {"pattern": "x"}, {"marked": True}, {"letters": False}):
        with pytest.raises(Failure, match=r"verify\."):
            Extract(**told)
    with pytest.raises(Failure, match="no regular expression"):
        Extract(way="pattern", pattern="(").extract("a")
