"""Mixes: proportions by hand and against the definition, replacement, errors, the same seed."""

from __future__ import annotations

from collections import Counter
from itertools import product

import pytest

from stillroom.failures import Failure
from stillroom.traces.mixing import capped, mixed, split


def source(letter, count):
    return [{"prompt": f"{letter}{i}", "provenance": {"asked": {"copy": i}}} for i in range(count)]


HARD, EASY = source("h", 10), source("e", 6)
BOTH = {"hard": HARD, "easy": EASY}


def prompts(done):
    return [row["prompt"] for row in done.rows]


def test_one_to_one_takes_as_many_of_both_and_none_twice():
    done = mixed(BOTH, {"hard": 1, "easy": 1})
    assert done.counts == {"hard": 6, "easy": 6}
    assert len(set(prompts(done))) == 12
    told = Counter(row["provenance"]["mixed"]["source"] for row in done.rows)
    assert told == done.counts
    assert all("asked" in row["provenance"] for row in done.rows)
    assert "mixed" not in HARD[0]["provenance"]


def test_the_same_seed_gives_the_same_rows_and_another_one_others():
    shares = {"hard": 2, "easy": 1}
    one = mixed(BOTH, shares, 9, seed=3)
    assert prompts(one) == prompts(mixed(BOTH, shares, 9, seed=3))
    assert prompts(one) != prompts(mixed(BOTH, shares, 9, seed=4))
    firsts = [p[0] for p in prompts(one)]
    assert firsts != sorted(firsts)
    assert firsts != sorted(firsts, reverse=True)


def test_what_is_drawn_of_one_source_does_not_depend_on_another():
    more = {"hard": HARD, "easy": source("e", 60)}
    one, other = (mixed(s, {"hard": 1, "easy": 1}, 8) for s in (BOTH, more))
    hard = [{p for p in prompts(done) if p[0] == "h"} for done in (one, other)]
    assert hard[0] == hard[1]
    assert len(hard[0]) == 4


def test_parts_are_within_one_of_their_quota_and_sum_to_the_count():
    for shares in product((1, 2, 0.3, 5), repeat=3):
        told = dict(zip("abc", shares, strict=True))
        for count in range(1, 25):
            parts = split(count, told)
            assert sum(parts.values()) == count
            for name, part in parts.items():
                assert abs(part - count * told[name] / sum(shares)) < 1 + 1e-9


def test_the_largest_remainders_get_what_is_left():
    # quotas 4.2, 3.5, 2.3: the half is the largest remainder
    assert split(10, {"a": 42, "b": 35, "c": 23}) == {"a": 4, "b": 4, "c": 2}
    assert split(10, {"a": 0.1, "b": 0.2, "c": 0.7}) == {"a": 1, "b": 2, "c": 7}


def test_without_a_count_the_shares_are_kept_and_a_source_is_used_up():
    assert mixed(BOTH, {"hard": 0.7, "easy": 0.3}).counts == {"hard": 10, "easy": 4}
    assert mixed({"a": source("a", 3), "b": source("b", 7)}, {"a": 0.3, "b": 0.7}).counts == {
        "a": 3,
        "b": 7,
    }


def test_a_small_source_is_refused_or_given_again_evenly():
    with pytest.raises(Failure, match="easy has 6 rows, and 8 are its share of 16"):
        mixed(BOTH, {"hard": 1, "easy": 1}, 16)
    done = mixed(BOTH, {"hard": 1, "easy": 1}, 16, repeat=True)
    often = Counter(p for p in prompts(done) if p[0] == "e")
    assert sorted(often.values()) == [1, 1, 1, 1, 2, 2]


def test_caps_take_at_most_so_many():
    done = capped(BOTH, {"hard": 4, "easy": 100})
    assert done.counts == {"hard": 4, "easy": 6}
    assert len(set(prompts(done))) == 10


BAD = [
    (lambda: mixed(BOTH, {"hard": 1}), "do not fit"),
    (lambda: mixed(BOTH, {"hard": 1, "easy": 0}), "easy: a share is a number above 0"),
    (lambda: mixed(BOTH, {"hard": 1, "easy": float("inf")}), "easy: a share"),
    (lambda: mixed({"a": []}, {"a": 1}), "a mix of 0 rows"),
    (lambda: mixed({"a": []}, {"a": 1}, 2, repeat=True), "a has 0 rows"),
    (lambda: mixed(BOTH, {"hard": 1, "easy": 1}, repeat=True), "no natural end"),
    (lambda: capped(BOTH, {"hard": 0, "easy": 1}), "hard: a cap is at least 1"),
    (lambda: capped({"a": []}, {"a": 1}), "no source has a row"),
]


@pytest.mark.parametrize(("make", "message"), BAD)
def test_what_cannot_be_mixed_is_refused(make, message):
    with pytest.raises(Failure, match=message):
        make()
