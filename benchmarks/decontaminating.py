"""How many rewritten GSM8K test questions are found among training rows, at what false alarms."""

from __future__ import annotations

import json
import os
import random
import re
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks import measure, write
from benchmarks.rewriting import rewrites
from stillroom.failures import Failure
from stillroom.traces.decontamination import Detector, Rule
from stillroom.traces.shares import share

ALARMS = 2
"""False alarms among the first half of SVAMP that the threshold may have (of 500)."""
CHOOSING, REPORTING = 1, 1000
"""Seeds of the rewrites that were looked at while building, and of those that are told."""
SIZES = (2, 3, 4)
ROWS = 100_000
Score = Callable[[str], float]


def main() -> None:
    """Chooses thresholds on one part, tells the other, and writes ``decontaminating.json``."""
    told = measure.arguments(__doc__)
    test, train, svamp = _gsm8k("test"), _gsm8k("train"), _questions(SVAMP)
    if told.quick:
        test, train, svamp = test[:50], train[:100], svamp[:100]
    half = len(svamp) // 2
    arms: dict[str, tuple[Score, float]] = {}
    for n in SIZES:
        arms[f"{n}-grams"] = _chosen(_ours(test, Rule(n=n)), svamp[:half])
    arms["3-grams, words as they are"] = _chosen(plain(test, 3), svamp[:half])
    for n in (8, 13):
        arms[f"any {n}-gram"] = (shared(test, n), 1.0)
    made = rewrites([*test, *train])
    cases = []
    for name, (score, threshold) in arms.items():
        found = {
            way: _share(score, threshold, _copies(test, rewrite, REPORTING))
            for way, rewrite in made.items()
        }
        alarms = {
            "SVAMP, second half": _share(score, threshold, svamp[half:]),
            "GSM8K train": _share(score, threshold, train),
        }
        cases.append({"arm": name, "threshold": threshold, "found": found, "alarms": alarms})
        print(json.dumps(cases[-1]), flush=True)
    case = {"what": __doc__, "cases": cases, "seconds": _seconds(test, train)}
    write.json_file(told.out / "decontaminating.json", case)
    for line in table(cases):
        print(line)
    print(f"{case['seconds']['rows']} rows in {case['seconds']['cpu']:.1f} CPU seconds")


SVAMP = "teacher-rationales/svamp.gpt3-zero-shot-cot.jsonl"


def _gsm8k(split: str) -> list[str]:
    return _questions(f"gsm8k/{split}.jsonl")


def _questions(name: str) -> list[str]:
    if not (folder := os.environ.get("STILLROOM_DATA")):
        raise Failure("STILLROOM_DATA is not set: the folder that holds gsm8k/")
    with (Path(folder) / name).open(encoding="utf-8") as lines:
        return [json.loads(line)["question"] for line in lines]


def _copies(texts: Sequence[str], rewrite: Callable[..., str], seed: int) -> list[str]:
    """A stream of draws for each text, so that each copy can be made again alone."""
    return [rewrite(text, random.Random(f"{seed} {i}")) for i, text in enumerate(texts)]


def _ours(texts: Sequence[str], rule: Rule) -> Score:
    detector = Detector(texts, rule)

    def score(text: str) -> float:
        found = detector.match(text)
        return found.score if found else 0.0

    return score


def _chosen(score: Score, clean: Sequence[str]) -> tuple[Score, float]:
    """The smallest hundredth that at most ``ALARMS`` clean texts of 500 reach."""
    scores = [score(text) for text in clean]
    allowed = ALARMS * len(clean) / 500
    fits = (t / 100 for t in range(1, 101) if sum(s >= t / 100 for s in scores) <= allowed)
    return score, next(fits)


def _plain_grams(text: str, n: int) -> set[tuple[str, ...]]:
    said = re.findall(r"\w+", text.lower())
    return {tuple(said[i : i + n]) for i in range(len(said) - n + 1)}


def plain(texts: Sequence[str], n: int) -> Score:
    """The same score of lower-case words alone: numbers, apostrophes and all n-grams count."""
    sets = [_plain_grams(text, n) for text in texts]
    where: dict[tuple[str, ...], list[int]] = {}
    for i, held in enumerate(sets):
        for gram in held:
            where.setdefault(gram, []).append(i)

    def score(text: str) -> float:
        own, counts = _plain_grams(text, n), {}
        for gram in own:
            for i in where.get(gram, ()):
                counts[i] = counts.get(i, 0) + 1
        least = min(3, len(own))
        scores = (c / min(len(own), len(sets[i])) for i, c in counts.items() if c >= least)
        return max(scores, default=0.0)

    return score


def shared(texts: Sequence[str], n: int) -> Score:
    """1 where any run of ``n`` lower-case words stands in a text, the usual rule, else 0."""
    held = set().union(*(_plain_grams(text, n) for text in texts))
    return lambda text: float(not held.isdisjoint(_plain_grams(text, n)))


def _share(score: Score, threshold: float, texts: Iterable[str]) -> dict[str, Any]:
    told = share([score(text) >= threshold for text in texts])
    return {"value": told.value, "low": told.low, "high": told.high, "n": told.n}


def _seconds(test: Sequence[str], train: Sequence[str]) -> dict[str, float]:
    rows = [train[i % len(train)] for i in range(ROWS if len(test) > 50 else 100)]
    begun = time.process_time()
    score = _ours(test, Rule())
    for text in rows:
        score(text)
    return {"rows": len(rows), "cpu": time.process_time() - begun}


def table(cases: Sequence[dict[str, Any]]) -> list[str]:
    """Markdown: a line a way of rewriting, a column an arm."""
    heads = ["", *(f"{case['arm']}, {case['threshold']:g}" for case in cases)]
    lines = [heads, ["---"] * len(heads)]
    for part in ("found", "alarms"):
        for name in cases[0][part]:
            lines.append([name, *(_told(case[part][name]) for case in cases)])
    return [f"| {' | '.join(line)} |" for line in lines]


def _told(one: dict[str, float]) -> str:
    value, low, high = (f"{100 * one[k]:.1f}" for k in ("value", "low", "high"))
    return f"{value} ({low} to {high})"


if __name__ == "__main__":
    main()
