"""A judge's replies become judgements; its order bias and failures are what was planted."""

from __future__ import annotations

import hashlib
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stillroom.failures import Failure
from stillroom.traces.judge_prompts import Pair, Template, pairs_of, questions
from stillroom.traces.judgements import Judgement, Judgements
from stillroom.traces.judging import judged, parsed, with_judgements

PAIR = Pair("Why?", "because", "why not")


def one(kind, *replies, **how):
    return judged([PAIR], list(replies), kind, **how).each[0]


# ---- what is asked


@pytest.mark.parametrize("kind", ["verdict", "scores"])
def test_each_pair_is_asked_in_both_orders_and_identical_answers_not_at_all(kind):
    pairs = [PAIR, Pair("Who?", "me", "me"), Pair("Where?", "here", "there")]
    prompts = questions(pairs, Template(kind))
    assert len(prompts) == 4
    for k, (first, second) in enumerate(
        [("because", "why not"), ("why not", "because"), ("here", "there"), ("there", "here")]
    ):
        assert f"<answer_A>\n{first}\n" in prompts[k]
        assert f"<answer_B>\n{second}\n" in prompts[k]
        assert ("Why?" if k < 2 else "Where?") in prompts[k]


def test_a_conversation_is_told_with_its_roles_and_answers_are_no_templates(tmp_path):
    file = tmp_path / "own.jinja"
    file.write_text("{{ question }}|{{ first }}|{{ second }}")
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes?"}]
    made = Template("verdict", file)(turns, "{{ 1 + 1 }}", "<b>")
    assert made == "user: hi\n\nassistant: yes?|{{ 1 + 1 }}|<b>"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{{ question }} {{ first }}", "second"),
        ("{{ question }} {{ first }} {{ second }} {{ gold }}", "gold"),
        ("{{ question", "own.jinja"),
    ],
)
def test_a_template_that_leaves_out_an_answer_or_is_malformed_is_refused(tmp_path, text, says):
    file = tmp_path / "own.jinja"
    file.write_text(text)
    with pytest.raises(Failure, match=says):
        Template("verdict", file)


def test_a_template_cannot_reach_python(tmp_path):
    file = tmp_path / "own.jinja"
    file.write_text("{{ question.__class__.__mro__ }}{{ first }}{{ second }}")
    with pytest.raises(Failure, match="unsafe"):
        Template("verdict", file)("q", "a", "b")


def test_rows_lend_two_columns_and_say_which_is_missing():
    rows = [("r, line 1", {"prompt": "q", "completion": "x", "weak": "y"})]
    assert pairs_of(rows, ("completion", "weak")) == [Pair("q", "x", "y")]
    with pytest.raises(Failure, match=r"r, line 1.*'other'"):
        pairs_of(rows)


# ---- what is read off a reply


@pytest.mark.parametrize(
    ("reply", "mark"),
    [
        ("Verdict: A", 1.0), ("verdict - is\nVerdict: b.", -1.0), ("**Verdict:** tie", 0.0),
        ("Final verdict: **A**", 1.0), ("Verdict: Answer B", -1.0), ("so [[A]]", 1.0),
        ("My final verdict is: [[C]]", 0.0), ("B", -1.0), ("A\nbecause it is", 1.0),
        ("Verdict: A\nno, on reflection\nVerdict: B", -1.0),
        ("Verdict: A or B", None), ("A is good, B as well.", None), ("", None), (None, None),
        ("Verdict: neither", None), ("[[A]] for A, [[B]] for B: I cannot say", None),
        ("Reasons\nA\nB\n", None),
    ],
)  # fmt: skip
def test_verdicts(reply, mark):
    assert parsed(reply, "verdict") == mark


@pytest.mark.parametrize(
    ("reply", "mark"),
    [
        ("Scores: 7, 4", 3.0), ("Fine.\n**Scores: 6/10, 8/10**", -2.0), ("scores: A: 5, B: 5", 0.0),
        ("Scores: 7 and 4.5", 2.5), ("8 9\nThe first lacks ...", -1.0), ("Scores: 10, 1", 9.0),
        ("Scores: 7, -1", None), ("Scores: -1 -1", None), ("Scores: 0, 5", None),
        ("Scores: 5, 11", None), ("Scores: 7", None), ("Scores: 7, 4, 3", None),
        ("There are 3 4 of them", None), ("reasons\n3 4", None), ("", None), (None, None),
    ],
)  # fmt: skip
def test_scores(reply, mark):
    assert parsed(reply, "scores") == mark


# ---- judgements


@pytest.mark.parametrize(
    ("replies", "winner", "inconsistent"),
    [
        (("A", "B"), "a", False), (("B", "A"), "b", False), (("tie", "tie"), "tie", False),
        (("A", "A"), "tie", True), (("B", "B"), "tie", True), (("A", "tie"), "tie", True),
        (("A", "?"), None, False), (("?", "B"), None, False), (("?", "?"), None, False),
        (("A", None), None, False),
    ],
)  # fmt: skip
def test_the_winner_wins_in_both_orders(replies, winner, inconsistent):
    found = one("verdict", *replies)
    assert (found.winner, found.inconsistent, found.gap) == (winner, inconsistent, None)


def test_the_gap_is_the_mean_over_both_orders_and_a_failure_is_never_averaged_in():
    # a: 8 and 7, b: 5 and 6 -> (3 + 1) / 2
    found = one("scores", "Scores: 8, 5", "Scores: 6, 7")
    assert (found.gap, found.winner, found.orders) == (2.0, "a", ("a", "a"))
    disagree = one("scores", "Scores: 8, 5", "Scores: 7, 6")
    assert (disagree.gap, disagree.winner, disagree.inconsistent) == (1.0, "tie", True)
    failed = one("scores", "Scores: 8, 5", "no idea")
    assert (failed.gap, failed.winner, failed.failed, failed.missing) == (None, None, 1, 0)
    alone = one("scores", "Scores: 8, 5", "no idea", single_order=True)
    assert (alone.gap, alone.winner, alone.failed) == (3.0, "a", 1)
    other = one("scores", None, "Scores: 8, 5", single_order=True)
    assert (other.gap, other.winner, other.failed, other.missing) == (-3.0, "b", 0, 1)


def test_identical_answers_are_a_tie_without_asking():
    found = judged([Pair("q", "same", "same")], [], "scores")
    assert found.each == (Judgement("tie", 0.0, asked=False),)
    assert found.winners["identical"] == 1
    assert found.ties.n == found.parse_failures.n == 0


def test_replies_that_do_not_fit_the_questions_are_refused():
    with pytest.raises(Failure, match="ask 2 questions, but there are 1"):
        judged([PAIR], ["A"])


def says(prompt: str, kind: str) -> str:
    draw = int(hashlib.sha256(prompt.encode()).hexdigest(), 16)
    if draw % 11 == 0:
        return "who knows"
    if kind == "verdict":
        return ["Verdict: A", "Verdict: B", "Verdict: tie"][draw % 3]
    return f"Scores: {1 + draw % 10}, {1 + draw // 10 % 10}"


@given(
    st.lists(st.tuples(st.text(), st.text(), st.text()), max_size=8),
    st.sampled_from(["verdict", "scores"]),
    st.booleans(),
)
def test_swapping_a_and_b_flips_every_verdict_and_gap_exactly(told, kind, single):
    template = Template(kind)

    def by(pairs):
        replies = [says(prompt, kind) for prompt in questions(pairs, template)]
        return judged(pairs, replies, kind, single_order=single)

    pairs = [Pair(*row) for row in told]
    there, back = by(pairs), by([Pair(p.said, p.b, p.a) for p in pairs])
    flip = {"a": "b", "b": "a", "tie": "tie", None: None}
    for x, y in zip(there, back, strict=True):
        assert y.winner == flip[x.winner]
        assert y.gap == (None if x.gap is None else -x.gap)
        assert y.inconsistent == x.inconsistent
    # the bias is the judge's, not the names'
    assert there.order_bias == back.order_bias
    assert there.first_rate == back.first_rate
    assert there.parse_failures == back.parse_failures


# ---- numbers


def test_the_numbers_of_ten_pairs_counted_by_hand():
    replies = [
        *("A", "A"), *("A", "A"), *("A", "A"),  # the first place, three times
        *("B", "B"),  # the second
        *("A", "B"), *("B", "A"),  # a, b
        *("tie", "tie"), *("A", "tie"), *("?", "A"), *(None, "?"),
    ]  # fmt: skip
    pairs = [Pair(str(i), "x", "y") for i in range(10)]
    found = judged(pairs, replies)
    assert found.order_bias.value == pytest.approx((3 - 1) / 8)
    assert found.order_bias.n == 8
    # first: 6 + 0 + 1 + 1 + 1 (of the half tie) + 1 (of the half failed); second: 2 + 1 + 1
    assert found.first_rate.value == pytest.approx(10 / 14)
    assert (found.consistency.value, found.consistency.n) == (3 / 8, 8)
    assert (found.ties.value, found.ties.n) == (6 / 8, 8)
    assert (found.parse_failures.value, found.parse_failures.n) == (2 / 19, 19)
    assert found.winners == {"a": 1, "b": 1, "tie": 6, "identical": 0, "none": 2}


def test_nothing_asked_is_no_number():
    told = Judgements((), "verdict").told()
    assert told["order_bias"] == {"value": None, "n": 0, "low": None, "high": None}
    assert told["gap"] == {"mean": None, "n": 0}


@pytest.mark.parametrize(("p", "r", "u"), [(0.3, 0.0, 0.05), (0.0, 0.2, 0.1), (0.25, 0.1, 0.02)])
def test_planted_bias_and_failures_lie_in_their_intervals_as_often_as_they_should(p, r, u):
    draw = random.Random(7)
    runs, size = 300, 120
    expected = {"order_bias": p - r, "parse_failures": u, "first_rate": (1 + p - r) / 2,
                "consistency": 1 - p * (1 - r) - r * (1 - p)}  # fmt: skip
    hits = dict.fromkeys(expected, 0)
    means = dict.fromkeys(expected, 0.0)

    def reply(truth):
        if draw.random() < u:
            return "mumble"
        blind = draw.random()
        return "A" if blind < p else "B" if blind < p + r else truth

    for _ in range(runs):
        pairs = [Pair(str(i), "x", "y") for i in range(size)]
        truths = [draw.choice(["AB", "BA"]) for _ in pairs]
        found = judged(pairs, [reply(truth) for both in truths for truth in both])
        for name, value in expected.items():
            got = getattr(found, name)
            hits[name] += got.low <= value <= got.high
            means[name] += got.value / runs
    # 4 deviations of 300 draws at .95 are .05; first_rate's is said to be too wide, if wrong
    assert all(count / runs > 0.90 for count in hits.values()), hits
    for name in ("order_bias", "parse_failures", "consistency"):
        assert hits[name] / runs < 0.995, hits
    for name, value in expected.items():  # of order_bias: .65 / sqrt(120 * 300) = .0034
        assert means[name] == pytest.approx(value, abs=0.012)


# ---- rows


def test_rows_keep_what_stood_there_and_tell_the_judgement():
    rows = [{"prompt": "q", "x": 1, "provenance": {"asked": {"teacher": "t"}}}, {"prompt": "p"}]
    found = judged([PAIR, Pair("q", "s", "s")], ["A", "B"])
    made = with_judgements(rows, found, {"teacher": "judge"})
    assert made[0]["provenance"]["asked"] == {"teacher": "t"}
    assert made[0]["x"] == 1
    assert made[0]["provenance"]["judged"] == {
        "teacher": "judge", "kind": "verdict", "winner": "a", "gap": None, "orders": ["a", "a"],
        "inconsistent": False, "failed": 0, "missing": 0, "asked": True,
    }  # fmt: skip
    assert made[1]["provenance"]["judged"]["asked"] is False
    assert "judged" not in rows[0]["provenance"]
