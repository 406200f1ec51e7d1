"""The majority of extracted answers, and rows that tell whether they agree with it."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stillroom.failures import Failure
from stillroom.traces.voting import majority, voted


def test_samples_without_an_answer_agree_with_nobody():
    found = majority([None, "4", None, "4", "5"])
    assert (found.answer, found.share, found.n, found.tied) == ("4", 2 / 5, 5, False)
    none = majority([None, None])
    assert (none.answer, none.share, none.n, none.tied) == (None, 0.0, 2, False)


def test_a_tie_has_no_majority_unless_the_first_is_taken():
    told = ["3", "7", "7", "3", None]
    assert majority(told).answer is None
    assert majority(told).tied
    assert majority(told).share == 2 / 5
    assert majority(told, "first").answer == "3"
    assert majority(told[::-1], "first").answer == "3"
    assert majority(["7", *told], "first").answer == "7"


@given(st.lists(st.sampled_from(["a", "b", "c", None]), max_size=9), st.randoms())
def test_the_order_of_samples_changes_no_majority(told, draw):
    mixed = list(told)
    draw.shuffle(mixed)
    assert majority(mixed) == majority(told)
    counts = Counter(answer for answer in told if answer)
    best = [k for k in counts if counts[k] == max(counts.values())]
    assert majority(told).answer == (best[0] if len(best) == 1 else None)


def test_rows_of_one_question_vote_together_wherever_they_stand():
    rows = [
        {"prompt": "p", "completion": "so 4", "provenance": {"asked": {"copy": 0}}},
        {"prompt": "q", "completion": "9"},
        {"prompt": "p", "completion": "is 4"},
        {"prompt": "p", "completion": "is 5"},
        {"messages": [{"role": "user", "content": "p"}], "completion": "is 5"},
        {"id": 3, "prompt": "p", "completion": "8"},
        {"id": 3, "prompt": "in other words", "completion": "8"},
    ]
    found = voted(rows, lambda row: row["completion"].split()[-1])
    votes = [row["provenance"]["vote"] for row in found]
    assert [vote["answer"] for vote in votes] == ["4", "9", "4", "4", "5", "8", "8"]
    assert [vote["n"] for vote in votes] == [3, 1, 3, 3, 1, 2, 2]
    assert [vote["agrees"] for vote in votes] == [True, True, True, False, True, True, True]
    assert votes[0]["share"] == pytest.approx(2 / 3)
    assert found[0]["provenance"]["asked"] == {"copy": 0}
    assert "vote" not in rows[0]["provenance"]


def test_without_a_majority_nobody_agrees_or_disagrees():
    rows = [{"prompt": "p"}] * 3
    assert [r["provenance"]["vote"]["agrees"] for r in voted(rows, ["1", "2", None])] == [None] * 3
    agree = [r["provenance"]["vote"]["agrees"] for r in voted(rows, ["1", "2", None], "first")]
    assert agree == [True, False, False]


def test_answers_must_be_one_a_row():
    with pytest.raises(Failure, match="1 rows, but 2 answers"):
        voted([{"prompt": "p"}], ["1", "2"])
