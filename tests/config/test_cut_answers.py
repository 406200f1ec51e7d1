"""Answers cut to a number of tokens: the end token counts where it comes within them."""

from pathlib import Path

import pytest

from stillroom.config.build import build
from stillroom.config.recipe import make
from stillroom.data.marked_orders import EOS, LENGTH, MarkedOrders
from stillroom.data.text import Renderer

WORLD = MarkedOrders()
RENDERER = Renderer(WORLD.tokenizer(), (EOS,))
ROW = {"prompt": "a2 a3 a2 a2 :", "completion": "m0.s2 w2 w3 m1.s2 w2 w2 m2.s2"}


@pytest.mark.parametrize(
    ("tokens", "answer", "ends"),
    [(1, "m0.s2", False), (7, ROW["completion"], False), (8, ROW["completion"], True)],
)
def test_a_cut_answer_keeps_its_first_tokens_and_no_end(tokens, answer, ends):
    whole = RENDERER.example(ROW)
    cut = RENDERER.cut(whole, tokens)
    assert cut.completion_ids == whole.completion_ids[:tokens]
    assert (cut.completion_ids[-1] == EOS) == ends
    assert (cut.prompt, cut.prompt_ids, cut.answer) == (whole.prompt, whole.prompt_ids, answer)
    assert (cut is whole) == ends


def recipe(**data):
    told = {
        "method": {"name": "gad", "group": 2},
        "student": {"lm": {"model_type": "windowed"}},
        "teacher": {"recorded": True},
        "data": {"world": {"name": "marked_orders", "prompts": 64}, **data},
        "train": {"steps": 2, "batch": 4},
        "eval": {"metrics": ["generation"]},
        "sampling": {"max_new_tokens": 5},
    }
    return make(told, folder=Path())


def test_all_splits_are_cut_and_no_row_is_lost():
    cut, whole = build(recipe(cut_completion_tokens=5)), build(recipe())
    for name in ("validation", "test"):
        rows = cut.suite.splits[name].examples
        assert [len(e.completion_ids) for e in rows] == [5] * len(whole.suite.splits[name].examples)
    assert cut.streams["train"].batch(range(4)).labels.tolist().count(EOS) == 0
    assert whole.streams["train"].batch(range(4)).labels.tolist().count(EOS) == 4
    told = cut.suite.teacher({"student": cut.student}, "test")
    assert (told["length"], told["eos_rate"]) == (5, 0)
    fits = build(recipe(cut_completion_tokens=LENGTH))
    told = fits.suite.teacher({"student": fits.student}, "test")
    assert (told["length"], told["eos_rate"]) == (LENGTH, 1)


def test_a_limit_on_length_is_one_on_the_text_that_is_kept():
    texts = recipe(cut_completion_tokens=5, max_completion_tokens=6)
    assert build(texts).ledger["left_out"] == {}
