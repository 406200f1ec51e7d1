"""Exact match: what counts as the same answer, and which part of it is compared."""

import pytest

from stillroom.core import Failure
from stillroom.data.matching import found, plain
from stillroom.data.text import Example, TextData
from stillroom.engine.settings import Eval
from stillroom.evaluation.exact_match import measure, ready
from stillroom.evaluation.suite import Suite, View

GSM = r"#### (.+)"


class Letters:
    def decode(self, ids):
        return "".join(map(chr, ids))


def view(own: list[str], told: list[str], answer: str | None = None) -> View:
    data = TextData([Example("?", text, (1,), (2,)) for text in told], 0)
    answers = [[ord(c) for c in text] for text in own]
    return View(players={}, data=data, renderer=Letters(), answer=answer, _answers=answers)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (" The  answer\n is 4. ", "the answer is 4"),
        ("\uff14\uff12", "42"),
        ("Stra\u00dfe", "STRASSE"),
        ("1,234,567", "1234567"),
    ],
)
def test_form_does_not_count(one, other):
    assert plain(one) == plain(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [("4.0", "4"), ("-4", "4"), ("a,b", "ab"), ("1,2", "12"), ("a b", "ab"), ("1,2345", "12345")],
)
def test_content_counts(one, other):
    assert plain(one) != plain(other)


def test_the_last_match_is_the_final_answer():
    assert found(GSM, "#### 3\nno: #### 1,005.") == "1005"
    assert found(r"\d+", "3 and 14") == "14"
    assert found(GSM, "none") is None
    assert found("(yes)|no", "no") == ""


def test_shares_of_whole_and_final_answers():
    told = ["so #### 4", "so #### 5", "so #### 6", "so #### 7"]
    own = ["So  #### 4", "well #### 5", "#### 8", "7"]
    assert measure(view(own, told)) == {"exact_match": 1 / 4}
    assert measure(view(own, told, GSM)) == {"exact_match": 1 / 4, "answer_match": 1 / 2}


def test_pattern_that_is_not_in_the_teachers_text_is_told_before_any_answer_is_sampled():
    with pytest.raises(Failure, match=r"eval\.answer: '#### \(\.\+\)'.*example 1.*'so 5'"):
        ready(view([], ["#### 4", "so 5"], GSM))
    assert ready(view([], ["so 5"])) is None


def test_suite_asks_every_evaluator_whether_it_is_ready_before_it_samples():
    class Student(dict):
        def __getattr__(self, name):
            raise AssertionError("the student was asked")

    data = TextData([Example("?", "so 5", (1,), (2,))], 0)
    suite = Suite(["exact_match"], {"test": data}, renderer=Letters(), answer=GSM)
    with pytest.raises(Failure, match="finds nothing"):
        suite.measure({}, "test")


def test_pattern_that_is_none():
    with pytest.raises(Failure, match=r"eval\.answer: '\(' is no pattern"):
        Eval(answer="(")


def test_a_numbers_name_is_told_which_evaluator_gives_it():
    with pytest.raises(Failure, match="no 'rouge_l'; 'overlap' gives this number"):
        Suite(["rouge_l"], {})
    with pytest.raises(Failure, match=r"no 'exact_mach'; did you mean 'exact_match'\?"):
        Suite(["exact_mach"], {})
