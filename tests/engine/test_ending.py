"""When a run ends: after its steps, after its time, or where a number got too much worse."""

import itertools
import json
import shutil
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import worlds

from stillroom import catalogue
from stillroom.core import Failure, Method, Needs, Signals, Term
from stillroom.engine import checkpoint
from stillroom.engine.training import train
from stillroom.losses.policy import label_logp
from stillroom.schedules import Rate

CLASSES = worlds.World(kind="classes", exact=True)


@dataclass(frozen=True, kw_only=True)
class Imitate(Method):
    """Cross-entropy; ``sign`` -1 unlearns."""

    sign: float = 1.0

    def loss(self, student: Signals, teacher: Signals, batch, nets) -> Term:
        return Term(-self.sign * label_logp(student.logits, batch.labels))


@pytest.fixture
def half_a_second_a_step(monkeypatch):
    """A clock that is read twice a step and moves by half a second at each reading."""
    ticks = itertools.count()
    monkeypatch.setattr("time.process_time", lambda: next(ticks) / 2)


def job(sign: float = 1.0, **changes):
    return worlds.job(Imitate(sign=sign), CLASSES, **changes)


def lines(folder):
    found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line for line in found if "lr/student" in line]


def numbers(values, better="lower"):
    """A suite whose one number, of either split, is the next of ``values``."""
    told = iter(values)

    def measure(players, split, **_):
        return {} if split == "test" else {"nll": next(told)}

    return SimpleNamespace(
        measure=measure,
        columns=lambda: {"nll": {"label": "", "better": better}},
        higher_is_better=lambda name: better == "higher",
        samples=lambda players, count: [],
        splits={"validation": None},
        renderer=None,
    )


@pytest.mark.usefixtures("half_a_second_a_step")
def test_a_run_told_in_cpu_seconds_takes_the_steps_that_fit(tmp_path):
    rate = Rate(peak=0.1, decay="linear", end=0.0)
    done = train(job(steps=None, cpu_seconds=5.0, lr=rate), tmp_path)
    assert done.info["cpu_seconds"] == 5.0
    assert done.info["steps"] == 10
    rates = [line["lr/student"] for line in lines(tmp_path)]
    # nothing is known before the first step; after it, the decay runs over ten
    assert rates[1:] == pytest.approx([0.1 * (1 - k / 10) for k in range(1, 10)])


@pytest.mark.usefixtures("half_a_second_a_step")
def test_time_goes_on_where_a_killed_run_stood(tmp_path):
    told = {"steps": None, "cpu_seconds": 5.0, "every": 4, "keep": 9}
    train(job(**told), tmp_path)
    (tmp_path / "result.json").unlink()
    shutil.rmtree(tmp_path / "student")
    for place in checkpoint.saved(tmp_path / "checkpoints"):
        if checkpoint.step_of(place) > 4:
            shutil.rmtree(place)
    again = train(job(**told), tmp_path)
    assert again.info["steps"] == 10
    assert again.info["cpu_seconds"] == 5.0


@pytest.mark.parametrize(
    "name", [n for n in catalogue.names() if catalogue.row(n)["needs"]["planned"]]
)
def test_a_method_in_stages_is_not_told_in_time(name, tmp_path):
    cls = catalogue.load(name)
    given = worlds.job(cls(), worlds.world_for(cls)[0], steps=None, cpu_seconds=1.0)
    with pytest.raises(Failure, match=r"train\.steps"):
        train(given, tmp_path)
    assert not list(tmp_path.iterdir())


def test_what_reads_the_number_of_steps_says_so():
    """Stages of GAD and FitNets, PS-KD's weight, how much DistiLLM writes, PLaD's start."""
    assert {"distillm", "fitnets", "gad", "plad", "ps_kd"} == {
        n for n in catalogue.names() if catalogue.row(n)["needs"]["planned"]
    }
    assert Needs(planned=True).planned


def test_no_step_at_all_leaves_the_student_as_it_was(tmp_path):
    done = train(job(steps=0), tmp_path)
    assert done.info["steps"] == 0
    assert worlds.gap(done.student.state_dict(), CLASSES.student().state_dict()) == 0
    assert (tmp_path / "student" / "model.safetensors").is_file()


@pytest.mark.parametrize(
    ("better", "values", "select", "ends", "kept"),
    [
        # 0.2 worse than the best, not than the first
        ("lower", [2.0, 1.0, 1.05, 1.2, 0.1], None, 3, 2),
        ("lower", [2.0, 1.0, 1.05, 1.2, 0.1], "nll", 3, 1),
        ("higher", [1.0, 2.0, 1.95, 1.8, 9.0], None, 3, 2),
        ("lower", [1.0, 1.08, 1.09, 1.0, 1.08], None, 5, 5),  # never more than 0.1 worse
        # neither is better: from the first, either way
        (None, [1.0, 0.95, 0.85, 1.0, 1.0], None, 2, 1),
        (None, [1.0, 1.05, 1.15, 1.0, 1.0], None, 2, 1),
        ("lower", [1.0, float("nan"), 1.0, 1.0, 1.0], None, 1, 0),
    ],
)
def test_a_run_stops_where_a_number_got_too_much_worse_and_keeps_what_was_within_bounds(
    better, values, select, ends, kept, tmp_path
):
    suite = numbers([*values, 1.08], better)
    told = {"every": 1, "stop": {"nll": 0.1}, "select": select}
    done = train(job(steps=5, suite=suite, **told), tmp_path / "run")
    assert (done.info["steps"], done.info["selected_step"]) == (ends, kept)
    stopped = [note for note in done.info["notes"] if "eval.stop" in note]
    assert len(stopped) == (ends < 5)
    assert all(f"step {ends}" in note and f"of step {kept}" in note for note in stopped)
    unbroken = train(job(steps=kept), tmp_path / "short")
    assert worlds.gap(done.student.state_dict(), unbroken.student.state_dict()) == 0


def test_a_run_that_stopped_stays_so_when_it_is_taken_up(tmp_path):
    told = {"steps": 5, "every": 1, "stop": {"nll": 0.1}}
    train(job(**told, suite=numbers([1.0, 1.5])), tmp_path)
    (tmp_path / "result.json").unlink()
    again = train(job(**told, suite=numbers([])), tmp_path)
    assert again.info["steps"] == 1
    assert any("eval.stop" in note for note in again.info["notes"])


def test_the_best_reading_before_a_kill_still_counts(tmp_path):
    told = {"steps": 3, "every": 1, "stop": {"nll": 0.1}}
    with pytest.raises(StopIteration):
        train(job(**told, suite=numbers([2.0, 1.0])), tmp_path)
    again = train(job(**told, suite=numbers([1.2])), tmp_path)  # less than the first, 2.0
    assert again.info["steps"] == 2
