"""Five float64 steps of every method, held against the numbers that were kept.

They say whether a change moved numbers, not whether the numbers are right. A change that means to
move them writes them anew with ``python -m pytest tests/contracts/test_golden.py --golden-write``
and says so under "Numbers changed" in its fragment.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from worlds import job, steps, world_for

from stillroom import catalogue

GOLDEN = Path(__file__).parent.parent / "golden"
COMMAND = "python -m pytest tests/contracts/test_golden.py --golden-write"
STEPS = 5
Numbers = dict[str, list[dict[str, float]]]


def numbers(name: str) -> Numbers:
    """Loss terms and gradient norms of each step in each world."""
    cls = catalogue.load(name)
    told: Numbers = {}
    for world in world_for(cls):
        logs = steps(job(cls(), replace(world, exact=True), steps=STEPS)).logs
        kept = [{k: v for k, v in log.items() if k.startswith(("loss/", "grad_"))} for log in logs]
        told[world.kind] = kept
    return told


def environment() -> dict[str, object]:
    return {"torch": torch.__version__, "threads": torch.get_num_threads(), "dtype": "float64"}


@pytest.mark.parametrize("name", list(catalogue.names("methods")))
def test_five_steps_give_the_numbers_that_were_kept(
    name: str, request: pytest.FixtureRequest
) -> None:
    file = GOLDEN / f"{name}.json"
    found = numbers(name)
    if request.config.getoption("--golden-write"):
        told = {"environment": environment(), "numbers": found}
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    if not file.is_file():
        pytest.fail(f"there is no {file}; if {name} is new, write it with:  {COMMAND} -k {name}")
    kept = json.loads(file.read_text(encoding="utf-8"))
    assert found.keys() == kept["numbers"].keys()
    moved = [
        f"{world}, step {step}: {differs(mine, theirs)}"
        for world, logs in found.items()
        for step, (mine, theirs) in enumerate(zip(logs, kept["numbers"][world], strict=True), 1)
        if differs(mine, theirs)
    ]
    assert not moved, (
        f"the numbers of {name} moved (kept: {kept['environment']}, here: {environment()}).\n"
        + "\n".join(moved)
        + f"\nIf that is meant:  {COMMAND} -k {name}"
    )


def differs(mine: dict[str, float], theirs: dict[str, float]) -> str:
    """What differs by more than 1e-9 of itself; below 1e-12 a number is rounding of a zero."""
    names = sorted({*mine, *theirs})
    return ", ".join(
        f"{name} was {theirs.get(name)}, is {mine.get(name)}"
        for name in names
        if mine.get(name) != pytest.approx(theirs.get(name), rel=1e-9, abs=1e-12)
    )


def test_no_numbers_are_kept_of_what_is_not_there() -> None:
    kept = {file.stem for file in GOLDEN.glob("*.json")}
    assert kept <= set(catalogue.names())
