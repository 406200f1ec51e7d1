"""The share of sampled answers that a verifier holds for right."""

from typing import Any

import pytest

from stillroom.core import Failure
from stillroom.data.text import Example, TextData
from stillroom.evaluation.suite import View
from stillroom.evaluation.verified import measure, ready
from stillroom.traces.verifying import Verify

NUMERIC = Verify(kind="numeric", column="final")


class Letters:
    pad_id = 0

    def decode(self, ids):
        return "".join(map(chr, ids))


def view(own: list[str], told: list[tuple[str, str | None]], verify: Any, copies: int = 1) -> View:
    data = TextData([Example("?", text, (1,), (2,), gold=gold) for text, gold in told], 0)
    answers = [[ord(c) for c in text] for text in own]
    renderer: Any = Letters()
    given: dict[str, Any] = {"renderer": renderer, "copies": copies, "verify": verify}
    return View(players={}, data=data, _answers=answers, **given)


def test_each_answer_is_held_against_the_gold_of_its_own_example():
    told = [("it is 9", "1,000"), ("it is 2", None)]
    own = ["so 1000", "so 9", "so $2.00", "2 or 3"]
    assert measure(view(own, told, NUMERIC, copies=2)) == {"verified": 0.5}
    assert measure(view(own[:1] + own[3:], told, NUMERIC)) == {"verified": 0.5}
    assert measure(view(["so 9", "3"], told, NUMERIC)) == {"verified": 0}


def test_what_nobody_can_tell_of_is_not_right():
    verify = Verify(kind="pattern", seconds=0.05)
    assert measure(view(["a" * 60 + "b", "aa"], [("", "(a|aa)+")] * 2, verify)) == {"verified": 0.5}


def test_what_is_missing_is_told_before_any_answer_is_sampled():
    with pytest.raises(Failure, match=r"give it the section verify"):
        ready(view([], [("2", "2")], None))
    with pytest.raises(Failure, match="example 1 has no gold answer: write it into its column"):
        ready(view([], [("2", None), ("none", None)], NUMERIC))
    with pytest.raises(Failure, match="example 0: the gold answer 'many' in 'final'"):
        ready(view([], [("2", "many")], NUMERIC))
    with pytest.raises(Failure, match="example 0 has no unit tests"):
        ready(view([], [("x = 1", None)], Verify(kind="python")))
    assert ready(view([], [("it is 2", None)], NUMERIC)) is None
