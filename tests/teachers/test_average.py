"""A teacher that is the student's moving average."""

from pathlib import Path

import pytest
import torch
from worlds import World, broken_off, gap, job, steps

from stillroom.config.build import build
from stillroom.config.recipe import make
from stillroom.core import Failure
from stillroom.methods.kd import KD
from stillroom.teachers.average import Average

METHOD = KD(temperature=1.0, label_weight=0.5)


def averaged(kind: str = "text", decay: float = 0.75, **changes):
    given = job(METHOD, World(kind=kind, exact=True), steps=4, every=1, keep=9, **changes)
    given.teachers["teacher"] = Average(given.student, decay)
    return given


@pytest.mark.parametrize("kind", ["text", "classes"])
def test_it_is_the_sum_that_the_weights_of_each_step_make(kind):
    """a_n = d^n w_0 + (1 - d) sum_i d^(n - i) w_i, from the student's saved states."""
    saved = steps(averaged(kind)).states
    own = [saved[n]["networks"]["student"] for n in range(5)]
    told = saved[4]["networks"]["teacher"]
    for name, value in told.items():
        if value.dtype != torch.float64 or not (own[4][name] - own[0][name]).any():
            continue
        wanted = 0.75**4 * own[0][name]
        for i in range(1, 5):
            wanted = wanted + 0.25 * 0.75 ** (4 - i) * own[i][name]
        torch.testing.assert_close(value, wanted, rtol=1e-12, atol=1e-14)
        break
    else:
        pytest.fail("no weight moved")
    assert gap(told, own[4]) > 1e-4


def test_at_first_it_teaches_nothing_that_the_student_does_not_know():
    given = averaged()
    batch = given.streams["train"].batch(range(4))
    student = given.student.eval()(batch)
    teacher = given.teachers["teacher"](batch)
    torch.testing.assert_close(teacher.logits, student.logits)
    assert not teacher.logits.requires_grad


def test_it_goes_on_where_it_stood(tmp_path):
    whole, again = broken_off(averaged, 2, tmp_path)
    assert again.logs == whole.logs
    assert gap(again.states, whole.states) == 0


def test_a_recipe_names_it_by_its_decay(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("STILLROOM_CACHE", str(tmp_path / "cache"))
    told = {
        "method": {"name": "kd", "label_weight": 0.5},
        "student": {"lm": {"model_type": "windowed", "max_position_embeddings": 32}},
        "teacher": {"average": 0.9},
        "data": {"world": {"name": "markov", "rows": 16, "held": 4}, "cut_completion_tokens": 24},
        "train": {"steps": 1},
        "sampling": {"max_new_tokens": 4},
    }
    teacher = build(make(told, folder=Path())).teachers["teacher"]
    assert isinstance(teacher, Average)
    assert teacher.decay == 0.9
    with pytest.raises(Failure, match=r"teacher\.average: .*1\.0"):
        make({**told, "teacher": {"average": 1.0}}, folder=Path())
