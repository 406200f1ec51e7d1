"""A run that was killed goes on as if nothing had happened."""

import json
import random
import shutil
from pathlib import Path

import launch
import pytest
import torch
from stillroom.core import Failure
from stillroom.engine import checkpoint
from torch import Tensor

SIZES = {"gad": (30, 3), "gkd": (40, 3), "ps_kd": (160, 5)}
"""Steps, and steps between checkpoints. 30 steps of GAD: 6 imitate, 6 with critic, 6 alone, 12."""
TIMES = ("seconds", "cpu_seconds")


def lines(folder: Path, name: str) -> list[dict]:
    file = folder / name
    told = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    return [{k: v for k, v in line.items() if not k.startswith("time/")} for line in told]


def final(folder: Path) -> dict:
    """What the last checkpoint holds, but for the time that was spent."""
    return {k: v for k, v in checkpoint.load(checkpoint.saved(folder / "checkpoints")[-1]).items()
            if k != "spent"}  # fmt: skip


def tensors(tree, path=()) -> dict[tuple, Tensor]:
    if isinstance(tree, Tensor):
        return {path: tree}
    inner = tree.items() if isinstance(tree, dict) else enumerate(tree)
    return {
        found: tensor
        for key, value in inner
        if isinstance(value, dict | list | Tensor)
        for found, tensor in tensors(value, (*path, key)).items()
    }


def scalars(tree):
    if isinstance(tree, dict):
        return {k: scalars(v) for k, v in tree.items() if not isinstance(v, Tensor)}
    return [scalars(v) for v in tree] if isinstance(tree, list) else tree


def assert_same_run(one: Path, other: Path) -> None:
    ours, theirs = tensors(final(one)), tensors(final(other))
    assert ours.keys() == theirs.keys()
    assert [k for k in ours if not torch.equal(ours[k], theirs[k])] == []
    assert scalars(final(one)) == scalars(final(other))
    for name in ("metrics.jsonl", "samples.jsonl"):
        assert lines(one, name) == lines(other, name)
    results = [json.loads((f / "result.json").read_text()) for f in (one, other)]
    numbers = [{k: v for k, v in r.items() if k not in TIMES} for r in results]
    assert numbers[0] == numbers[1]
    weights = [(f / "student" / "model.safetensors").read_bytes() for f in (one, other)]
    assert weights[0] == weights[1]


@pytest.mark.slow
@pytest.mark.parametrize("name", SIZES)
def test_three_kills_leave_no_trace(tmp_path, name):
    work, (steps, every) = getattr(launch, name), SIZES[name]
    told = {"steps": steps, "every": every}
    assert launch.alone(tmp_path / "log", work, tmp_path / "unbroken", **told).wait() == 0
    broken = tmp_path / "broken"
    moments = sorted(random.sample(range(1, steps - 3), 3))
    for moment in moments:
        child = launch.alone(tmp_path / "log", work, broken, **told)
        launch.until_step(broken, moment, child)
        child.kill()
        assert child.process.exitcode == -9, f"not killed after step {moment} of {moments}"
        assert not (broken / "result.json").exists()
    assert launch.alone(tmp_path / "log", work, broken, **told).wait() == 0
    kept = {"networks", "optimizers"} <= final(broken)["players"].keys()
    assert kept, "the comparison must see weights and optimisers"
    assert_same_run(tmp_path / "unbroken", broken)
