"""A trained pairwise scorer against length alone, and a judge's planted order bias found again."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoTokenizer

from benchmarks import fresh, models, write
from benchmarks.planted_judge import planted
from stillroom.data.text import Renderer
from stillroom.models import text
from stillroom.models.sources import resolved
from stillroom.traces.judge_prompts import Pair
from stillroom.traces.readers import LENGTH, Joined, States, TextFeatures
from stillroom.traces.scoring import fitted, misfit, parted, read, right, tuned

FILE = "instructions/alpaca-eval-805.alpaca-7b-vs-davinci.gpt4-preference.jsonl"
FOLDS, REPEATS, DRAWS = 10, 5, 10_000
LAYERS, TOKENS = 6, 96
"""Of Gemma 3 270M, and of an answer, that are read."""
PAGE = fresh.ROOT / "docs" / "traces" / "judge.md"
MARKS = "<!-- measured: python -m benchmarks.judging -->", "<!-- end of what was measured -->"


def main() -> None:
    """Measures both; ``--quick`` takes fewer repeats and writes no page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--states", action="store_true", help="also Gemma's states; half an hour")
    parser.add_argument("--seed", type=int, default=0, help="of the first repeat")
    told = parser.parse_args()
    pairs, winners = _data()
    repeats = range(told.seed, told.seed + (2 if told.quick else REPEATS))
    found = {
        "what": __doc__,
        "file": FILE,
        "scorer": scorers(pairs, winners, repeats, states=told.states),
        "planted": planted(pairs, winners),
    }
    place = fresh.ROOT / ("build" if told.quick else "docs") / "benchmarks" / "judging.json"
    write.json_file(place, found)
    print(tables := "\n".join(_tables(found)))
    if not told.quick:
        begin, end = MARKS
        before, _, rest = PAGE.read_text(encoding="utf-8").partition(begin)
        after = rest.partition(end)[2]
        PAGE.write_text(f"{before}{begin}\n\n{tables}\n\n{end}{after}", encoding="utf-8")


def _data() -> tuple[list[Pair], list[Any]]:
    folder = os.environ.get("STILLROOM_DATA")
    if folder is None:
        raise SystemExit(f"set STILLROOM_DATA to the folder that holds {FILE}")
    lines = (Path(folder) / FILE).read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    names = {1: "a", 2: "b", 0: "tie"}
    pairs = [Pair(row["instruction"], row["output_1"], row["output_2"]) for row in rows]
    return pairs, [names[row["preference"]] for row in rows]


def scorers(
    pairs: Sequence[Pair], winners: Sequence[str], repeats: Sequence[int], *, states: bool
) -> dict[str, Any]:
    """Held-out accuracy and misfit by scorer, and their paired differences from length alone."""
    told = [(p, w) for p, w in zip(pairs, winners, strict=True) if w != "tie"]
    kept = [pair for pair, _ in told]
    signs = torch.tensor([1 if winner == "a" else -1 for _, winner in told])
    words = torch.tensor([[len(p.a.split()), len(p.b.split())] for p in kept]).double()
    longer = right(words[:, 0] - words[:, 1], signs)
    arms: dict[str, Any] = {"length, trained": LENGTH, "text features": TextFeatures()}
    if states:
        arms["text features and states"] = Joined(TextFeatures(), _states())
    found = {"longer wins": {"right": longer, "misfit": None}}
    for name, reader in arms.items():
        a, b = read(kept, reader)
        gaps = [_held_out(a, b, signs, [p.said for p in kept], seed) for seed in repeats]
        found[name] = {
            "right": torch.stack([right(g, signs) for g in gaps]).mean(0),
            "misfit": torch.stack([misfit(g, signs) for g in gaps]).mean(0),
        }
        print(f"  {name}: {float(found[name]['right'].mean()):.4f}", flush=True)
    base = found["length, trained"]
    draws = torch.randint(
        len(signs), (DRAWS, len(signs)), generator=torch.Generator().manual_seed(0)
    )
    sides = signs[draws]
    rows = []
    for name, one in found.items():
        gain = None if name in ("longer wins", "length, trained") else one["right"] - base["right"]
        rows.append(
            {
                "scorer": name,
                "accuracy": _interval(one["right"], draws),
                "balanced": _balanced(one["right"], signs, draws, sides),
                "misfit": None if one["misfit"] is None else _interval(one["misfit"], draws),
                "gain": None if gain is None else _interval(gain, draws),
                "balanced_gain": None if gain is None else _balanced(gain, signs, draws, sides),
                "misfit_gain": None
                if gain is None
                else _interval(one["misfit"] - base["misfit"], draws),
            }
        )
    about = {"pairs": len(kept), "first_won": int((signs > 0).sum()), "folds": FOLDS}
    return {**about, "seeds": list(repeats), "draws": DRAWS, "rows": rows}


def _held_out(a: Tensor, b: Tensor, signs: Tensor, names: Sequence[str], seed: int) -> Tensor:
    """[n] gaps of each pair by the scorer of the folds without it, the ridge tuned in those."""
    fold = parted(names, FOLDS, seed)
    gaps = torch.zeros(len(signs), dtype=torch.float64)
    for k in range(FOLDS):
        out = fold == k
        left = [name for name, gone in zip(names, out.tolist(), strict=True) if not gone]
        l2 = tuned(a[~out], b[~out], signs[~out], left, seed=seed)
        weight, _ = fitted(a[~out], b[~out], signs[~out], l2)
        gaps[out] = (a[out] - b[out]) @ weight
    return gaps


def _states() -> States:
    folder = resolved(models.PACKAGE)
    model = text.load(folder)
    renderer = Renderer(AutoTokenizer.from_pretrained(folder), model.stop_ids)
    return States(model, renderer, models.PACKAGE, layers=LAYERS, tokens=TOKENS)


def _interval(values: Tensor, draws: Tensor) -> dict[str, float]:
    """The mean over pairs, and its 95 % percentile interval over bootstrap draws of pairs."""
    return _told(float(values.mean()), values[draws].mean(1))


def _balanced(values: Tensor, signs: Tensor, draws: Tensor, sides: Tensor) -> dict[str, float]:
    """Likewise the mean of the means over pairs that the first and the second answer won."""

    def mean(v: Tensor, s: Tensor) -> Tensor:
        first = (s > 0).double()
        won = (v * first).sum(-1) / first.sum(-1)
        return (won + (v * (1 - first)).sum(-1) / (1 - first).sum(-1)) / 2

    return _told(float(mean(values, signs)), mean(values[draws], sides))


def _told(value: float, drawn: Tensor) -> dict[str, float]:
    low, high = torch.quantile(drawn, torch.tensor([0.025, 0.975], dtype=drawn.dtype)).tolist()
    return {"value": value, "low": low, "high": high}


def _tables(found: Mapping[str, Any]) -> Iterator[str]:
    told = found["scorer"]
    yield (
        f"{told['pairs']} pairs, {told['folds']} folds, {len(told['seeds'])} partitions (seeds "
        f"{told['seeds'][0]} to {told['seeds'][-1]}); {told['first_won']} were won by the first "
        "model's answer, so that knowing the model alone would be right in "
        f"{told['first_won'] / told['pairs']:.3f} (balanced: 0.500).\n"
    )
    yield "| scorer | accuracy | balanced accuracy | nats a pair | accuracy, minus length's | balanced, minus length's |"  # noqa: E501
    yield "| --- | --- | --- | --- | --- | --- |"
    names = ("accuracy", "balanced", "misfit", "gain", "balanced_gain")
    for row in told["rows"]:
        yield f"| {row['scorer']} | {' | '.join(_cell(row[name]) for name in names)} |"
    yield "\n| blind A / B / unreadable | measured | planted | found (95 %) | n |"
    yield "| --- | --- | --- | --- | --- |"
    for case in found["planted"]:
        faults = " / ".join(f"{share:g}" for share in case["faults"].values())
        for name, expected in case["expected"].items():
            got = case[name]
            yield f"| {faults} | {name} | {expected:.3f} | {_cell(got)} | {got['n']} |"
        for name in ("right_one_order", "right_both"):
            yield f"| {faults} | {name} | | {_cell(case[name])} | {case[name]['n']} |"


def _cell(told: Mapping[str, float] | None) -> str:
    return "" if told is None else "{value:.3f} ({low:.3f} to {high:.3f})".format(**told)


if __name__ == "__main__":
    main()
