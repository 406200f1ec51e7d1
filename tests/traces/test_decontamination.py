"""The detector against brute force, by hand, and on rewritten questions of GSM8K."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from benchmarks.rewriting import number_words, proper, punctuation, rewrites
from stillroom.data.rows import read_rows
from stillroom.failures import Failure
from stillroom.traces.decontamination import GENRE, Detector, Rule, decontaminated
from stillroom.traces.words import grams, words

QUESTION = (
    "Janet's ducks lay 16 eggs per day. She eats three for breakfast every morning. Her friend "
    "Tom buys the remainder at $2 per egg. How much does Janet make every day?"
)
OTHERS = [
    "A robe takes 2 bolts of blue fiber and half that much white fiber. How many bolts in total?",
    "Carla is downloading a 200 GB file. She can download 2 GB each minute. How long does it take?",
]
FOUND = {
    "the same": QUESTION,
    "case": QUESTION.upper(),
    "marks": punctuation(QUESTION, random.Random(0)),
    "numbers": QUESTION.replace("16", "sixteen").replace("three", "3").replace("$2", "two dollars"),
    "names": QUESTION.replace("Janet", "Amara").replace("Tom", "Wei"),
    "order": "Her friend Tom buys the remainder at $2 per egg. How much does Janet make every day? "
    "She eats three for breakfast every morning. Janet's ducks lay 16 eggs per day.",
    "one less": QUESTION.partition(". ")[2],
    "more around": f"Solve this problem step by step. {QUESTION} Write the answer as a number.",
}


@pytest.mark.parametrize("way", FOUND)
def test_a_rewritten_text_is_found(way):
    match = Detector([*OTHERS, QUESTION]).match(FOUND[way])
    assert match is not None
    assert (match.place, match.score >= Rule().threshold) == (2, True)


def test_another_problem_and_an_empty_text_are_not():
    detector = Detector([*OTHERS, QUESTION])
    assert detector.match("Tom has 16 apples and eats three. How many apples are left?") is None
    assert detector.match("") is None
    assert Detector([""]).match("") is None


def test_the_score_is_shared_grams_over_those_of_the_smaller_set():
    rule = Rule(n=2, least=1)
    detector = Detector(["a b c d e", "x y"], rule)
    assert detector.match("a b c q r s t").score == 2 / 4
    assert detector.match("c d z").score == 1 / 2
    assert Detector(["a b c d e"], Rule(n=2, least=2)).match("c d z") is None
    assert Detector(["x y"], Rule(n=2, least=5)).match("X, y!").score == 1


def test_what_many_texts_hold_counts_nowhere():
    many = [f"how many more {c}a are there {c}b {c}d {c}e" for c in "abcdefghijklmn"[: GENRE + 1]]
    rule = Rule(least=1, common=0.01)
    assert Detector(many, rule).match("how many more dogs") is None
    assert Detector(many[:-1], rule).match("how many more dogs") is not None


def test_the_index_gives_what_all_pairs_give():
    draw = random.Random(2)
    made = [
        " ".join(
            "abcdefghijkl"[int(12 * draw.random() ** 1.5)] for _ in range(draw.randrange(1, 20))
        )
        for _ in range(160)
    ]
    test, train, rule = made[:80], made[80:], Rule(n=2, least=2, common=0.15)
    sets = [grams(words(text), 2) for text in test]
    every = [gram for found in sets for gram in found]
    genre = {gram for gram in every if every.count(gram) > 12}
    assert genre
    detector, scored = Detector(test, rule), 0
    for text in train:
        own, scores = grams(words(text), 2) - genre, []
        for text_words, held in zip(map(words, test), sets, strict=True):
            both = len(own & (held - genre))
            same = text_words == words(text)
            scores.append(
                1.0 if same else both / min(len(own), len(held - genre)) if both >= 2 else 0.0
            )
        match = detector.match(text)
        assert (match.score if match else 0.0) == max(scores)
        if match:
            assert scores[match.place] == match.score
            scored += 1
    assert scored > 40


def test_rows_are_parted_with_the_set_and_the_text_named():
    rows = [{"prompt": QUESTION.lower(), "id": 7}, {"prompt": "Name three rivers.", "id": 8}]
    kept = decontaminated(rows, {"first": OTHERS, "second": [QUESTION]})
    assert [row["id"] for row in kept.rows] == [8]
    assert kept.counts == {"second": 1}
    assert "second, text 0: Janet's" in kept.dropped[0].why
    (step,) = kept.rows[0]["provenance"]["filtered"]
    assert (step["against"], step["score"]) == (["first", "second"], 0.0)


def test_the_threshold_itself_is_dropped():
    rows = [{"prompt": "a b c q r s t"}]
    for threshold, left in ((0.5, 0), (0.51, 1)):
        rule = Rule(n=2, least=1, threshold=threshold)
        assert len(decontaminated(rows, {"e": ["a b c d e"]}, rule).rows) == left


def test_what_is_out_of_range_is_refused():
    for told in ({"threshold": 0}, {"common": 2}, {"n": 0}, {"least": 0}):
        with pytest.raises(Failure, match=next(iter(told))):
            Rule(**told)
    with pytest.raises(Failure, match="without texts"):
        Detector([])


def test_the_rewrites_do_what_they_say():
    draw = random.Random(0)
    text = "Mr. Ito paid $1,200 and 25% on Monday. Ito has 1/2 of 0.5 left. Why did Ito pay?"
    ways = rewrites([text, "On Monday Ito and Mr. Bo met."])
    assert proper([text, "On Monday Ito and Mr. Bo met."]) == {"Ito", "Bo"}
    told = number_words(text, draw)
    assert "one thousand two hundred dollars" in told
    assert "twenty-five percent" in told
    assert "1/2 of 0.5" in told
    assert punctuation("It's 0.5, or 1/2?", draw) == "Its 0.5 or 1/2"
    swapped = ways["names swapped"](text, draw)
    assert "Ito" not in swapped
    assert "Monday" in swapped
    assert swapped.count(swapped.split()[1]) == 3
    moved = ways["sentences reordered"](text, draw)
    assert moved != text
    assert sorted(moved.split()) == sorted(text.split())
    assert len(ways["one sentence dropped"](text, draw).split(". ")) < len(text.split(". "))
    assert words(ways["case"](text, draw)) == words(text)


@pytest.mark.skipif(
    not os.environ.get("STILLROOM_DATA"), reason="STILLROOM_DATA is not set: it holds gsm8k/"
)
def test_rewritten_test_questions_are_found_and_other_problems_are_not():
    folder = Path(os.environ["STILLROOM_DATA"])
    files = ("gsm8k/test.jsonl", "teacher-rationales/svamp.gpt3-zero-shot-cot.jsonl")
    test, clean = ([row["question"] for row in read_rows(folder / name).rows] for name in files)
    detector, bound = Detector(test), Rule().threshold
    for name, rewrite in rewrites(test).items():
        copies = [rewrite(text, random.Random(f"7 {i}")) for i, text in enumerate(test[:300])]
        matches = [detector.match(text) for text in copies]
        hits = sum(m is not None and m.score >= bound for m in matches)
        assert hits >= (290 if name == "all of these" else 297), name
    alarms = sum((m := detector.match(text)) is not None and m.score >= bound for text in clean)
    assert alarms <= 10
