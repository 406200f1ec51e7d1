"""Intervals of shares: by the equation that they solve, and by how often they hold."""

import math
import random

import pytest

from stillroom.traces.shares import Z, difference, share


@pytest.mark.parametrize(("hits", "n"), [(0, 5), (1, 7), (30, 40), (9, 9), (500, 1000)])
def test_wilsons_ends_are_where_the_score_test_just_rejects(hits, n):
    found = share([True] * hits + [False] * (n - hits))
    for end in (found.low, found.high):
        assert abs(hits / n - end) == pytest.approx(Z * math.sqrt(end * (1 - end) / n), abs=1e-9)
    assert found.low <= found.value == hits / n <= found.high


def test_a_difference_by_hand_and_its_ends_stay_within_one():
    # b = 6.5, c = 2.5, N = 22: 4 / 22 = .1818; sqrt(9 - 16 / 22) / 22 = .1307, times z .2562
    found = difference([1] * 6 + [-1] * 2 + [0] * 12)
    assert (found.value, found.n) == (0.2, 20)
    assert (found.low, found.high) == pytest.approx((-0.0744, 0.4381), abs=2e-4)
    assert difference([1] * 3).high == 1.0
    assert difference([]).value is None


@pytest.mark.parametrize(("up", "down"), [(0.3, 0.1), (0.05, 0.0), (0.5, 0.5)])
def test_a_difference_is_covered_as_often_as_it_should_be(up, down):
    draw = random.Random(3)
    hits = 0
    for _ in range(1000):
        found = difference(draw.choices([1, -1, 0], [up, down, 1 - up - down], k=100))
        hits += found.low <= up - down <= found.high
    assert 0.93 < hits / 1000 < 0.99
