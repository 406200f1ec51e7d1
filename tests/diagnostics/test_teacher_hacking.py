"""Curves made by hand: a U-turn, over-fitting, a power law that is kept, one that bends."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest

from stillroom.core import Failure
from stillroom.diagnostics.teacher_hacking import TeacherHacking


def past(proxy: Any, golden: Any, name: str = "arm", **more: Any) -> Any:
    """A run that validated at steps 0, 10, 20, ..., with losses of 1, 2, 3, ... between."""
    lines: list[dict[str, float]] = []
    for i, (a, b) in enumerate(zip(proxy, golden, strict=True)):
        lines += [
            {"step": s, "loss/student/loss": s, "lr/student": 1}
            for s in range(10 * i - 9, 10 * i + 1)
            if s > 0
        ]
        lines.append({"step": 10 * i, "validation/kl": a, "validation/source_kl": b, "time/x": 1})
    return SimpleNamespace(name=name, metrics=lines, recipe={}, result={}, **more)


def only(found: Any) -> dict[str, Any]:
    (row,) = found.rows.values()
    return row


def test_a_u_turn_is_hacking_with_its_numbers_by_hand() -> None:
    found = TeacherHacking().read([past([5, 3, 2, 1.5, 1], [6, 4, 3.5, 3.75, 4.5])])
    assert only(found) == {
        "proxy": 1,
        "golden": 4.5,
        "trained": 35.5,  # steps 31 to 40
        "gap": 1.0,
        "turn": 20,
        "hacking": 1.0,
        "bend": None,
    }
    assert (
        "from step 20 to 40 proxy fell from 2 to 1 while golden rose from 3.5 to 4.5"
        in (found.sentences[0])
    )


def test_hacking_counts_the_largest_rise_between_any_two_and_no_rise_of_both() -> None:
    # golden rises most from 10 to 30 (by 3), where proxy rose; where it fell, from 10 to 20 (by 1)
    row = only(TeacherHacking().read([past([5, 3, 2.5, 4], [6, 2, 3, 5])]))
    assert row["hacking"] == 1
    assert row["gap"] == 3


def test_where_both_rise_it_is_over_fitting_and_no_hacking() -> None:
    found = TeacherHacking().read([past([5, 2, 3, 4], [6, 3, 3.5, 5])])
    assert only(found)["hacking"] == 0
    assert only(found)["gap"] == 2
    assert "over-fitting, no hacking" in found.sentences[0]


def test_a_teacher_that_is_the_truth_cannot_be_hacked() -> None:
    curve = [5, 2, 3, 1, 2]
    assert only(TeacherHacking().read([past(curve, curve)]))["hacking"] == 0


def test_golden_that_only_falls_has_no_gap() -> None:
    found = TeacherHacking().read([past([4, 3, 2, 2.5], [4, 3, 2, 1])])
    assert (only(found)["gap"], only(found)["turn"], only(found)["hacking"]) == (0, 30, 0)
    assert "never less than at the end" in found.sentences[0]


def law(count: int, noise: float = 0.0) -> list[float]:
    """``3 n^-0.7`` at steps 10, 20, ..., with the logarithm moved up and down by turns."""
    return [3 * (10 * i) ** -0.7 * math.exp(noise * (-1) ** i) for i in range(1, count + 1)]


@pytest.mark.parametrize("noise", [0.0, 0.05])
def test_a_power_law_is_kept(noise: float) -> None:
    curve = [9.0, *law(20, noise)]
    found = TeacherHacking().read([past(curve, curve)])
    assert only(found)["bend"] is None
    assert "keeps to the power law of the first 8 validations" in found.sentences[1]


def test_the_first_validation_above_the_law_is_found() -> None:
    curve = [9.0, *law(20, 0.02)]
    curve[14:] = [value * 1.2 for value in curve[14:]]  # from step 140
    found = TeacherHacking().read([past(curve, curve)])
    assert only(found)["bend"] == 140
    # the window's residuals are 0.02 about: a deviation of log 1.2 = 0.18 is some eight of them
    assert only(TeacherHacking(deviations=20).read([past(curve, curve)]))["bend"] is None
    assert only(TeacherHacking(floor=0.1).read([past(curve, curve)]))["bend"] is None


def test_what_falls_faster_than_the_law_is_no_bend() -> None:
    curve = [9.0, *law(20)]
    curve[14:] = [value / 2 for value in curve[14:]]
    assert only(TeacherHacking().read([past(curve, curve)]))["bend"] is None


def test_a_window_of_two_is_too_short_to_fit() -> None:
    found = TeacherHacking().read([past([4, 3, 2, 1], [4, 3, 2, 1])])
    assert only(found)["bend"] is None
    assert "no power law was fitted" in found.sentences[1]


def test_numbers_are_added_up_where_several_are_named() -> None:
    run = past([4, 3, 2], [4, 3, 2])
    for line in run.metrics:
        if "validation/kl" in line:
            line["validation/reverse_kl"] = 10.0
    assert only(TeacherHacking(proxy="kl+reverse_kl").read([run]))["proxy"] == 12


def test_what_a_run_lacks_is_said() -> None:
    with pytest.raises(Failure, match="few: 2 validations make no curve"):
        TeacherHacking().read([past([4, 3], [4, 3], name="few")])
    with pytest.raises(Failure, match=r"arm: no validation told 'truth'.*golden=NAME"):
        TeacherHacking(golden="truth").read([past([4, 3, 2], [4, 3, 2])])


def test_every_run_has_a_row_of_all_columns() -> None:
    found = TeacherHacking().read([past([4, 3, 2], [4, 3, 2], name=n) for n in "ab"])
    assert list(found.rows) == ["a", "b"]
    assert all(set(row) == set(found.columns) for row in found.rows.values())
