"""A run that broke off goes on as if nothing had happened, or says why it cannot."""

import contextlib
import errno
import json
import os
import random
import resource
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import launch
import pytest
import worlds
import yaml
from torch import Tensor

from stillroom import catalogue
from stillroom.core import Failure
from stillroom.engine import checkpoint, training
from stillroom.engine.training import Job, train

SIZES = {"gad": (30, 3), "gkd": (40, 3), "ps_kd": (160, 5), "distillm": (40, 3)}
"""Steps, and steps between checkpoints. Of GAD's 30 steps 6 imitate, 6 more do so with the critic
beside, in 4 the critic learns alone, 14 are adversarial."""
TIMES = ("seconds", "cpu_seconds")


def lines(folder: Path, name: str) -> list[dict]:
    file = folder / name
    told = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    return [{k: v for k, v in line.items() if not k.startswith("time/")} for line in told]


def final(folder: Path) -> dict:
    """What the last checkpoint holds, but for the time that was spent."""
    state = checkpoint.load(checkpoint.saved(folder / "checkpoints")[-1])
    return {name: value for name, value in state.items() if name != "spent"}


def bits(tree: Any) -> Any:
    """A tree with the bytes of its tensors, so that ``==`` compares bit for bit."""
    if isinstance(tree, Tensor):
        return str(tree.dtype), tuple(tree.shape), tree.numpy().tobytes()
    if isinstance(tree, dict):
        return {k: bits(v) for k, v in tree.items()}
    return [bits(v) for v in tree] if isinstance(tree, list) else tree


def assert_same_run(one: Path, other: Path) -> None:
    ours, theirs = bits(final(one)), bits(final(other))
    assert [part for part in ours if ours[part] != theirs[part]] == []
    assert ours.keys() == theirs.keys()
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
    assert {"networks", "optimizers"} <= final(broken)["players"].keys()
    assert_same_run(tmp_path / "unbroken", broken)


class Stopped(Exception):
    """What a test throws into a run; nothing catches it."""


@pytest.fixture
def stop(monkeypatch):
    """``stop(folder, job, step)``: runs a job that breaks off when ``step`` steps are done."""
    taken = training.iterate

    def stopped(folder: Path, job: Job, step: int) -> None:
        def iterate(run: Any, batch: Any) -> Any:
            if run.step == step:
                raise Stopped
            return taken(run, batch)

        monkeypatch.setattr(training, "iterate", iterate)
        with pytest.raises(Stopped):
            train(job, folder)
        monkeypatch.setattr(training, "iterate", taken)

    return stopped


def job(**changes: Any) -> Job:
    told = {"steps": 6, "every": 2, "metrics": True, "select": "class_nll", **changes}
    given = worlds.job(catalogue.load("ps_kd")(), worlds.World(kind="classes"), **told)
    recipe = {"about": "first words", "train": {"steps": told["steps"], "lr": {"student": 0.05}}}
    return replace(given, recipe=recipe)


def test_a_run_that_was_broken_off_in_the_middle_of_a_save(tmp_path, monkeypatch):
    train(job(), tmp_path / "unbroken")
    whole = os.replace

    def broken(aside: Any, place: Any) -> None:
        if Path(place).name == "step-00000004":
            raise Stopped
        whole(aside, place)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", broken)
        with pytest.raises(Stopped):
            train(job(), tmp_path / "broken")
    assert (tmp_path / "broken" / "checkpoints" / ".writing" / "tensors.safetensors").exists()
    train(job(), tmp_path / "broken")
    assert_same_run(tmp_path / "unbroken", tmp_path / "broken")
    assert not (tmp_path / "broken" / "checkpoints" / ".writing").exists()


def test_a_run_broken_off_before_its_first_save_starts_again(tmp_path, monkeypatch):
    train(job(), tmp_path / "unbroken")

    def broken(*_: Any, **__: Any) -> None:
        raise Stopped

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save", broken)
        with pytest.raises(Stopped):
            train(job(), tmp_path / "broken")
    train(job(), tmp_path / "broken")
    assert_same_run(tmp_path / "unbroken", tmp_path / "broken")


def test_a_run_broken_off_at_its_first_step_is_not_evaluated_twice(tmp_path, stop):
    def without_test() -> Job:
        given = job()
        given.suite.splits = {"validation": given.suite.splits["validation"]}
        return given

    train(without_test(), tmp_path / "unbroken")
    stop(tmp_path / "broken", without_test(), 0)
    train(without_test(), tmp_path / "broken")
    assert_same_run(tmp_path / "unbroken", tmp_path / "broken")


def test_half_a_line_of_the_log_is_dropped(tmp_path, stop):
    train(job(), tmp_path / "unbroken")
    stop(tmp_path / "broken", job(), 3)
    with (tmp_path / "broken" / "metrics.jsonl").open("a") as log:
        log.write('{"step": 4, "lo')
    train(job(), tmp_path / "broken")
    assert_same_run(tmp_path / "unbroken", tmp_path / "broken")


def test_a_changed_recipe_is_refused_and_named(tmp_path, stop):
    stop(tmp_path, job(), 3)
    before = (tmp_path / "recipe.yaml").read_text()
    other = {"about": "first words", "train": {"steps": 6, "lr": {"student": 0.1}, "batch": 3}}
    with pytest.raises(Failure) as refused:
        train(replace(job(), recipe=other), tmp_path)
    said = str(refused.value)
    assert "train.lr.student: was 0.05, is now 0.1" in said
    assert "train.batch: was 'absent', is now 3" in said
    assert "train.steps" not in said
    assert str(tmp_path) in said
    assert "--out" in said
    assert (tmp_path / "recipe.yaml").read_text() == before


def test_what_a_recipe_says_about_itself_may_change(tmp_path, stop):
    stop(tmp_path, job(), 3)
    told = {**job().recipe, "about": "better words"}
    result = train(replace(job(), recipe=told), tmp_path)
    assert result.info["steps"] == 6
    assert yaml.safe_load((tmp_path / "recipe.yaml").read_text())["about"] == "better words"


def test_other_data_under_the_same_recipe_are_refused(tmp_path, stop):
    files = [{"file": "rows.jsonl", "rows": 9, "sha256": "ab"}]
    stop(tmp_path, replace(job(), ledger={"files": files}), 3)
    changed = [{**files[0], "sha256": "cd"}]
    with pytest.raises(Failure, match=r"other data, though the recipe is the same.*'ab'.*'cd'"):
        train(replace(job(), ledger={"files": changed}), tmp_path)


def test_another_number_of_processes_is_refused(tmp_path, stop):
    stop(tmp_path, job(), 3)
    (place,) = checkpoint.saved(tmp_path / "checkpoints")[-1:]
    state = checkpoint.load(place)
    checkpoint.save(place.parent, 2, {**state, "random": state["random"] * 2}, keep=2)
    with pytest.raises(Failure, match=r"run of 2 processes and is taken up by 1: launch"):
        train(job(), tmp_path)


def test_a_finished_run_is_not_run_again(tmp_path):
    first = train(job(), tmp_path)
    log = (tmp_path / "metrics.jsonl").read_bytes()
    again = train(job(), tmp_path)
    assert first.fresh
    assert not again.fresh
    assert again.test == first.test
    assert (tmp_path / "metrics.jsonl").read_bytes() == log
    assert bits(again.student.state_dict()) == bits(first.student.state_dict())


def test_only_the_last_checkpoints_stay_and_the_best_student(tmp_path):
    result = train(job(steps=9, every=2, keep=3), tmp_path)
    places = [p.name for p in checkpoint.saved(tmp_path / "checkpoints")]
    assert places == ["step-00000006", "step-00000008", "step-00000009"]
    best = [p.name for p in (tmp_path / "checkpoints").glob("best-*")]
    assert best == [f"best-{result.info['selected_step']:08d}.safetensors"]


def full(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_disk_full_in_the_middle_keeps_what_is_finished(tmp_path, monkeypatch):
    train(job(), tmp_path / "unbroken")
    whole = checkpoint.save_file

    def late(tensors: Any, file: Path) -> None:
        whole(tensors, file)
        if (tmp_path / "broken" / "checkpoints" / "step-00000002").exists():
            full()  # and leaves half a folder behind

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save_file", late)
        assert_says_what_is_safe(tmp_path / "broken", step=2)
    train(job(), tmp_path / "broken")
    assert_same_run(tmp_path / "unbroken", tmp_path / "broken")


def test_a_disk_full_at_the_end_keeps_what_is_finished(tmp_path, monkeypatch):
    train(job(), tmp_path / "unbroken")
    with monkeypatch.context() as patch:
        patch.setattr(training, "_export", full)
        assert_says_what_is_safe(tmp_path / "broken", step=6)
    train(job(), tmp_path / "broken")
    assert_same_run(tmp_path / "unbroken", tmp_path / "broken")


def assert_says_what_is_safe(folder: Path, step: int) -> None:
    with pytest.raises(Failure, match="no space left") as told:
        train(job(), folder)
    assert f"step {step} is safe" in str(told.value)
    assert "same command again" in str(told.value)
    assert checkpoint.step_of(checkpoint.saved(folder / "checkpoints")[-1]) == step
    assert not list(folder.glob("**/.*writing"))


@pytest.mark.slow
def test_a_disk_that_is_really_full(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(disk)]
    done = subprocess.run(mount, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"this machine lets us mount no small disk: {done.stderr.strip()}")
    try:
        told = {"steps": 30, "every": 1}
        child = launch.alone(tmp_path / "log", launch.gad, disk / "run", **told)
        launch.until_step(disk / "run", 5, child)
        with contextlib.suppress(OSError):  # the run itself may have taken the last bytes
            (disk / "ballast").write_bytes(b"x" * shutil.disk_usage(disk).free)
        assert child.wait() == 1
        assert "Failure: " in child.said().splitlines()[-1]
        assert "no space left on the disk" in child.said()
        assert "same command again" in child.said()
        assert checkpoint.saved(disk / "run" / "checkpoints")
        (disk / "ballast").unlink()
        assert launch.alone(tmp_path / "log", launch.gad, disk / "run", **told).wait() == 0
        assert launch.alone(tmp_path / "log", launch.gad, tmp_path / "run", **told).wait() == 0
        assert_same_run(tmp_path / "run", disk / "run")
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def limited(out: Path, size: int, **told: Any) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    launch.gad(out, **told)


@pytest.mark.slow
def test_a_file_that_may_grow_no_further(tmp_path):
    child = launch.alone(tmp_path / "log", limited, tmp_path / "run", 40_000, steps=3, every=1)
    assert child.wait() == 1
    assert "no space left on the disk" in child.said()
    assert "none was complete yet" in child.said()
    assert (
        launch.alone(tmp_path / "log", launch.gad, tmp_path / "run", steps=3, every=1).wait() == 0
    )
