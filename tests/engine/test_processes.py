"""Two processes are one: the same samples, gradients and weights, and one that writes."""

import json
from pathlib import Path
from typing import Any

import launch
import pytest
from numerics import contract, note
from worlds import gap

from stillroom.engine import checkpoint

STEPS = {"kd": 6, "gkd": 8, "gad": 20, "gad_pooled": 10, "rkd": 6, "ps_kd": 12, "kid": 6}
STEPS |= {"minillm": 6, "taid": 6, "atkd": 6}
STEPS |= {"skd": 6}
STEPS |= {"distillm": 16}
STEPS |= {"self_evolution_kd": 6, "delta_kd": 6}
STEPS |= {"dpkd": 6, "ammd": 6}
STEPS |= {"preference": 6, "plad": 6}
SAMPLING = {"ammd", "distillm", "dpkd", "gkd", "gad", "gad_pooled", "minillm", "plad", "skd"}
EXACT = 1e-10
"""Float64: sums in another order. Adam makes more of a gradient that is zero but for rounding."""


def players(folder: Path) -> Any:
    return checkpoint.load(checkpoint.saved(folder / "checkpoints")[-1])["players"]


def lines(folder: Path, name: str) -> list[dict]:
    told = [json.loads(line) for line in (folder / name).read_text().splitlines()]
    return [{k: v for k, v in line.items() if not k.startswith("time/")} for line in told]


def both(tmp_path: Path, work: Any, *args: Any, **kwargs: Any) -> list[str]:
    """What two processes said, which must have ended well."""
    children = launch.together(2, tmp_path / "log", work, *args, **kwargs)
    codes, said = [child.wait() for child in children], [child.said() for child in children]
    assert codes == [0, 0], "\n".join(said)
    return said


@contract
@pytest.mark.slow
@pytest.mark.parametrize("name", STEPS)
def test_two_processes_train_the_weights_of_one(tmp_path, name):
    work, told = getattr(launch, name), {"steps": STEPS[name], "every": 4, "double": True}
    one, two = tmp_path / "one", tmp_path / "two"
    assert launch.alone(tmp_path / "log", work, one, **told).wait() == 0
    both(tmp_path, work, two, **told)
    start = checkpoint.load(checkpoint.saved(one / "checkpoints")[0])["players"]
    assert gap(players(one)["networks"]["student"], start["networks"]["student"]) > 1e-4
    note(name, "2 processes", gap(players(one), players(two)), EXACT)
    for ours, theirs in zip(lines(one, "metrics.jsonl"), lines(two, "metrics.jsonl"), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-9, abs=EXACT)
    results = [json.loads((folder / "result.json").read_text()) for folder in (one, two)]
    assert results[0]["tokens"]["generated"] == results[1]["tokens"]["generated"]
    assert (results[0]["tokens"]["generated"] > 0) == (name in SAMPLING)


@pytest.mark.slow
def test_only_the_first_process_writes(tmp_path):
    folders = [tmp_path / "first", tmp_path / "second"]
    both(tmp_path, launch.apart, launch.kd, folders, steps=4, every=2)
    assert (folders[0] / "report.html").exists()
    assert not folders[1].exists()


@pytest.mark.slow
def test_only_the_first_process_prints(tmp_path):
    words = ("run", "quickstart", "--tiny", "--out", tmp_path / "run", "train.steps=4")
    fewer = [f"arms.{arm}.train.steps=4" for arm in ("frozen-critic",)]
    first, second = both(tmp_path, launch.command, *words, *fewer)
    assert "report: " in first
    assert "validity" not in second
    assert "report" not in second


@pytest.mark.slow
def test_another_number_of_processes_is_refused(tmp_path):
    told = {"steps": 400, "every": 1}
    child = launch.alone(tmp_path / "alone", launch.ps_kd, tmp_path / "run", **told)
    launch.until_step(tmp_path / "run", 3, child)
    child.kill()
    two = launch.together(2, tmp_path / "log", launch.ps_kd, tmp_path / "run", **told)
    assert [child.wait() for child in two] == [1, 1]
    for child in two:
        assert "holds a run of 1 process and is taken up by 2" in child.said()


@pytest.mark.slow
def test_a_batch_that_two_processes_cannot_share_is_refused(tmp_path):
    two = launch.together(
        2, tmp_path / "log", launch.ps_kd, tmp_path / "run", steps=2, every=1, batch=7
    )
    assert [child.wait() for child in two] == [1, 1]
    assert "train.batch is 7" in two[0].said()
    assert "2 processes" in two[0].said()
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
