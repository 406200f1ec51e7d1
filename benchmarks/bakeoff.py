"""Which token-level method pays on real text: five arms at equal CPU time and at equal steps.

Gemma 3 270M teaches a cut and healed copy of itself on questions of GSM8K (``STILLROOM_DATA``).
Everything is made once a seed and kept in the folder ``--work``: the same command goes on where it
was broken off. About 40 minutes of CPU a seed.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from benchmarks import fresh, measure, write
from benchmarks.models import PACKAGE

RECIPE = Path(__file__).with_name("bakeoff.yaml")
LAYERS = [0, 1, 3, 5, 10, 11, 12, 13, 16]
"""What a greedy search by KL on GSM8K had left of 18; one on the rows that heal leaves 17, and
not 13."""
ROWS = {"human": 160, "heal": 160, "test": 24}
SIZE = {"tokens": 48, "heal": 40, "cpu_seconds": 100, "steps": 24}
NUMBERS = (
    *("kl", "reverse_kl", "agreement", "nll"),
    *("rouge_l", "repetition", "length", "steps", "cpu_seconds", "tokens_trained"),
    *("tokens_per_second", "tokens_generated"),
)
"""Of each arm, in the order of the page."""
ORDER = ("healed", "ce", "seqkd", "kd", "taid", "gkd")


def main() -> None:
    """Makes texts and student, runs all arms by both budgets, writes page and JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--work", type=Path, default=fresh.ROOT / "runs" / "bakeoff")
    parser.add_argument("--out", type=Path, default=fresh.ROOT / "docs" / "benchmarks")
    told = parser.parse_args()
    cases = []
    for seed in range(told.seeds):
        folder = told.work.resolve() / f"seed-{seed}"
        folder.mkdir(parents=True, exist_ok=True)
        texts(folder, seed)
        healed(folder, seed)
        for budget in ("cpu_seconds", "steps"):
            ran(folder, budget, seed)
            cases.append(result(folder / budget, budget, seed))
        _stillroom(folder, "compare", "cpu_seconds", "steps", "--out", "compare.html")
        write.json_file(told.out / "bakeoff.json", {"what": __doc__, "cases": cases})


def texts(folder: Path, seed: int) -> None:
    """Questions with the data's answers, and with the teacher's samples."""
    root = Path(os.environ["STILLROOM_DATA"]) / "gsm8k"
    train, test = (_lines(root / name) for name in ("train.jsonl", "test.jsonl"))
    start = seed * (ROWS["human"] + ROWS["heal"])
    picked = {
        "human": train[start : start + ROWS["human"]],
        "heal": train[start + ROWS["human"] : start + ROWS["human"] + ROWS["heal"]],
        "asked": test[seed * ROWS["test"] : (seed + 1) * ROWS["test"]],
    }
    for name, rows in picked.items():
        text = "".join(json.dumps(_row(row)) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")
    common = ["--teacher", PACKAGE, "--store", "store", "--temperature", "1"]
    common += ["--max-tokens", str(SIZE["tokens"]), "--keep-truncated", "--seed", str(seed)]
    common += ["--endpoint", "completions"]
    for asked, said in (("human", "teacher"), ("asked", "test")):
        if not (folder / f"{said}.jsonl").is_file():
            _stillroom(folder, "collect", f"{asked}.jsonl", *common, "--out", f"{said}.jsonl")


def _row(row: Mapping[str, str]) -> dict[str, str]:
    """Prompt and answer, without the calculator's marks, as in 24<<48/2=24>>."""
    answer = "".join(part.split(">>")[-1] for part in row["answer"].split("<<"))
    return {"prompt": f"Question: {row['question']}\nAnswer:", "completion": f" {answer}"}


def healed(folder: Path, seed: int) -> None:
    """The student that all arms start from: cut, then trained on the teacher's distributions."""
    recipe = _recipe()
    recipe |= {
        "student": {"cut": {"from": PACKAGE, "layers": LAYERS}, "vocab": "view"},
        "data": {"train": "heal.jsonl", "cut_completion_tokens": SIZE["tokens"]},
        "train": {**recipe["train"], "steps": SIZE["heal"]},
        "eval": {"every": None, "samples": 0},
    }
    del recipe["arms"]
    _run(folder, "healed", recipe, seed)


def ran(folder: Path, budget: str, seed: int) -> None:
    """All arms for so many CPU seconds, or so many steps."""
    recipe = _recipe()
    recipe["data"]["cut_completion_tokens"] = SIZE["tokens"]
    recipe["train"][budget] = SIZE[budget]
    _run(folder, budget, recipe, seed)


def result(run: Path, budget: str, seed: int) -> dict[str, Any]:
    """What the page needs of a run: a line an arm, that of the student before all included."""
    arms = {}
    for arm in sorted(run.glob("arms/*/result.json")):
        told = json.loads(arm.read_text(encoding="utf-8"))
        took = told["cpu_seconds"]
        counts = {f"tokens_{kind}": count for kind, count in told["tokens"].items()}
        spent = {"steps": told["steps"], "cpu_seconds": took}
        counts["tokens_per_second"] = counts["tokens_trained"] / took
        arms["healed"] = told["start"]
        arms[arm.parent.name] = {**told["test"], **spent, **counts}
    environment = measure.environment(fresh.SAME_FOR_ALL)
    return {
        "budget": budget,
        "size": SIZE[budget],
        "seed": seed,
        "numbers": NUMBERS,
        "sizes": {"tokens": SIZE["tokens"], "test": ROWS["test"]},
        "arms": {name: arms[name] for name in ORDER},
        "environment": environment,
    }


def _recipe() -> dict[str, Any]:
    return yaml.safe_load(RECIPE.read_text(encoding="utf-8"))


def _run(folder: Path, name: str, recipe: dict[str, Any], seed: int) -> None:
    file = folder / f"{name}.yaml"
    recipe["run"] = {**recipe["run"], "seed": seed}
    file.write_text(yaml.safe_dump(recipe, sort_keys=False), encoding="utf-8")
    _stillroom(folder, "run", file.name, "--out", name)


def _stillroom(folder: Path, *words: str) -> None:
    command: Sequence[str] = [sys.executable, "-m", "stillroom", *words]
    told = {**os.environ, **fresh.SAME_FOR_ALL}
    subprocess.run(command, cwd=folder, env=told, check=True)


def _lines(file: Path) -> list[dict[str, str]]:
    with file.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


if __name__ == "__main__":
    main()
