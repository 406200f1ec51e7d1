"""Learning rates, worked out by hand."""

import pytest

from stillroom.schedules import Rate, rate_at


def rates(*stretches: Rate, steps: int) -> list[float]:
    return [rate_at(stretches, step, steps) for step in range(steps)]


def test_constant():
    assert rates(Rate(peak=0.3), steps=3) == [0.3, 0.3, 0.3]


def test_warmup_grows_by_equal_parts_and_never_from_zero():
    assert rates(Rate(peak=0.8, warmup=4), steps=6) == pytest.approx([0.2, 0.4, 0.6, 0.8, 0.8, 0.8])


def test_linear_decay_starts_at_the_peak():
    assert rates(Rate(peak=1.0, decay="linear"), steps=4) == pytest.approx([1, 0.75, 0.5, 0.25])
    half = Rate(peak=1.0, decay="linear", end=0.5)
    assert rates(half, steps=4) == pytest.approx([1, 0.875, 0.75, 0.625])


def test_cosine_is_at_the_middle_after_half_and_near_its_end_at_last():
    told = rates(Rate(peak=2.0, decay="cosine", end=0.1), steps=4)
    # (1 + cos) / 2 at 0, pi/4, pi/2, 3 pi/4
    parts = [1, 0.8535533906, 0.5, 0.1464466094]
    assert told == pytest.approx([2 * (0.1 + 0.9 * part) for part in parts])


def test_decay_runs_over_what_the_warmup_leaves():
    told = rates(Rate(peak=1.0, warmup=2, decay="linear"), steps=6)
    assert told == pytest.approx([0.5, 1, 1, 0.75, 0.5, 0.25])


def test_stretches_follow_each_other_each_with_its_own_time():
    first = Rate(peak=1.0, decay="linear", until=4)
    second = Rate(peak=0.4, warmup=2, until=7)
    third = Rate(peak=0.1, decay="linear")
    told = rates(first, second, third, steps=9)
    assert told == pytest.approx([1, 0.75, 0.5, 0.25, 0.2, 0.4, 0.4, 0.1, 0.05])


def test_a_stretch_beyond_the_run_is_cut_not_squeezed():
    long = Rate(peak=1.0, decay="linear", until=8)
    assert rates(long, Rate(peak=0.1), steps=2) == pytest.approx([1, 0.875])


def test_the_last_rate_of_a_run_of_one_step():
    assert rates(Rate(peak=1.0, decay="cosine"), steps=1) == [1.0]
    assert rates(Rate(peak=1.0, warmup=5, decay="cosine"), steps=1) == pytest.approx([0.2])
