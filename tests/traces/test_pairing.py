"""Pairs of answers by hand: who is over whom, what has no pair and why, and shared beginnings."""

import json

import pytest
from typer.testing import CliRunner

from stillroom.cli.main import app
from stillroom.core import Failure
from stillroom.data.rows import read_rows
from stillroom.traces.pairing import right_over_wrong, teacher_over_student
from stillroom.traces.prefixes import shared_prefix


def row(prompt, said, right=None, **more):
    told = {"asked": {"copy": said}, "verified": {"right": right}}
    return {"prompt": prompt, "completion": said, "provenance": told, **more}


def pairs(done):
    return [(r["prompt"], r["completion"], r["rejected"]) for r in done.rows]


ANSWERS = [
    row("a", "r1", True, extra=1),
    row("b", "w1", False),
    row("a", "w1", False, extra=2),
    row("a", "r2", True),
    row("a", "w2", False),
    row("a", "?", None),
    row("c", "r", True),
    row("d", "?"),
    row("a", "w3", False),
]


def test_the_first_right_one_is_over_the_first_wrong_one():
    done = right_over_wrong(ANSWERS)
    assert pairs(done) == [("a", "r1", "w1")]
    wanted = {"no right answer": 1, "no wrong answer": 1}
    assert done.without == {**wanted, "no answer is known to be right or wrong": 1}
    (made,) = done.rows
    assert made["extra"] == 1
    assert made["provenance"]["asked"] == {"copy": "r1"}
    assert made["provenance"]["pair"] == {
        "how": "right over wrong by verified",
        "chosen": ANSWERS[0]["provenance"],
        "rejected": ANSWERS[2]["provenance"],
    }
    assert "rejected" not in ANSWERS[0]
    assert "pair" not in ANSWERS[0]["provenance"]


def test_all_pairs_come_in_rounds_that_use_each_of_the_larger_side_once():
    told = [(w, r) for _, w, r in pairs(right_over_wrong(ANSWERS, pick="all", most=9))]
    assert told[:3] == [("r1", "w1"), ("r2", "w2"), ("r1", "w3")]
    assert {r for _, r in told[3:]} == {"w1", "w2", "w3"}
    assert sorted(told) == [(r, w) for r in ("r1", "r2") for w in ("w1", "w2", "w3")]
    assert pairs(right_over_wrong(ANSWERS, pick="all", most=2)) == [("a", *p) for p in told[:2]]
    marks = {"r1": False, "r2": False, "w1": True, "w2": True, "w3": True}
    turned = [row("a", said, right) for said, right in marks.items()]
    other = [(w, r) for _, w, r in pairs(right_over_wrong(turned, pick="all", most=9))]
    assert other == [(r, w) for w, r in told]


def test_a_vote_tells_right_ones_too():
    def voted(said, agrees):
        return {"prompt": "a", "completion": said, "provenance": {"vote": {"agrees": agrees}}}

    done = right_over_wrong([voted("x", False), voted("y", True), voted("z", None)], by="vote")
    assert pairs(done) == [("a", "y", "x")]
    with pytest.raises(Failure, match=r"row 0: its provenance has no 'verified'.*stillroom verify"):
        right_over_wrong([voted("x", True)])
    with pytest.raises(Failure, match=r"row 0: its provenance has no 'vote'"):
        right_over_wrong(ANSWERS, by="vote")


def test_the_teacher_is_over_the_student_by_question_and_equal_answers_are_no_pair():
    teacher = [row("a", "t"), row("b", "same"), row("c", "t"), row("?", "t", id=7)]
    student = [row("b", "same"), row("a", "t"), row("a", "s"), row("d", "s"), row("!", "s", id=7)]
    done = teacher_over_student(teacher, student)
    assert pairs(done) == [("a", "t", "s"), ("?", "t", "s")]
    assert done.without == {
        "all answers are equal": 1,
        "no answer of the student": 1,
        "no answer of the teacher": 1,
    }
    assert done.rows[0]["provenance"]["pair"]["how"] == "teacher over student"
    many = [row("a", s) for s in ("s", "s", "u")]
    assert [p[2] for p in pairs(teacher_over_student(teacher, many, pick="all", most=5))] == [
        "s",
        "u",
    ]


def test_conversations_are_paired_by_their_question_and_keep_their_turns():
    def talk(said):
        turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": said}]
        return {"messages": turns}

    (made,) = teacher_over_student([talk("t")], [talk("s")]).rows
    assert made["messages"] == talk("t")["messages"]
    assert made["rejected"] == "s"
    with pytest.raises(Failure, match="row 0: a shared beginning takes texts"):
        shared_prefix([made])


@pytest.mark.parametrize(
    ("chosen", "rejected", "shared"),
    [
        ("a;b;c", "a;b;d", "a;b;"),
        ("a;bc", "a;bd", "a;"),  # no step is torn
        ("a;b", "a;b;c", "a;"),  # the shorter one still says something
        ("a;", "a;b", ""),
        ("xa;b", "a;b", ""),
        ("a;b;", "a;b;c", "a;"),
        ("ab", "ac", ""),
    ],
)
def test_shared_beginnings_end_with_a_step(chosen, rejected, shared):
    told = {"prompt": "p:", "completion": chosen, "rejected": rejected, "id": 3}
    for first, second in ((chosen, rejected), (rejected, chosen)):
        (made,) = shared_prefix([{**told, "completion": first, "rejected": second}], step=";")
        assert made["prompt"] == "p:" + shared
        assert shared + made["completion"] == first
        assert shared + made["rejected"] == second
        assert made["completion"]
        assert made["rejected"]
        assert made["id"] == 3
        assert ("provenance" in made) == bool(shared)
        if shared:
            assert made["provenance"]["pair"]["shared"] == shared
    with pytest.raises(Failure, match="step must be a text"):
        shared_prefix([told], step="")


def test_what_is_no_answer_is_named():
    with pytest.raises(Failure, match=r"student 0: expected a text in 'completion'"):
        teacher_over_student([row("a", "t")], [row("a", "")])
    with pytest.raises(Failure, match="most: a question has at least one pair, got 0"):
        right_over_wrong(ANSWERS, pick="all", most=0)


def test_the_command_writes_pairs_and_counts_what_has_none(tmp_path):
    file, out = tmp_path / "rows.jsonl", tmp_path / "pairs.jsonl"
    file.write_text("".join(json.dumps(r) + "\n" for r in ANSWERS))
    told = CliRunner().invoke(app, ["pair", str(file), "--out", str(out), "--pick", "all"])
    assert told.exit_code == 0, told.output
    assert "6 pairs" in told.output
    assert "1 no right answer" in told.output
    assert len(read_rows(out).rows) == 6
    student = tmp_path / "student.jsonl"
    student.write_text(json.dumps(row("a", "r2")) + "\n")
    words = ["pair", str(file), "--student", str(student), "--out", str(out), "--shared", "r"]
    told = CliRunner().invoke(app, words)
    assert told.exit_code == 0, told.output
    (made,) = read_rows(out).rows
    assert (made["prompt"], made["completion"], made["rejected"]) == ("ar", "1", "2")
    student.write_text(json.dumps(row("z", "r2")) + "\n")
    told = CliRunner().invoke(app, words)
    assert "no question has a pair" in str(told.exception)
