"""Stages: made once for their inputs, whole or not there, one process at a time."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from stillroom import catalogue
from stillroom.pipelines import _stages as stages
from stillroom.pipelines._stages import code_of, stage


def told_inputs(place):
    return json.loads((place / "stage.json").read_text())[2]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    place = tmp_path / "cache"
    monkeypatch.setenv("STILLROOM_CACHE", str(place))
    return place / "stages"


class Making:
    """Fills a folder, and counts how often."""

    def __init__(self, text="made"):
        self.text, self.seen = text, []

    def __call__(self, folder):
        self.seen.append(sorted(p.name for p in folder.iterdir()))
        (folder / "text").write_text(self.text)


INPUTS = {"model": "gpt2", "layers": [0, 2], "sizes": {"a": 1, "b": None}, "rate": 0.5}


def test_the_same_inputs_are_made_once():
    make = Making()
    place = stage("cut", make, code="1", **INPUTS)
    assert (place / "text").read_text() == "made"
    changed = Making("another")
    turned = {key: INPUTS[key] for key in reversed(INPUTS)} | {"sizes": {"b": None, "a": 1}}
    assert stage("cut", changed, code="1", **turned) == place
    assert (place / "text").read_text() == "made"
    assert (make.seen, changed.seen) == ([[]], [])
    assert told_inputs(place) == INPUTS


@pytest.mark.parametrize(
    "other",
    [
        {"model": "gpt3"},
        {"layers": [2, 0]},
        {"layers": [0]},
        {"sizes": {"a": 1, "b": 0}},
        {"rate": 0.25},
        {"more": None},
    ],
    ids=str,
)
def test_other_inputs_are_made_anew(other):
    place = stage("cut", Making("one"), code="1", **INPUTS)
    second = stage("cut", Making("two"), code="1", **{**INPUTS, **other})
    assert second != place
    assert [(p / "text").read_text() for p in (place, second)] == ["one", "two"]
    assert told_inputs(second) == {**INPUTS, **other}


def test_another_name_or_code_is_made_anew():
    places = {stage(name, Making(), code=code, a=1) for name in ("x", "y") for code in ("1", "2")}
    assert len(places) == 4


def test_a_stage_may_be_made_from_another():
    def chain(start):
        first = stage("first", Making(start), code="1", start=start)
        return first, stage("second", Making(), code="1", of=first)

    (one, after_one), (other, after_other) = chain("a"), chain("b")
    assert after_one != after_other
    assert chain("a") == (one, after_one)
    assert told_inputs(after_one) == {"of": one.name}
    assert told_inputs(after_other) == {"of": other.name}


def test_what_is_no_plain_value_is_refused(cache):
    with pytest.raises(TypeError, match="a stage's inputs are plain values, not <object"):
        stage("cut", Making(), code="1", thing=object())
    assert not cache.exists()


def failing(folder):
    (folder / "half").write_text("")
    raise ZeroDivisionError


@pytest.mark.parametrize(("resume", "found"), [(False, []), (True, ["half"])])
def test_what_failed_is_not_there_and_is_made_again(cache, resume, found):
    with pytest.raises(ZeroDivisionError):
        stage("cut", failing, code="1", resume=resume, a=1)
    assert not [p for p in cache.glob("cut-*") if p.is_dir()]
    make = Making()
    place = stage("cut", make, code="1", resume=resume, a=1)
    assert make.seen == [found]
    assert sorted(p.name for p in place.iterdir()) == sorted(["stage.json", "text", *found])
    assert [p.name for p in cache.iterdir() if p.is_dir()] == [place.name]


PROCESS = """
import os, sys, time
from pathlib import Path
from stillroom.pipelines._stages import stage

log, seconds = Path(sys.argv[1]), float(sys.argv[2])

def say(text):
    with log.open("a") as stream:
        stream.write(text + "\\n")

def make(folder):
    say("begins")
    (folder / "half").write_text("")
    end = time.time() + seconds
    while time.time() < end and len(list(log.parent.glob("asks-*"))) < 2:
        time.sleep(0.05)
    time.sleep(0.5)  # enough for another to come in, were it let in
    (folder / "whole").write_text("")
    say("ends")

(log.parent / f"asks-{os.getpid()}").touch()
place = stage("slow", make, code="1", a=1)
say(f"{(place / 'whole').exists()}")
"""


def start(log, seconds):
    told = [sys.executable, "-c", PROCESS, str(log), str(seconds)]
    return subprocess.Popen(told, env=os.environ)


def lines(log: Path) -> list[str]:
    return log.read_text().split("\n")[:-1] if log.exists() else []


def wait_for(log, line):
    for _ in range(600):
        if line in lines(log):
            return
        time.sleep(0.05)
    raise AssertionError(f"no {line!r} in {lines(log)}")


@pytest.mark.slow
def test_one_that_was_killed_is_started_again(cache, tmp_path):
    log = tmp_path / "log"
    process = start(log, 600)
    wait_for(log, "begins")
    process.send_signal(signal.SIGKILL)
    process.wait()
    (aside,) = [p for p in cache.iterdir() if p.is_dir()]
    assert aside.name.startswith(".slow-")
    assert start(log, 0).wait() == 0
    assert lines(log) == ["begins", "begins", "ends", "True"]
    (place,) = [p for p in cache.iterdir() if p.is_dir()]
    assert place.name.startswith("slow-")
    assert json.loads((place / "stage.json").read_text())[:2] == ["slow", "1"]


@pytest.mark.slow
def test_two_processes_wait_for_each_other(tmp_path):
    log = tmp_path / "log"
    first = start(log, 60)  # or until the second asks
    wait_for(log, "begins")
    second = start(log, 0)
    assert first.wait() == 0
    assert second.wait() == 0
    assert lines(log) == ["begins", "ends", "True", "True"]


def test_the_code_is_told_by_the_method_and_by_the_rooms_below(tmp_path, monkeypatch):
    kd, seqkd = catalogue.load("kd"), catalogue.load("seqkd")
    assert len({code_of(), code_of(kd), code_of(seqkd)}) == 3
    before = code_of(kd)
    copied = tmp_path / "stillroom"
    shutil.copytree(Path(stages.__file__).parent.parent, copied)
    monkeypatch.setattr(stages, "__file__", str(copied / "pipelines" / "_stages.py"))
    code_of.cache_clear()
    assert code_of(kd) == before
    with (copied / "losses" / "policy.py").open("a") as file:
        file.write("# changed")
    code_of.cache_clear()
    assert code_of(kd) != before
    code_of.cache_clear()
