"""What a step of each method on classes costs, as a multiple of plain distillation's.

Each method by its own recipe, beside ``kd`` with the same networks, data and batch (plain training
where there is no teacher): they take turns, so many steps each, in one process. Evaluation and the
training of teachers are not counted.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks import fresh, measure, write
from stillroom.catalogue import names
from stillroom.config.build import build
from stillroom.config.recipe import PACKAGED, Recipe, read
from stillroom.engine.settings import Eval
from stillroom.engine.training import train
from stillroom.methods.kd import KD
from stillroom.methods.seqkd import SeqKD

STEPS, ROUNDS = 100, 5


def main() -> None:
    """Measures all recipes on classes, or those that are named."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="*", default=None)
    parser.add_argument("--out", type=Path, default=fresh.ROOT / "docs" / "benchmarks")
    told = parser.parse_args()
    wanted = told.only or [
        name
        for name in names("methods")
        if (PACKAGED / f"{name}.yaml").is_file() and read(name).data.items is not None
    ]
    file, cases = told.out / "costs.json", {}
    if told.only and file.is_file():
        cases = {c["method"]: c for c in json.loads(file.read_text(encoding="utf-8"))["cases"]}
    for name in wanted:
        cases[name] = {"method": name, **fresh.call("costs.measured", name=name)}
        print(f"{name}: {cases[name]['ratio']['median']:.2f}")
        write.json_file(file, {"what": __doc__, "cases": list(cases.values())})


def measured(name: str) -> dict[str, Any]:
    """CPU seconds a step of one method and of kd, and their ratio, over rounds."""
    recipe = read(name)
    plain = KD(temperature=4.0) if recipe.method.needs.teacher else SeqKD()
    arms = {"own": recipe, "kd": replace(recipe, method=plain, teachers={})}
    if recipe.teachers:  # plain distillation hears one
        arms["kd"] = replace(arms["kd"], teacher=next(iter(recipe.teachers.values())))
    spent: dict[str, list[float]] = {arm: [] for arm in arms}
    for turn in range(ROUNDS + 1):
        for arm, told in arms.items():
            took = seconds(told)
            if turn:  # the first one warms up
                spent[arm].append(took / STEPS)
    return {
        "batch": recipe.train.batch,
        "steps": STEPS,
        "repeats": ROUNDS,
        "seconds": {arm: measure.spread(values) for arm, values in spent.items()},
        "ratio": measure.against(spent["kd"], spent["own"]),
        "environment": measure.environment(fresh.SAME_FOR_ALL),
    }


def seconds(recipe: Recipe) -> float:
    """CPU seconds of some steps of a recipe."""
    steered = STEPS if recipe.method.needs.metrics else None
    short = replace(
        recipe,
        arms={},
        train=replace(recipe.train, steps=STEPS, cpu_seconds=None),
        eval=Eval(every=steered, metrics=recipe.eval.metrics, samples=0),
    )
    with tempfile.TemporaryDirectory() as folder:
        return train(build(short), Path(folder)).info["cpu_seconds"]


if __name__ == "__main__":
    main()
