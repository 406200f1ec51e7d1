"""The quiz: whose questions are whose, letters that tell nothing, and who is right of what."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from stillroom.config.build import build
from stillroom.config.recipe import make
from stillroom.core import Failure, Signals
from stillroom.data.quiz import Quiz
from stillroom.data.text import Renderer, TextData
from stillroom.evaluation import quiz
from stillroom.evaluation.suite import View

SMALL = Quiz(symbols=5, length=3, options=4, items=12, canaries=5, rows=40, held=20)


def asked(rows) -> set[str]:
    return {row["prompt"] for row in rows}


@pytest.mark.parametrize("shift", [0, 2, 5])
@pytest.mark.parametrize("seed", [0, 7])
def test_no_question_is_in_two_sets(seed: int, shift: int) -> None:
    world = replace(SMALL, shift=shift)
    parts = world.splits(seed)
    sets = [parts["train"], parts["validation"], world.benchmark, world.fresh]
    assert [len(rows) for rows in sets] == [40, 20, 12, 12]
    assert sum(len(asked(rows)) for rows in sets) == len(set().union(*map(asked, sets))) == 84
    assert parts["test"] == world.benchmark + world.fresh


def test_the_benchmark_is_the_same_for_every_seed_and_the_transfer_set_is_not() -> None:
    one, other = SMALL.splits(0), SMALL.splits(1)
    assert one["test"] == other["test"]
    assert one["train"] != other["train"]
    assert one == SMALL.splits(0)
    assert replace(SMALL, world_seed=1).benchmark != SMALL.benchmark


def test_teachers_learn_the_benchmark_or_its_questions_with_other_letters() -> None:
    known = replace(SMALL, learned="benchmark").splits(0)["train"]
    control = replace(SMALL, learned="redrawn").splits(0)["train"]
    assert known == SMALL.benchmark
    assert [r["prompt"] for r in control] == [r["prompt"] for r in known]
    assert control != known


def test_a_controls_letters_tell_nothing_of_the_benchmarks() -> None:
    """All pairs of letters over many worlds are equally frequent, within five standard errors."""
    pairs = torch.zeros(4, 4)
    for seed in range(200):
        world = replace(SMALL, world_seed=seed, learned="redrawn")
        for a, b in zip(world.benchmark, world.splits(0)["train"], strict=True):
            pairs["ABCD".index(a["completion"]), "ABCD".index(b["completion"])] += 1
    share = 1 / 16
    bound = 5 * math.sqrt(share * (1 - share) / pairs.sum())
    assert ((pairs / pairs.sum() - share).abs() < bound).all()


def test_transfer_questions_are_written_with_shifted_symbols() -> None:
    used = {w for row in replace(SMALL, shift=2).splits(0)["train"] for w in row["prompt"].split()}
    assert used == {"s2", "s3", "s4", "s5", "s6"}
    assert {w for row in SMALL.benchmark for w in row["prompt"].split()} <= {
        f"s{i}" for i in range(5)
    }
    spelled = [replace(SMALL, shift=s).tokenizer().get_vocab() for s in (0, 5)]
    assert spelled[0] == spelled[1]  # a teacher must have the student's


@pytest.mark.parametrize(
    ("told", "says"),
    [
        ({"symbols": 2}, "make 16 questions, which must be 2816"),
        ({"symbols": 40, "length": 5}, "make 102400000 questions"),
        ({"canaries": 257}, "canaries: the benchmark has 256 items, got 257"),
        ({"shift": 9}, "shift: there are 8 symbols, got 9"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(told, says) -> None:
    with pytest.raises(Failure, match=says):
        Quiz(**told)


class Knows(torch.nn.Module):
    """Gives each question's letter of a table; other tokens are likelier still, and no option."""

    signals = frozenset({"logits"})

    def __init__(self, renderer: Renderer, letters: dict[str, str]) -> None:
        super().__init__()
        self.nothing = torch.nn.Parameter(torch.zeros(1))
        self.renderer, self.letters = renderer, letters

    def forward(self, batch, *, grad: bool = False) -> Signals:
        width = batch.ids.shape[1]
        said = torch.zeros(len(batch.rows), len(self.renderer.tokenizer))
        said[:, -1] = 9.0
        for n, row in enumerate(batch.rows.tolist()):
            ids = batch.ids[row // width, : row % width + 1].tolist()
            if row % width + 1 == SMALL.length:
                letter = self.letters[self.renderer.decode(ids)]
                said[n, self.renderer.tokenizer.convert_tokens_to_ids(letter)] = 5.0
        return Signals(logits=said)


def view(letters: dict[str, str], rows=None, cut: int | None = 1) -> View:
    renderer = Renderer(SMALL.tokenizer(), (1,))
    examples = [renderer.example(row) for row in (rows or SMALL.splits(0)["test"])]
    if cut is not None:
        examples = [renderer.cut(e, cut) for e in examples]
    network = Knows(renderer, letters)
    data = TextData(examples, renderer.pad_id)
    return View(players={"student": network}, data=data, renderer=renderer, world=SMALL)


def wrong(letter: str) -> str:
    return "ABCD"[("ABCD".index(letter) + 1) % 4]


@pytest.mark.parametrize("cut", [1, None])  # None leaves the end of text as a second row
def test_shares_are_counted_by_question(cut: int | None) -> None:
    """Right: canaries 0, 1 and 2 of 5, item 7 of the benchmark, and 3 of the 12 fresh ones."""
    right = {*range(3), 7, *range(12, 15)}
    rows = SMALL.splits(0)["test"]
    letters = {
        row["prompt"]: row["completion"] if i in right else wrong(row["completion"])
        for i, row in enumerate(rows)
    }
    assert quiz.measure(view(letters, cut=cut)) == {
        "benchmark_accuracy": pytest.approx(4 / 12),
        "fresh_accuracy": pytest.approx(3 / 12),
        "canary_accuracy": pytest.approx(3 / 5),
        "canaries": 5,
        "options": 4,
    }


def test_canaries_that_the_split_lacks_are_not_counted() -> None:
    rows = [SMALL.benchmark[i] for i in (1, 3, 8)]
    letters = {row["prompt"]: row["completion"] for row in rows}
    told = quiz.measure(view(letters, rows))
    assert told["canaries"] == 2
    assert told["canary_accuracy"] == told["benchmark_accuracy"] == 1
    assert math.isnan(told["fresh_accuracy"])


def test_a_live_teacher_is_measured_alike_and_another_world_refused() -> None:
    letters = {row["prompt"]: row["completion"] for row in SMALL.splits(0)["test"]}
    one = view(letters)
    assert quiz.teacher(one) == {}
    one.teachers = {"teacher": one.student}
    assert quiz.teacher(one)["benchmark_accuracy"] == 1
    one.world = SimpleNamespace()
    with pytest.raises(Failure, match="world quiz alone"):
        quiz.measure(one)


def test_a_recipe_measures_it_on_the_test_split_alone() -> None:
    told = {
        "method": "seqkd",
        "student": {
            "lm": {"model_type": "windowed", "hidden_size": 16, "max_position_embeddings": 8}
        },
        "teacher": {"recorded": True},
        "data": {
            "world": {"name": "quiz", "items": 8, "canaries": 4, "rows": 16, "held": 8},
            "cut_completion_tokens": 1,
        },
        "train": {"steps": 1, "batch": 8, "lr": 0.01},
        "eval": {"every": None, "metrics": ["quiz"], "samples": 0},
    }
    suite = build(make(told, folder=Path())).suite
    assert suite is not None
    assert set(suite.columns("test")) == set(quiz.COLUMNS)
    assert suite.columns("validation") == {}
