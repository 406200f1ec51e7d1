"""Intervals and verdicts by hand."""

import pytest

from stillroom.core import Failure
from stillroom.evidence.verdicts import Interval, interval, verdict

pytestmark = pytest.mark.extra("claims")


def test_the_interval_of_three_differences_is_the_one_worked_out_by_hand():
    # mean 2, sd 1, t(0.975, 2) = 4.302653 (tables): reach 4.302653 / sqrt(3) = 2.484138
    found = interval([1.0, 2.0, 3.0])
    assert found.mean == 2.0
    assert found.low == pytest.approx(2 - 2.484138, abs=1e-5)
    assert found.high == pytest.approx(2 + 2.484138, abs=1e-5)


def test_the_interval_of_two_and_of_five():
    # sd of (0, 2) is sqrt(2), t(0.975, 1) = 12.706205: reach 12.706205 * sqrt(2) / sqrt(2)
    assert interval([0.0, 2.0]).high == pytest.approx(13.706205, abs=1e-5)
    # sd of 1..5 is sqrt(2.5), t(0.975, 4) = 2.776445: reach 2.776445 * sqrt(0.5) = 1.963243
    assert interval([1.0, 2.0, 3.0, 4.0, 5.0]).low == pytest.approx(3 - 1.963243, abs=1e-5)


def test_equal_differences_have_an_interval_of_no_width():
    assert interval([0.25, 0.25]) == Interval(0.25, 0.25, 0.25)


@pytest.mark.parametrize("few", [[], [1.0]])
def test_one_seed_tells_nothing(few):
    with pytest.raises(Failure, match=rf"at least 2 seeds, got {len(few)}"):
        interval(few)


@pytest.mark.parametrize(
    ("low", "high", "told"),
    [
        (0.6, 0.9, "held"),
        (0.5, 0.9, "undecided"),  # the margin itself is not beyond it
        (0.4, 0.9, "undecided"),
        (-0.9, 0.9, "undecided"),
        (0.1, 0.4, "not held"),  # inside the margin
        (0.1, 0.5, "not held"),
        (-0.1, 0.1, "not held"),
        (-0.9, 0.4, "not held"),  # partly inside, partly on the other side
        (-0.9, -0.6, "not held"),  # on the other side
    ],
)
def test_verdicts_at_a_margin_of_a_half(low, high, told):
    assert verdict(Interval((low + high) / 2, low, high), "higher", 0.5) == told
    assert verdict(Interval(-(low + high) / 2, -high, -low), "lower", 0.5) == told


@pytest.mark.parametrize(
    ("low", "high", "told"),
    [(0.01, 1, "held"), (-0.01, 1, "undecided"), (-1, 0, "not held"), (0.0, 0.0, "not held")],
)
def test_verdicts_without_a_margin(low, high, told):
    assert verdict(Interval((low + high) / 2, low, high), "higher", 0.0) == told
