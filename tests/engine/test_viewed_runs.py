"""Views in a run: what student and teacher are given, taken up again, by several micro-batches."""

import pytest
import torch
import worlds
from worlds import gap

from stillroom.core import Failure, Signals
from stillroom.data.views import Views
from stillroom.engine.record import Record
from stillroom.methods.kd import KD

WORLD = worlds.World(kind="classes", exact=True, maps=True)
KNOWN = KD(temperature=2.0, label_weight=0.1)
MOVED = {"shift": 1, "flip": True, "scale": 0.2, "noise": 0.1}


def job(views=None, **changes):
    return worlds.job(KNOWN, WORLD, views=views, **changes)


@pytest.mark.parametrize("teacher", ["same", "own", "clean"])
def test_views_that_change_nothing_are_plain_distillation(teacher):
    plain, viewed = worlds.steps(job()), worlds.steps(job(Views(teacher=teacher)))
    assert gap(plain.final, viewed.final) == 0
    assert plain.logs == viewed.logs


@pytest.mark.parametrize("mixup", [False, True])
@pytest.mark.parametrize("teacher", ["same", "own", "clean"])
def test_what_is_fed_to_both(teacher, mixup):
    """Under ``same`` the very tensors; else the teacher's own, or those of the data."""
    given, fed = job(Views(**MOVED, mixup=mixup, teacher=teacher)), {"student": [], "teacher": []}
    of = given.streams["train"]
    live = given.teachers["teacher"]

    class Watched:
        signals, fresh, network = live.signals, live.fresh, live.network

        def __call__(self, batch, *, grad=False) -> Signals:
            fed["teacher"].append(batch.x)
            fed["clean"] = [*fed.get("clean", []), of.batch(batch.id.tolist()).x]
            return live(batch, grad=grad)

    given.teachers["teacher"] = Watched()
    given.student.network.register_forward_pre_hook(lambda _m, args: fed["student"].append(args[0]))
    worlds.steps(given)
    triples = list(zip(fed["student"], fed["teacher"], fed["clean"], strict=True))
    assert len(triples) == 3
    for student, teachers, clean in triples:
        assert torch.equal(student, teachers) == (teacher == "same")
        assert torch.equal(clean, teachers) == (teacher == "clean")
        assert not torch.equal(student, clean)


@pytest.mark.parametrize("teacher", ["same", "own"])
def test_a_run_that_broke_off_sees_what_it_would_have_seen(tmp_path, teacher):
    views = Views(**MOVED, mixup=True, teacher=teacher)
    whole, again = worlds.broken_off(lambda: job(views, steps=6), 2, tmp_path)
    assert gap(whole.states[6], again.states[6]) == 0
    assert whole.logs == again.logs
    assert gap(whole.final, worlds.steps(job(steps=6)).final) > 1e-4


def test_micro_batches_do_not_change_a_view():
    views = Views(**MOVED, mixup=True, teacher="own")
    one, two = (worlds.steps(job(views, tokens_per_micro=n)) for n in (4, 1))
    assert gap(one.final, two.final) < 1e-12


def test_evaluation_sees_the_examples_as_they_are(tmp_path):
    told = {"metrics": True, "lr": 1e-9, "steps": 1}
    read = []
    for name, views in {"plain": None, "viewed": Views(**MOVED, mixup=True)}.items():
        worlds.steps(job(views, **told), folder=tmp_path / name)
        lines = Record(tmp_path / name).lines("metrics.jsonl")
        read.append([ln["validation/class_nll"] for ln in lines if "validation/class_nll" in ln])
    assert len(read[0]) == 2
    assert read[0] == pytest.approx(read[1], abs=1e-6)


def test_views_do_not_go_with_text():
    text = worlds.World(kind="text", exact=True)
    with pytest.raises(Failure, match=r"data\.views: .* these are texts"):
        worlds.steps(worlds.job(KD(), text, views=Views()))
