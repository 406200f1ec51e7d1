"""ROUGE and BLEU of answers, against values worked out by hand."""

import math
import sys

import pytest

from stillroom.core import Failure
from stillroom.data.text import Example, TextData
from stillroom.evaluation import overlap as evaluator
from stillroom.evaluation.overlap import overlap
from stillroom.evaluation.suite import View


@pytest.fixture(autouse=True)
def _installed(request):
    if "without" not in request.node.name:
        pytest.importorskip("torchmetrics", reason="the extra 'eval' is not installed")


pytestmark = pytest.mark.extra("eval")
SIX, SEVEN = "the cat sat on the mat", "the cat sat on the mat today"


def test_the_same_text_has_all_of_everything():
    assert overlap([SIX], [SIX]) == dict.fromkeys(evaluator.COLUMNS, 1.0)


def test_nothing_in_common_and_an_empty_answer_have_nothing():
    assert overlap(["a b c d"], ["e f g h"]) == dict.fromkeys(evaluator.COLUMNS, 0.0)
    assert overlap([""], ["e f g h"]) == dict.fromkeys(evaluator.COLUMNS, 0.0)


def test_one_word_of_six_differs():
    # 5 of 6 words; of 5 pairs "the cat", "on the", "the mat"; in order "the cat on the mat"
    told = overlap([SIX], ["the cat lay on the mat"])
    assert told["rouge_1"] == pytest.approx(5 / 6)
    assert told["rouge_2"] == pytest.approx(3 / 5)
    assert told["rouge_l"] == pytest.approx(5 / 6)
    assert told["bleu"] == 0.0  # no four words in a row are right


def test_order_counts_for_the_longest_run_and_not_for_words():
    told = overlap(["b a c"], ["a b c"])
    assert told["rouge_1"] == pytest.approx(1.0)
    assert told["rouge_2"] == 0.0
    assert told["rouge_l"] == pytest.approx(2 / 3)


def test_too_long_an_answer_loses_precision():
    # precisions 6/7, 5/6, 4/5, 3/4: their product is 3/7
    told = overlap([SEVEN], [SIX])
    assert told["bleu"] == pytest.approx((3 / 7) ** 0.25)
    assert told["rouge_1"] == pytest.approx(2 * 6 / 13)
    assert told["rouge_2"] == pytest.approx(2 * 5 / 11)


def test_too_short_an_answer_pays_for_brevity_alone():
    assert overlap([SIX], [SEVEN])["bleu"] == pytest.approx(math.exp(1 - 7 / 6))


def test_rouge_is_a_mean_over_answers_and_bleu_counts_them_together():
    told = overlap([SIX, "x"], [SIX, "y y"])
    assert told["rouge_1"] == pytest.approx(1 / 2)
    # right: 6 of 7 words, 5 of 5 pairs, 4 of 4, 3 of 3; 7 words where 8 were wanted
    assert told["bleu"] == pytest.approx((6 / 7) ** 0.25 * math.exp(1 - 8 / 7))


def test_words_are_letters_and_digits_of_any_script_without_case():
    told = overlap(["Привет, МИР! 42"], ["привет мир 42"])
    assert [told["rouge_1"], told["rouge_2"]] == [1.0, 1.0]
    assert overlap(["café"], ["cafe"])["rouge_1"] == 0.0


class Letters:
    def decode(self, ids):
        return "".join(map(chr, ids))


def view(own: list[str], told: list[str], **more) -> View:
    data = TextData([Example("?", text, (1,), (2,)) for text in told], 0)
    given = {"renderer": Letters(), "_answers": [[ord(c) for c in text] for text in own]}
    return View(players={}, data=data, **{**given, **more})


def test_the_students_answers_are_held_against_the_teachers():
    told = evaluator.measure(view([SEVEN], [SIX]))
    assert told == overlap([SEVEN], [SIX])
    assert set(told) == set(evaluator.COLUMNS)


def test_each_copy_is_held_against_the_answer_to_its_own_prompt():
    told = evaluator.measure(view([SIX, "x", SEVEN, "y"], [SIX, SEVEN], copies=2))
    assert told["rouge_1"] == pytest.approx(1 / 2)


def test_data_that_are_no_text():
    with pytest.raises(Failure, match="no text"):
        evaluator.measure(view(["x"], ["y"], renderer=None))


def test_without_torchmetrics_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchmetrics.functional.text", None)
    monkeypatch.setitem(sys.modules, "torchmetrics", None)
    with pytest.raises(Failure, match=r"ROUGE and BLEU.*pip install 'stillroom\[eval\]'"):
        evaluator.ready(view(["x"], ["y"]))
