"""Texts as words: the numbers against another library's normaliser, and cases by hand."""

from __future__ import annotations

import random

import pytest

from stillroom.traces.words import grams, numbered, words

CASES = {
    "twenty five": "25",
    "twenty": "20",
    "a hundred and five": "105",
    "a thousand": "1000",
    "twelve hundred": "1200",
    "two thousand and one": "2001",
    "two three": "2 3",
    "twenty thirty": "20 30",
    "twenty ten": "20 10",
    "several hundred men": "several hundred men",
    "a man and one dog": "a man and 1 dog",
    "one hundred and fifty thousand two hundred": "150200",
    "hundred": "hundred",
    "one hundred and": "100 and",
    "zero": "0",
    "third of a million": "third of a million",
}


@pytest.mark.parametrize(("told", "expected"), CASES.items())
def test_numbers_in_words_are_digits(told, expected):
    assert " ".join(numbered(told.split())) == expected


def test_spelled_numbers_are_read_as_another_librarys_normaliser_reads_them():
    from transformers.models.whisper.english_normalizer import EnglishNumberNormalizer

    from benchmarks.rewriting import spelled

    other, draw = EnglishNumberNormalizer(), random.Random(0)
    values = [0, *range(2, 130), *(draw.randrange(10**6) for _ in range(300)), 10**3, 999_999]
    for value in values:
        for joint in (" and ", " "):
            text = spelled(value, joint).replace("-", " ")
            assert other(text) == str(value)
            assert words(text) == [str(value)], text


SAME = [
    ("Janet\u2019s ducks", "JANETS DUCKS!"),
    ("It costs $1,200.50.", "it costs 1200.5 dollars"),
    ("30% of twenty-five", "30 percent of 25"),
    ("\uff21 b", "a B"),  # full width
    ("2.00 and 2", "2 and 2.0"),
    ("stra\u00dfe", "STRASSE"),
]


@pytest.mark.parametrize(("one", "other"), SAME)
def test_two_ways_of_writing_are_the_same_words(one, other):
    assert words(one) == words(other) != []


def test_other_numbers_and_words_stay_apart():
    assert words("1.5") != words("15")
    assert words("1,20") != words("120")
    assert words("10") != words("100") == ["100"]
    assert words("2020.") == ["2020"]


def test_grams_of_a_short_text_are_the_text():
    assert grams(["a", "b", "a", "b"], 2) == {("a", "b"), ("b", "a")}
    assert grams(["a"], 2) == {("a",)}
    assert grams([], 2) == set()
