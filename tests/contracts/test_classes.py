"""What methods on classes must keep in float64, walking the files: nobody lists anything here."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import launch
import pytest
from numerics import contract, note
from worlds import every_world, gap, plain_sgd, steps

from stillroom import catalogue
from stillroom.engine import checkpoint
from stillroom.engine.record import Record

pytestmark = contract
CLOSE = 1e-9
WORLDS = {name: world for name, world in every_world() if world.kind == "classes"}
SPLIT = [name for name in WORLDS if not catalogue.load(name).needs.whole]


@pytest.mark.parametrize("name", SPLIT)
def test_one_batch_of_classes_equals_its_micro_batches(name: str) -> None:
    method, world = catalogue.load(name)(), WORLDS[name]
    exact = replace(world, exact=True, change=launch.weighed)
    whole = steps(plain_sgd(method, exact))
    assert gap(whole.states[0]["networks"]["student"], whole.final["student"]) > 1e-4
    worst = 0.0
    for budget in (5, 2, 1):
        split = steps(plain_sgd(method, exact, tokens_per_micro=budget))
        worst = max(worst, gap(whole.logs, split.logs), gap(whole.final, split.final))
    note(name, "micro-batches", worst, CLOSE)


@pytest.mark.slow
def test_two_processes_train_the_weights_of_one_on_classes(tmp_path: Path) -> None:
    names, one, two = list(WORLDS), tmp_path / "one", tmp_path / "two"
    children = [
        launch.alone(tmp_path / "log", launch.on_classes, one, names),
        *launch.together(2, tmp_path / "logs", launch.on_classes, two, names),
    ]
    codes = [child.wait(300) for child in children]
    assert codes == [0, 0, 0], "\n".join(child.said() for child in children)
    for name in names:
        gap_of_players = gap(players(one / name), players(two / name))
        told = [Record(folder / name).lines("metrics.jsonl") for folder in (one, two)]
        shown = [[{k: v for k, v in line.items() if "time/" not in k} for line in t] for t in told]
        note(name, "2 processes", max(gap_of_players, gap(*shown)), CLOSE)


def players(folder: Path) -> Any:
    return checkpoint.load(checkpoint.saved(folder / "checkpoints")[-1])["players"]["networks"]
