"""Lion: what counts as hard, that no order of answers matters, and how the pools grow."""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from stillroom.core import Failure, Lesson
from stillroom.data.chains import Chains, worked
from stillroom.data.templates import template
from stillroom.pipelines.lion import Lion

PROGRAM = Chains().program()
SEEDS = ["1+2=", "3-4*5=", "6+7-8*9=", "2*2=", "9-1+4="]
QUESTION = re.compile(r"\d(?:[-+*]\d)+=")
SCORES = re.compile(
    r"<request>\n(.*)\n</request>.*<answer_A>\n(.*)\n</answer_A>\n\n<answer_B>\n(.*)\n</answer_B>",
    re.S,
)


@dataclass
class Server:
    """Work whose teacher is the program, through the packaged templates, and a scripted student.

    ``student(question, round)`` is what it writes; ``reply(what, text, said)`` may change what the
    program said. Nothing counts but what passed by here.
    """

    student: Callable[[str, int], str]
    reply: Callable[[str, str, str], str] = lambda what, text, said: said
    questions: Sequence[str] = tuple(SEEDS)
    validation: Sequence[Any] = ()
    steps: int = 100
    batch: int = 8
    seed: int = 0
    asked: list[tuple[str, str, int]] = field(default_factory=list)
    lessons: list[Lesson] = field(default_factory=list)
    ledger: list[tuple[str, dict[str, float]]] = field(default_factory=list)

    @property
    def rows(self) -> list[Any]:
        return [{"id": f"s{i}", "prompt": q} for i, q in enumerate(self.questions)]

    def ask(self, what: str, rows: Any, *, n: int = 1, temperature: Any = None) -> list[Any]:
        fill, found = template(what), []
        for row in rows:
            for copy in range(n):
                text = fill(row)
                self.asked.append((what, text, copy))
                said = PROGRAM(text, random.Random(f"{text} {copy}"))
                said = self.reply(what, text, said)
                told = {**row.get("provenance", {}), "asked": {"template": what}}
                found += [{**row, "completion": said, "provenance": told}] if said else []
        return found

    def write(self, student: Path, rows: Any, *, n: int = 1, temperature: float = 0) -> list[Any]:
        k = int(student.name)
        said = [(row, self.student(row["prompt"], k)) for row in rows]
        return [{**row, "completion": text} for row, text in said if text]

    def teach(self, lesson: Lesson) -> Path:
        self.lessons.append(lesson)
        return Path(str(len(self.lessons) - 1))

    def tell(self, what: str, **numbers: float) -> None:
        self.ledger.append((what, numbers))

    def run(self, **told: Any) -> list[Lesson]:
        """All lessons, the last one too."""
        work: Any = self
        last = Lion(**{"alike": 1.0, "min_words": 1, "share": 0.4, **told}).run(work)
        return [*self.lessons, last]

    def given(self, what: str) -> list[str]:
        """The instructions that were put to the teacher through a template, copies counted."""
        texts = [text for name, text, _ in self.asked if name == what]
        return [QUESTION.findall(text)[0] for text in texts]


def long_ones_wrong(question: str, k: int) -> str:
    """Right about one operation, wrong about more."""
    return worked(question) if len(question) == 4 else worked(question, wrong=0)


def prompts(lesson: Lesson) -> list[str]:
    return [row["prompt"] for row in lesson.rows]


def test_hard_ones_are_those_that_the_student_fails_and_easy_ones_the_rest() -> None:
    work = Server(long_ones_wrong)
    first, last = work.run(rounds=1, new=4)
    assert prompts(first) == SEEDS
    assert [row["completion"] for row in first.rows] == [worked(q) for q in SEEDS]
    assert {*work.given("lion.hard")} <= {q for q in SEEDS if len(q) > 4}
    assert {*work.given("lion.easy")} <= {q for q in SEEDS if len(q) == 4}
    kinds = [row["provenance"]["made"]["template"] for row in last.rows]
    assert Counter(kinds) == {"lion.hard": 2, "lion.easy": 2}
    assert [len(q) > 4 for q in prompts(last)] == [True, True, False, False]
    assert [row["completion"] for row in last.rows] == [worked(q) for q in prompts(last)]
    assert dict(work.ledger)["discrimination in round 0"] == {
        "hard": 3, "easy": 2, "unparsed": 0, "hard_share": 0.6,
    }  # fmt: skip


def test_identical_answers_are_never_hard_and_nobody_is_asked() -> None:
    work = Server(lambda q, k: worked(q), lambda w, t, s: "Scores: 10, 1" if w[0] == "j" else s)
    lessons = work.run(rounds=1, new=4)
    assert not [name for name, _, _ in work.asked if name == "judge.scores"]
    assert not work.given("lion.hard")
    assert {row["provenance"]["made"]["template"] for row in lessons[1].rows} == {"lion.easy"}


def biased(what: str, text: str, said: str) -> str:
    """A referee who gives the answer shown first two points more, and else half of the truth."""
    if what != "judge.scores":
        return said
    first, second = (int(s) for s in re.findall(r"\d+", said.splitlines()[-1]))
    return f"Scores: {first / 2 + 2.5}, {second / 2 + 0.5}"


def test_the_swap_cancels_what_a_referee_likes_in_the_first_place() -> None:
    """Half of 10 - 1 is 4.5, which tau may be; read in one order it would be 6.5, or 2.5."""
    for tau, hard in ((4.5, True), (4.6, False)):
        work = Server(long_ones_wrong, biased)
        work.run(rounds=1, new=4, tau=tau)
        assert bool(work.given("lion.hard")) is hard


def test_each_pair_is_shown_in_both_orders_and_never_again() -> None:
    work = Server(long_ones_wrong)
    work.run(rounds=2, new=4)
    shown = [SCORES.search(text) for name, text, _ in work.asked if name == "judge.scores"]
    pairs = Counter(found.groups() for found in shown if found)
    assert {*pairs.values()} == {1}
    assert {(q, b, a) for q, a, b in pairs} == {*pairs}
    assert {q for q, _, _ in pairs} >= {q for q in SEEDS if len(q) > 4}
    assert len({*work.asked}) == len(work.asked)


def test_what_the_referee_does_not_say_makes_neither_hard_nor_easy() -> None:
    """One order of one pair is no score: that instruction serves no kind in this round."""
    lost = "3-4*5="

    def mute(what: str, text: str, said: str) -> str:
        seen = f"<answer_A>\n{worked(lost)}\n" in text
        return "I would rather not." if what == "judge.scores" and seen else said

    work = Server(long_ones_wrong, mute)
    work.run(rounds=1, new=10)
    assert lost not in work.given("lion.hard") + work.given("lion.easy")
    assert {*work.given("lion.hard")} == {"6+7-8*9=", "9-1+4="}
    assert dict(work.ledger)["discrimination in round 0"]["unparsed"] == 1


def test_silence_of_the_student_is_judged_as_an_empty_answer() -> None:
    work = Server(lambda q, k: "")
    work.run(rounds=1, new=4)
    assert {*work.given("judge.scores")} == {*SEEDS}
    assert work.given("lion.hard")


def test_pools_grow_by_what_is_new_and_the_next_lesson_learns_that_alone() -> None:
    work = Server(long_ones_wrong)
    lessons = work.run(rounds=3, new=6)
    sizes = [len(lesson.rows) for lesson in lessons]
    assert sizes == [5, 6, 6, 6]
    every = [q for lesson in lessons for q in prompts(lesson)]
    assert len({*every}) == len(every)
    told = [numbers for what, numbers in work.ledger if what.startswith("pools")]
    assert told == [{"train": 6, "cache": 11}, {"train": 6, "cache": 17}, {"train": 6, "cache": 23}]
    judged = [n for what, n in work.ledger if what.startswith("discrimination")]
    assert [n["hard"] + n["easy"] for n in judged] == [5, 11, 17]
    assert [lesson.start for lesson in lessons] == [None, Path("0"), Path("1"), Path("2")]
    ids = [row["id"] for lesson in lessons for row in lesson.rows]
    assert len({*ids}) == len(ids)


@pytest.mark.parametrize(("share", "steps"), [(0.4, [40, 20, 20, 20]), (None, [25, 25, 25, 25])])
def test_steps_are_parted(share: float | None, steps: list[int]) -> None:
    """Without a share by rows: 6 seeds and three times 6 new ones."""
    work = Server(long_ones_wrong, questions=(*SEEDS, "1-1="))
    assert [lesson.steps for lesson in work.run(rounds=3, new=6, share=share)] == steps


def test_a_duplicate_is_dropped_and_asked_for_again() -> None:
    """The teacher first says what it was given; then, shown that, something new."""

    def parrot(what: str, text: str, said: str) -> str:
        if not what.startswith("lion") or "Written already" in text:
            return said
        return QUESTION.findall(text)[0]

    work = Server(long_ones_wrong, parrot)
    _, last = work.run(rounds=1, new=4)
    assert len(last.rows) == 4
    assert not {*prompts(last)} & {*SEEDS}
    told = dict(work.ledger)["hard in round 0"]
    assert (told["kept"], told["same"]) == (2, 2)


def test_what_was_written_once_is_new_to_neither_kind_nor_try() -> None:
    """The teacher knows three new questions, and says them over and over, to whatever it is."""
    known, said = ["9+9+9=", "8+8+8=", "7+7+7="], 0

    def poor(what: str, text: str, reply: str) -> str:
        nonlocal said
        said += what.startswith("lion")
        return known[said % 3] if what.startswith("lion") else reply

    _, last = Server(long_ones_wrong, poor).run(rounds=1, new=4)
    assert len({*prompts(last)}) == len(last.rows) == 2


def test_one_kind_is_cut_to_the_other() -> None:
    """Of easy ones the teacher has one; hard ones are as many as wanted."""

    def reply(what: str, text: str, said: str) -> str:
        return "1+1+1=" if what == "lion.easy" else said

    work = Server(long_ones_wrong, reply)
    _, last = work.run(rounds=1, new=6)
    kinds = [row["provenance"]["made"]["template"] for row in last.rows]
    assert Counter(kinds) == {"lion.hard": 1, "lion.easy": 1}
    assert dict(work.ledger)["hard in round 0"]["kept"] == 3


def test_what_is_too_like_the_pool_is_dropped() -> None:
    """Words 1 to 7 of 10 in common are a ROUGE-L of 0.7, which stays; 8 of 10 do not."""
    seed = "a b c d e f g h i j"
    said = {0.7: "a b c d e f g x y z", 0.8: "a b c d e f g h y z"}
    for score, text in said.items():
        for alike, kept in ((0.7, score <= 0.7), (0.8, True)):
            assert bool(lion_writes(seed, text, alike=alike)) is kept


@pytest.mark.parametrize(
    ("reply", "kept"),
    [
        ("Add three and five.", "Add three and five."),
        ("**New task:** Add three and five.", "Add three and five."),
        ('"Add three and five."', "Add three and five."),
        ("Add three five.", None),
        ("- Add three and five.", None),
        ("Ädd three and five.", None),
        ("Follow the instruction given here.", None),
        ("Given task:\nAdd one and two.", None),
        ("Task:", None),
    ],
)
def test_only_well_formed_ones_stay(reply: str, kept: str | None) -> None:
    assert lion_writes("What is the capital of France?", reply) == ([kept] if kept else [])


def lion_writes(
    seed: str, reply: str, alike: float = 0.7, validation: Sequence[Any] = ()
) -> list[str]:
    """What is learned in the last lesson, if it is new, where the teacher makes ``reply``."""
    said = {"answer": "Yes.", "judge.scores": "Scores: 7, 7", "lion.easy": reply}

    class Told(Server):
        def ask(self, what: str, rows: Any, *, n: int = 1, temperature: Any = None) -> list[Any]:
            return [{**r, "completion": said[what], "provenance": {}} for r in rows]

    work = Told(lambda q, k: "No.", questions=[seed], validation=validation)
    last = work.run(rounds=1, new=2, tries=1, alike=alike, min_words=4)[-1]
    return [] if last.name == "the rest" else prompts(last)


def test_a_validation_question_is_never_learned() -> None:
    text = "Add three and five, then say it."
    seed = "What is the capital of France?"
    assert lion_writes(seed, text) == [text]
    assert not lion_writes(
        seed, text, validation=[{"id": "v", "prompt": "add 3 AND 5 then say it"}]
    )


def test_where_nothing_new_is_left_the_steps_that_remain_go_to_what_is_there() -> None:
    work = Server(long_ones_wrong, lambda what, text, said: "" if what[:4] == "lion" else said)
    first, last = work.run(rounds=3, new=6, share=0.4)
    assert (first.steps, last.steps, last.start) == (40, 60, Path("0"))
    assert prompts(last) == SEEDS


def test_random_ones_are_drawn_from_all_without_a_referee() -> None:
    work = Server(long_ones_wrong)
    _, last = work.run(rounds=1, new=10, pick="random")
    assert not work.given("judge.scores")
    assert {*work.given("lion.hard")} == {*work.given("lion.easy")} == {*SEEDS}
    kinds = [row["provenance"]["made"]["template"] for row in last.rows]
    assert Counter(kinds) == {"lion.hard": 5, "lion.easy": 5}


def test_hard_alone_makes_as_many() -> None:
    _, last = Server(long_ones_wrong).run(rounds=1, new=6, pick="hard")
    kinds = [row["provenance"]["made"]["template"] for row in last.rows]
    assert Counter(kinds) == {"lion.hard": 6}


def test_conversations_stay_conversations() -> None:
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "1+2+3="}]

    class Talking(Server):
        @property
        def rows(self) -> list[Any]:
            return [{"id": "s", "messages": turns}]

        def write(self, *args: Any, **told: Any) -> list[Any]:
            return []

    last = Talking(long_ones_wrong).run(rounds=1, new=2)[-1]
    assert last.rows
    for row in last.rows:
        system, user = row["messages"]
        assert system == turns[0]
        assert QUESTION.fullmatch(user["content"])


@pytest.mark.parametrize("pick", ["hard-easy", "hard", "random"])
def test_no_more_is_asked_than_was_said(pick: Any) -> None:
    work: Any = Server(long_ones_wrong)
    work.run(rounds=3, new=7, pick=pick)
    lion = Lion(rounds=3, new=7, pick=pick)
    assert 0 < len(work.asked) <= lion.questions(work)


def test_too_few_steps_are_refused() -> None:
    with pytest.raises(Failure, match=r"train\.steps: 3 steps are too few for 4 lessons"):
        Server(long_ones_wrong, steps=3).run(rounds=3)
