"""Sub-questions and their answers: what each of two models learns, and how they work in turn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from fakes import FakeWork, drawn

from stillroom.core import Failure
from stillroom.data.chains import Chains, worked
from stillroom.pipelines.socratic_cot import SocraticCoT
from stillroom.pipelines.teaching_slm_reason import TeachingSLMReason
from stillroom.traces.subquestions import steps_of

PROBLEMS = ["3+5*2-7=", "1+1=", "9*9+4="]
ROWS = [{"prompt": p, "gold": worked(p)[-1]} for p in PROBLEMS]
PROGRAM = drawn(Chains().program())
MARKS: Any = {"asks": ">", "answers": "?", "end": "."}


def work(write: Any = lambda prompt, folder: "", program: Any = PROGRAM, **told: Any) -> FakeWork:
    return FakeWork(program, ROWS, [{"prompt": "2+2*3=", "gold": "2"}], write=write, **told)


def pairs(rows: Any) -> list[tuple[str, str]]:
    return [(row["prompt"], row["completion"]) for row in rows]


def test_each_model_learns_its_own_targets_and_reads_the_others():
    made = FakeWork(PROGRAM, ROWS[:1])
    last = SocraticCoT(**MARKS).run(made)
    assert pairs(made.lessons[0].rows) == [
        ("3+5*2-7=>", "3+5"),
        ("3+5*2-7=>3+5?3+5=8>", "*2"),
        ("3+5*2-7=>3+5?3+5=8>*2?8*2=6>", "-7"),
        ("3+5*2-7=>3+5?3+5=8>*2?8*2=6>-7?6-7=9>", "."),
    ]
    assert pairs(last.rows) == [
        ("3+5*2-7=>3+5?", "3+5=8"),
        ("3+5*2-7=>3+5?3+5=8>*2?", "8*2=6"),
        ("3+5*2-7=>3+5?3+5=8>*2?8*2=6>-7?", "6-7=9"),
    ]
    assert last.beside == {"decomposer": Path("decomposer")}


def test_targets_of_both_make_the_unified_text_each_once():
    """Laid back in the order in which they stand, with the marks between them."""
    made = work()
    solver = SocraticCoT(**MARKS).run(made).rows
    whole = SocraticCoT(**MARKS, system="unified").run(work()).rows
    for row in whole:
        q = [r["completion"] for r in made.lessons[0].rows if r["id"] == row["id"]]
        s = [r["completion"] for r in solver if r["id"] == row["id"]]
        assert q.pop() == "."
        told = "".join(f">{a}?{b}" for a, b in zip(q, s, strict=True))
        assert (row["prompt"] in PROBLEMS, row["completion"]) == (True, told)


def test_hidden_questions_leave_chain_of_thought_data():
    chain = SocraticCoT(system="chain", answers=";").run(work()).rows
    cot = TeachingSLMReason(given=False).run(work()).rows
    assert [row["completion"][1:] for row in chain] == [
        row["completion"].rpartition(";")[0] for row in cot
    ]


def test_all_at_once_is_one_row_a_problem():
    made = FakeWork(PROGRAM, ROWS[:1])
    SocraticCoT(**MARKS, plan="at_once").run(made)
    assert pairs(made.lessons[0].rows) == [("3+5*2-7=>", "3+5>*2>-7")]


def test_what_is_wrong_or_malformed_is_not_learned():
    told = {PROBLEMS[0]: "Q: 3+5\nA: 3+5=8\nQ: the rest\nA: 8*2-7=1", PROBLEMS[1]: "It is 2."}

    def program(said: str) -> str:
        return told.get(said.rpartition("Question: ")[2].strip(), PROGRAM(said))

    made = work(program=program)
    assert {row["id"] for row in SocraticCoT(**MARKS).run(made).rows} == {"train/2"}
    assert {row["id"] for row in made.lessons[0].rows} == {"train/2"}
    assert made.ledger["decompositions"] == {"parsed": 2, "unparsed": 1}
    told[PROBLEMS[2]] = "Q: 9*9?\nA: 1\nQ: +4\nA: 5"  # holds a mark
    assert SocraticCoT(**MARKS).run(work(program=program)).rows == []


def knowing(prompt: str, model: Any) -> str:
    """What perfect models write, found from the text alone by counting what was done."""
    problem, *turns = prompt.split(">")
    operations = [problem[:3], *(problem[i : i + 2] for i in range(3, len(problem) - 1, 2))]
    if model == Path("decomposer"):
        return operations[len(turns) - 1] if len(turns) <= len(operations) else "."
    assert model == "solver"
    assert turns[-1] == operations[len(turns) - 1] + "?"
    return worked(problem).split(";")[len(turns) - 1]


@pytest.mark.parametrize("asked_by", ["decomposer", "teacher"])
def test_they_work_in_turn_until_the_end(asked_by: Any):
    lesson = SocraticCoT(**MARKS, asked_by=asked_by).run(work(knowing))
    assert lesson.written is not None
    assert lesson.written("solver", ["4*2-9+1=", "5+5="]) == [
        ">4*2?4*2=8>-9?8-9=9>+1?9+1=0", ">5+5?5+5=0"
    ]  # fmt: skip


def test_turns_are_bounded_and_silence_ends():
    asked = []

    def endless(prompt: str, model: Any) -> str:
        asked.append(prompt)
        return "" if prompt.startswith("5") else "x"

    lesson = SocraticCoT(**MARKS, turns=3).run(work(endless))
    assert lesson.written is not None
    assert lesson.written("solver", ["4+1=", "5+5="]) == [">x?x>x?x>x?x", ""]
    assert len(asked) == 3 * 2 + 1


def test_all_at_once_is_parted_at_its_mark():
    def planned(prompt: str, model: Any) -> str:
        return "a>b>" if model == Path("decomposer") else "1"

    lesson = SocraticCoT(**MARKS, plan="at_once").run(work(planned))
    assert lesson.written is not None
    assert lesson.written("solver", ["4+1="]) == [">a?1>b?1"]


def test_steps_are_shared_and_none_may_go_without():
    made = work(steps=10)
    last = SocraticCoT(**MARKS, share=0.3).run(made)
    assert (made.lessons[0].steps, last.steps) == (3, 7)
    with pytest.raises(Failure, match="share: of 1 steps it gives 0"):
        SocraticCoT(**MARKS, share=0.3).run(work(steps=1))


def test_sub_questions_of_validation_are_compared_with_the_teachers():
    made = work(lambda prompt, folder: "2+2" if prompt == "2+2*3=>" else ".")
    SocraticCoT(**MARKS, checked=5).run(made)
    assert made.ledger["sub-questions of validation"] == {"asked": 3, "as_the_teacher": 2}


def test_conversations_are_refused():
    row = {"messages": [{"role": "user", "content": "1+1="}], "gold": "2"}
    with pytest.raises(Failure, match=r"train/0 is a conversation"):
        SocraticCoT().run(FakeWork(PROGRAM, [row]))


@pytest.mark.parametrize(
    ("text", "steps"),
    [
        ("Sub-question 1: a?\nAnswer 1: 3 apples\nthat is all", [("a?", "3 apples that is all")]),
        ("1. **Question:** x\n   **Answer:** -7", [("x", "-7")]),
        ("Quite a lot: of text\nQ: *2\nA: 2*2\nFinal answer: 4", [("*2", "2*2")]),
        ("Q: a\nQ: b\nA: c", []),
        ("A: 3\nQ: x", []),
        ("Q: only", []),
        ("Q: a\nA:", []),
        ("nothing of the kind", []),
    ],
)
def test_replies_are_parsed_or_left(text: str, steps: Any):
    assert steps_of(text) == steps
