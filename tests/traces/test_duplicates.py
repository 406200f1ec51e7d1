"""Near-duplicates: the index against all pairs, ROUGE-L against the library and the full table."""

from __future__ import annotations

import random

import pytest

from stillroom.failures import Failure
from stillroom.traces.duplicates import rouge_l, unlike, without_duplicates
from stillroom.traces.words import grams, words


def texts(seed, count=150, vocabulary=12):
    """Texts of few words, so that likeness of every degree occurs; some are edits of others."""
    draw, made = random.Random(seed), []
    for _ in range(count):
        if made and draw.random() < 0.5:
            said = draw.choice(made).split()
            for _ in range(draw.randrange(3)):
                said[draw.randrange(len(said))] = "abcdefghijkl"[draw.randrange(vocabulary)]
        else:
            said = [
                "abcdefghijkl"[int(vocabulary * draw.random() ** 2)]
                for _ in range(draw.randrange(1, 14))
            ]
        made.append(" ".join(said))
    return made


def table(a, b):
    """Length of the longest common subsequence, by the textbook's table."""
    rows = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            longer = max(rows[i][j + 1], rows[i + 1][j])
            rows[i + 1][j + 1] = rows[i][j] + 1 if x == y else longer
    return rows[-1][-1]


def rows(told):
    return [{"prompt": text} for text in told]


def prompts(kept):
    return [row["prompt"] for row in kept.rows]


def kept_by_all_pairs(told, pool, alike):
    held, kept = [*pool], []
    for text in told:
        if not any(alike(text, other) for other in held):
            held.append(text)
            kept.append(text)
    return kept


@pytest.mark.parametrize("least", [0.2, 0.5, 2 / 3, 0.8, 1.0])
@pytest.mark.parametrize("seed", range(4))
def test_the_index_changes_no_decision_on_jaccard(least, seed):
    own, pool = texts(seed), texts(seed + 100, 20)

    def alike(one, other):
        a, b = grams(words(one), 2), grams(words(other), 2)
        return len(a & b) >= least * len(a | b) - 1e-12 or words(one) == words(other)

    expected = kept_by_all_pairs(own, pool, alike)
    assert 1 < len(expected) < len(own)
    assert prompts(without_duplicates(rows(own), pool, least=least, n=2)) == expected


@pytest.mark.parametrize("most", [0.0, 0.4, 0.7, 0.9, 1.0])
@pytest.mark.parametrize("seed", range(4))
def test_the_bound_changes_no_decision_on_rouge(most, seed):
    own, pool = texts(seed), texts(seed + 100, 20)

    def alike(one, other):
        a, b = one.split(), other.split()
        return 2 * table(a, b) > most * (len(a) + len(b)) + 1e-12

    expected = kept_by_all_pairs(own, pool, alike)
    assert len(expected) <= len(own)
    assert prompts(unlike(rows(own), pool, most=most)) == expected


def test_rouge_l_is_that_of_the_table():
    draw = random.Random(1)
    for _ in range(300):
        a, b = ([draw.randrange(5) for _ in range(draw.randrange(1, 80))] for _ in range(2))
        assert rouge_l(a, b) == pytest.approx(2 * table(a, b) / (len(a) + len(b)), abs=1e-12)
    assert rouge_l([], [1]) == rouge_l([1], []) == 0


@pytest.mark.extra("eval")
def test_rouge_l_is_that_of_the_library():
    overlap = pytest.importorskip("stillroom.evaluation.overlap").overlap
    pytest.importorskip("torchmetrics")
    one = "Janet's 16 ducks lay eggs, and she_sells the rest of THEM daily."
    other = "Every day the 16 ducks of Janet lay; she sells the rest daily."
    other_rows = [{"prompt": other}]
    value = overlap([one], [other])["rouge_l"]
    assert 0.4 < value < 0.9
    assert len(unlike(other_rows, [one], most=value + 1e-6).rows) == 1
    assert len(unlike(other_rows, [one], most=value - 1e-6).rows) == 0


def test_exactly_the_bound_stays_by_rouge_and_goes_by_jaccard():
    told = rows(["a b c d", "a b c x"])  # ROUGE-L 0.75; 1-grams 3 of 5
    assert len(unlike(told, most=0.75).rows) == 2
    assert len(unlike(told, most=0.749).rows) == 1
    assert len(without_duplicates(told, least=0.6, n=1).rows) == 1
    assert len(without_duplicates(told, least=0.601, n=1).rows) == 2


def test_a_bound_that_rounding_lifts_loses_no_pair():
    assert 0.56 * 25 > 14  # 14 of 25 are 0.56 all the same
    every = [chr(ord("b") + i) for i in range(25)]
    told = rows([" ".join(every), " ".join(every[11:])])
    assert len(without_duplicates(told, least=0.56, n=1).rows) == 1


def test_what_is_the_same_but_for_its_writing_goes_and_the_first_stays():
    told = rows(["Add two and three!", "add 2 AND 3", "Something else", ""])
    kept = without_duplicates([*told, {"prompt": "!"}], ["something, else"], least=1.0)
    assert prompts(kept) == ["Add two and three!", ""]
    assert kept.counts == {"duplicate": 2, "pool": 1}
    assert [d.place for d in kept.dropped] == [1, 2, 4]
    assert kept.rows[0]["provenance"]["filtered"][0]["by"] == "duplicates"


def test_bounds_out_of_range_are_refused():
    with pytest.raises(Failure, match="least is a share above 0"):
        without_duplicates([], least=0)
    with pytest.raises(Failure, match="most is a share"):
        unlike([], most=1.1)
