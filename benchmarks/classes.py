"""Methods on classes beside plain training and plain distillation, two pairs, one small grid.

Every method has nine points, picked by accuracy on validation with seeds of their own; then all run
with the same seeds. Runs are kept (``STILLROOM_CACHE``): the same command goes on where it was
broken off. About an hour of CPU.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from benchmarks import fresh, measure, write
from benchmarks.ranking import BASE, PLAIN, beside
from stillroom.config.cases import read_claim
from stillroom.evidence.trial import Trial

SPEC = Path(__file__).with_name("classes.yaml")
METRIC = "accuracy"


def main() -> None:
    """Runs one pair or both, writes JSON after each pair."""
    parser = argparse.ArgumentParser(description=__doc__)
    told = yaml.safe_load(SPEC.read_text(encoding="utf-8"))
    parser.add_argument("--pairs", nargs="*", default=list(told["pairs"]), choices=told["pairs"])
    parser.add_argument("--work", type=Path, default=fresh.ROOT / "runs" / "classes")
    parser.add_argument("--out", type=Path, default=fresh.ROOT / "docs" / "benchmarks")
    given = parser.parse_args()
    for pair in given.pairs:
        case = ran(told, pair, given.work)
        write.json_file(given.out / f"classes-{pair}.json", {"what": __doc__, "cases": [case]})


def ran(told: Mapping[str, Any], pair: str, work: Path) -> dict[str, Any]:
    """All methods on one pair: numbers by seed, what was picked, differences with intervals."""
    found: dict[str, dict[str, Any]] = {}
    for name in [BASE, *(n for n in told["methods"] if n not in (PLAIN, BASE))]:
        result = judged(told, pair, name, work)
        for arm in (PLAIN, name):
            numbers = result["arms"][arm]["numbers"]
            found.setdefault(
                arm,
                {
                    "by_seed": numbers[METRIC]["by_seed"],
                    "mean": numbers[METRIC]["mean"],
                    "class_nll": numbers["class_nll"]["mean"],
                    "tuned": result["arms"][arm]["tuned"],
                },
            )
    return {
        "pair": pair,
        **{key: told[key] for key in ("steps", "batch", "seeds", "tuning_seeds", "lr", "times")},
        "about": told["pairs"][pair]["about"],
        "methods": {name: {**one, **beside(found, name)} for name, one in found.items()},
        "environment": measure.environment(fresh.SAME_FOR_ALL),
    }


def judged(told: Mapping[str, Any], pair: str, name: str, work: Path) -> dict[str, Any]:
    """One method against plain training, by the machinery of claims."""
    file = work / f"{pair}-{name}.yaml"
    file.parent.mkdir(parents=True, exist_ok=True)
    text = yaml.safe_dump(claim(told, pair, name), sort_keys=False)
    file.write_text(text, encoding="utf-8")
    trial = Trial(case=read_claim(str(file)), seeds=told["seeds"], tell=print)
    return trial.judge()


def claim(told: Mapping[str, Any], pair: str, name: str) -> dict[str, Any]:
    """The method's question as a claim: is it better than plain training?"""
    ends, methods = told["pairs"][pair], told["methods"]
    taught = {"student": ends["teacher"], "data": ends["taught"], "steps": 600}
    recipe = {
        "method": {"name": "kd"},
        "student": ends["student"],
        "teacher": {"trained": {**taught, "train": {"lr": 0.003}}},
        "data": {"items": ends["items"]},
        "train": {
            "steps": told["steps"],
            "batch": told["batch"],
            "lr": {"peak": 0.01, "warmup": 20, "decay": "cosine", "end": 0.0},
            "optimizer": {"weight_decay": 0.01},
        },
        "eval": {"every": None, "metrics": ["accuracy"], "samples": 0},
        "run": {"threads": 1},
    }
    net = ends["student"]["net"]
    arms = {
        arm: {
            "method": methods[arm]["method"],
            "student": {"net": {**net, **methods[arm].get("net", {})}},
        }
        for arm in (name, PLAIN)
    }
    return {
        "method": methods[name]["method"]["name"],
        "paper": "a comparison of methods, no claim of a paper",
        "sentence": f"{name} is better than plain training.",
        "about": "Part of a bake-off.",
        "recipe": recipe,
        "arms": arms,
        "compare": [name, PLAIN],
        "metric": METRIC,
        "sign": "higher",
        "grid": [
            {"key": "train.lr.peak", "values": told["lr"]},
            {"key": {arm: methods[arm]["knob"] for arm in arms}, "times": told["times"]},
        ],
        "select": METRIC,
        "tuning_seeds": told["tuning_seeds"],
        "budget": {"steps": told["steps"]},
        "seeds": told["seeds"],
    }


if __name__ == "__main__":
    main()
