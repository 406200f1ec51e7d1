"""``stillroom judge``: both orders through a store; numbers of a judge with known faults."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from servers import Server
from speakers import Canned

from stillroom.cli import main

pytest.importorskip("httpx2", reason="the extra 'api' is not installed")
pytestmark = pytest.mark.extra("api")

BIAS, UNREAD, PAIRS = 0.3, 0.08, 250


def draw(what: str, prompt: str) -> float:
    told = hashlib.sha256(f"{what}|{prompt}".encode()).digest()
    return int.from_bytes(told[:6], "big") / 2**48


def shown(prompt: str) -> tuple[str, str]:
    parts = [prompt.partition(f"<answer_{x}>\n")[2].partition("\n</answer")[0] for x in "AB"]
    return parts[0], parts[1]


def worth(answer: str) -> int:
    return int(answer.split()[-1])


def biased(prompt: str) -> str:
    """Knows the worth, but names the first place blindly at 30 % of prompts, and mumbles at 8 %."""
    if draw("unread", prompt) < UNREAD:
        return "A and B have their merits."
    first, second = shown(prompt)
    if draw("blind", prompt) < BIAS:
        return "Verdict: A"
    return "Verdict: A" if worth(first) > worth(second) else "Verdict: B"


def scored(prompt: str) -> str:
    """The first place gets a point too much."""
    first, second = shown(prompt)
    return f"As I see it\nScores: {worth(first) + 1}, {worth(second)}"


def rows(count: int) -> list[dict[str, Any]]:
    return [
        {"prompt": f"q{i}", "completion": f"this is {3 + i % 2}", "other": f"that is {4 - i % 2}"}
        for i in range(count)
    ]


@pytest.fixture
def tell(monkeypatch, capsys, tmp_path):
    """Gives words to ``stillroom judge``; returns its exit code, output and errors."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OPENAI_API_KEY", "none")

    def told(url: str, *words: str, of: Any = None) -> tuple[int, str, str]:
        lines = [json.dumps(row) + "\n" for row in (rows(6) if of is None else of)]
        Path("rows.jsonl").write_text("".join(lines), encoding="utf-8")
        places = ["--store", "store", "--out", "out.jsonl"]
        given = ["--teacher", "openai:canned", "--base-url", url, *places]
        monkeypatch.setattr(sys, "argv", ["stillroom", "judge", "rows.jsonl", *given, *words])
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out, err

    return told


def lines() -> list[dict[str, Any]]:
    text = Path("out.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def numbers() -> dict[str, Any]:
    return json.loads(Path("out.jsonl.judged.json").read_text(encoding="utf-8"))


def test_planted_order_bias_and_failures_are_found_and_both_orders_mend_the_verdicts(tell):
    with Server(Canned(biased)) as server:
        code, out, err = tell(server.url, "--max-tokens", "32", of=rows(PAIRS))
    assert code == 0
    assert f"{2 * PAIRS} to ask: about" in err
    found = numbers()
    # exactly what fell on these prompts, and within reach of what was planted
    prompts = list(server.asked)
    unread = [p for p in prompts if draw("unread", p) < UNREAD]
    assert found["parse_failures"]["value"] == len(unread) / (2 * PAIRS)
    expected = {"order_bias": BIAS, "first_rate": (1 + BIAS) / 2, "consistency": 1 - BIAS}
    for name, value in {**expected, "parse_failures": UNREAD}.items():
        told = found[name]
        # one draw, so 3.2 deviations; how often the interval itself holds is tested elsewhere
        reach = 1.6 * (told["high"] - told["low"]) / 2
        assert abs(told["value"] - value) < reach, (name, told)
        assert name in out
    assert found["order_bias"]["low"] > 0.2
    assert found["parse_failures"]["n"] == 2 * PAIRS
    judged = [row["provenance"]["judged"] for row in lines()]
    wrong = 0
    for i, one in enumerate(judged):
        better = "ab"[(3 + i % 2) < (4 - i % 2)]
        if one["winner"] in ("a", "b"):
            assert one["winner"] == better
        wrong += one["orders"][0] not in (better, None)
        assert one["inconsistent"] == (one["winner"] == "tie")
    assert wrong > 10  # which one order alone would have told


def test_scores_are_averaged_over_both_orders_so_that_the_bonus_of_a_place_goes(tell):
    with Server(Canned(scored)) as server:
        code, out, _ = tell(server.url, "--kind", "scores", of=rows(4))
    assert code == 0
    judged = [row["provenance"]["judged"] for row in lines()]
    assert [one["gap"] for one in judged] == [-1.0, 1.0, -1.0, 1.0]
    # a point more for the better one and one for its place; level where the worse one has it
    assert {one["winner"] for one in judged} == {"tie"}
    assert numbers()["gap"] == {"mean": 0.0, "n": 4}
    assert "gap" in out


def test_nothing_is_asked_twice_and_swapped_columns_flip_every_verdict(tell):
    with Server(Canned(biased)) as server:
        tell(server.url, of=rows(40))
        there = [row["provenance"]["judged"]["winner"] for row in lines()]
        asked = sum(server.asked.values())
        assert asked == 80
        code, _, _ = tell(server.url, "--answer", "other", "--other", "completion", of=rows(40))
        assert code == 0
        assert sum(server.asked.values()) == asked
    flip = {"a": "b", "b": "a", "tie": "tie", None: None}
    back = [row["provenance"]["judged"]["winner"] for row in lines()]
    assert back == [flip[winner] for winner in there]
    assert {"a", "b", "tie"} <= set(there)


def test_identical_answers_ask_nobody_and_columns_and_provenance_stay(tell):
    same = [{"prompt": "q", "completion": "x 1", "other": "x 1", "more": [1],
             "provenance": {"verified": {"right": True}}}]  # fmt: skip
    with Server(Canned(biased)) as server:
        code, _, _ = tell(server.url, of=same)
        assert not server.asked
    assert code == 0
    (row,) = lines()
    assert row["more"] == [1]
    assert row["provenance"]["verified"] == {"right": True}
    told = row["provenance"]["judged"]
    assert (told["winner"], told["asked"], told["teacher"]) == ("tie", False, "canned")
    assert told["template"] == "judge.verdict.jinja"


def test_a_budget_stops_and_the_rest_has_no_verdict_yet(tell):
    with Server(Canned(biased)) as server:
        words = ["--concurrency", "1", "--max-tokens", "16"]
        code, _, err = tell(server.url, *words, "--budget-tokens", "1500")
        assert code == 2
        assert "the same command with a larger budget goes on" in err
        first = sum(server.asked.values())
        assert 0 < first < 12
        left = [row["provenance"]["judged"] for row in lines()]
        assert left[-1]["missing"] == 2
        assert left[-1]["failed"] == 0
        code, _, _ = tell(server.url, *words, "--budget-tokens", "100000")
        assert code == 0
        assert sum(server.asked.values()) == 12
    assert all(not row["provenance"]["judged"]["missing"] for row in lines())


def test_a_reply_that_was_cut_is_a_failure_to_parse(tell):
    with Server(Canned(lambda prompt: "Verdict: A\nand more words than there is room")) as server:
        code, _, err = tell(server.url, "--max-tokens", "2")
    assert code == 2
    assert "no pair has a verdict" in err
    assert not Path("out.jsonl").exists()
    assert numbers()["parse_failures"]["value"] == 1.0


def test_an_own_template_is_what_is_asked(tell):
    own = "Q {{ question }} one {{ first }} two {{ second }}"
    with Server(Canned(lambda prompt: "[[A]]" if prompt.endswith("3") else "[[B]]")) as server:
        Path("own.jinja").write_text(own, encoding="utf-8")
        code, _, _ = tell(server.url, "--template", "own.jinja", of=rows(1))
        assert sorted(server.asked) == [
            "Q q0 one that is 4 two this is 3", "Q q0 one this is 3 two that is 4",
        ]  # fmt: skip
    assert code == 0
    assert lines()[0]["provenance"]["judged"]["winner"] == "b"


def test_a_missing_column_is_named_before_anybody_is_asked(tell):
    with Server(Canned(biased)) as server:
        code, _, err = tell(server.url, "--other", "weak")
        assert not server.asked
    assert code == 2
    assert "rows.jsonl, line 1" in err
    assert "'weak'" in err
