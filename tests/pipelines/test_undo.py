"""Rationales refined by the student's errors: what is asked, kept, and taught, round by round."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from fakes import FakeWork, drawn

from stillroom.core import Failure
from stillroom.data.chains import Chains
from stillroom.data.chains_refined import fuller
from stillroom.pipelines.teaching_slm_reason import TeachingSLMReason
from stillroom.pipelines.undo import UNDO

SHORT = [{"prompt": "1+1+1=", "gold": "3"}, {"prompt": "2+2+1=", "gold": "5"}]
LONG = [{"prompt": "1+1+1+1=", "gold": "4"}]
HELD = [{"prompt": "3+3+1=", "gold": "7"}, {"prompt": "2+1+1+1=", "gold": "5"}]
JUMPS = Chains(style="jumps").program()


def never(prompt: str, folder: Path) -> str:
    return ""


def work(write: Any = never, program: Any = None, **told: Any) -> FakeWork:
    return FakeWork(program or drawn(JUMPS), [*SHORT, *LONG], HELD, write=write, **told)


def texts(lesson: Any) -> list[str]:
    return [row["completion"] for row in lesson.rows]


def test_rounds_part_all_steps_and_each_goes_on_from_the_one_before():
    made = work(steps=11)
    last = UNDO(rounds=3, eps=None).run(made)
    assert [one.steps for one in [*made.lessons, last]] == [2, 2, 2, 5]
    assert [one.start for one in [*made.lessons, last]] == [
        None, Path("round 0"), Path("round 1"), Path("round 2")
    ]  # fmt: skip
    made = work(steps=11)
    last = UNDO(rounds=3, eps=None, restart=True).run(made)
    assert [one.start for one in [*made.lessons, last]] == [None] * 4


def test_only_questions_as_long_as_one_that_was_wrong_are_told_more_fully():
    made = work(lambda prompt, folder: "7" if prompt == "3+3+1=" else "")  # nothing is wrong too
    last = UNDO(rounds=1).run(made)
    assert texts(made.lessons[0]) == ["1+1+1=3;3", "2+2+1=5;5", "1+1+1=3;3+1=4;4"]
    assert texts(last) == ["1+1+1=3;3", "2+2+1=5;5", "1+1=2;2+1=3;3+1=4;4"]
    shown = [said for said in made.said if "Rewrite" in said]
    assert len(shown) == 3
    assert all("Problem: 2+1+1+1=" in said and "3+3+1=" not in said for said in shown)


def test_as_many_errors_are_shown_as_it_says():
    made = work()
    last = UNDO(rounds=1, shown=1).run(made)
    assert {said.count("Problem: ") for said in made.said if "Rewrite" in said} == {1}
    made = work()
    last = UNDO(rounds=1, shown=0).run(made)
    assert texts(last) == texts(made.lessons[0])


def test_the_old_rationale_stays_where_the_new_one_is_wrong_or_missing():
    def program(said: str) -> str:
        if "Rewrite" not in said:
            return drawn(JUMPS)(said)
        return {"1+1+1=\n": "2+1=3;4", "2+2+1=\n": ""}.get(
            said.split("Question: ")[1].split("The right")[0], drawn(JUMPS)(said)
        )

    made = work(program=program)
    last = UNDO(rounds=1).run(made)
    assert texts(last) == ["1+1+1=3;3", "2+2+1=5;5", "1+1=2;2+1=3;3+1=4;4"]
    assert set(last.rows[0]) == set(made.lessons[0].rows[0])


def test_it_stops_where_nothing_is_wrong_and_the_steps_that_are_left_are_used():
    gold = {row["prompt"]: row["gold"] for row in HELD}
    made = work(lambda prompt, folder: gold[prompt], steps=12)
    last = UNDO(rounds=3).run(made)
    assert [one.steps for one in [*made.lessons, last]] == [3, 9]
    assert last.start == Path("round 0")
    assert last.rows == made.lessons[0].rows
    assert not [said for said in made.said if "Rewrite" in said]


@pytest.mark.parametrize(("eps", "lessons"), [(0.0, 4), (0.1, 3), (0.5, 3), (None, 4)])
def test_it_stops_where_a_round_gained_less_than_eps(eps: float | None, lessons: int):
    """Half is right after the first lesson, and after the second, which gains nothing."""
    made = work(lambda prompt, folder: "7", steps=12)
    last = UNDO(rounds=3, eps=eps).run(made)
    assert len(made.lessons) + 1 == lessons
    assert sum(one.steps for one in [*made.lessons, last]) == 12


def test_a_fall_stops_it_by_default():
    made = work(lambda prompt, folder: "7" if folder.name == "round 0" else "", steps=12)
    UNDO(rounds=3).run(made)
    assert len(made.lessons) == 2


def test_no_round_is_one_lesson_on_the_first_rationales():
    made, other = work(), work()
    last = UNDO(rounds=0).run(made)
    assert (last.rows, last.steps, last.start) == (
        TeachingSLMReason().run(other).rows, 8, None
    )  # fmt: skip
    assert made.lessons == []
    assert made.said == other.said


def test_a_teacher_that_changes_nothing_gives_the_same_rows():
    def program(said: str) -> str:
        if "Rewrite" in said:
            return said.split("Solution: ")[1].split("\n")[0]
        return drawn(JUMPS)(said)

    made = work(program=program)
    last = UNDO(rounds=2).run(made)
    assert all(one.rows == made.lessons[0].rows for one in [*made.lessons, last])


def test_questions_that_are_learned_are_no_validation():
    made = FakeWork(drawn(JUMPS), SHORT, [{"prompt": " 1+1+1= ", "gold": "3"}])
    with pytest.raises(Failure, match="1 of 1 validation questions are in the training split"):
        UNDO().run(made)
    with pytest.raises(Failure, match="there are none"):
        UNDO().run(FakeWork(drawn(JUMPS), SHORT))
    with pytest.raises(Failure, match="3 steps are too few for 4 lessons"):
        UNDO(rounds=3).run(work(steps=3))
    assert made.said == []


def test_a_refined_rationale_is_told_one_step_more_at_a_time():
    assert fuller("1+2+3=6;6*2+1=3;3") == "1+2=3;3+3=6;6*2+1=3;3"
    assert fuller("1+2=3;3+3=6;6*2+1=3;3") == "1+2=3;3+3=6;6*2=2;2+1=3;3"
    assert fuller("1+2=3;3") == "1+2=3;3"
