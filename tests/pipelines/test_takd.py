"""TAKD: who learns from whom, and what it is without assistants or without a teacher."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from fakes import FakeWork
from safetensors.torch import load_file

from stillroom.config.build import build
from stillroom.config.recipe import make
from stillroom.engine.training import train
from stillroom.losses.policy import nll
from stillroom.methods.kd import KD
from stillroom.models import classes
from stillroom.pipelines.takd import TAKD

WIDE, MIDDLE = ({"net": {"kind": "mlp", "widths": [w]}} for w in (16, 12))


def run(**fields: Any) -> tuple[Any, Any]:
    work: Any = FakeWork(lambda text: "", [], steps=30)
    return TAKD(**fields).run(work), work


def test_each_learns_from_the_one_before_by_the_same_formula() -> None:
    last, work = run(assistants=[WIDE, MIDDLE], temperature=3.0, soft_weight=0.7)
    told = [*work.lessons, last]
    assert [lesson.network for lesson in told] == [WIDE, MIDDLE, None]
    assert [lesson.teacher for lesson in told] == [None, Path("assistant 1"), Path("assistant 2")]
    assert [lesson.steps for lesson in told] == [30, 30, 30]
    assert len({lesson.draw for lesson in told}) == 3  # equal networks would begin apart
    assert last.draw == 0
    (method,) = {lesson.method for lesson in told}
    assert isinstance(method, KD)
    assert (method.temperature, method.label_weight) == (3.0, pytest.approx(0.3))


def test_assistants_may_have_steps_of_their_own() -> None:
    last, work = run(assistants=[WIDE], assistant_steps=70)
    assert ([lesson.steps for lesson in work.lessons], last.steps) == ([70], 30)


def test_the_loss_and_its_gradient_by_hand() -> None:
    draw = torch.Generator().manual_seed(0)
    student = torch.randn(4, 6, generator=draw, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(4, 6, generator=draw, dtype=torch.float64)
    labels, lam, tau = torch.tensor([0, 3, 5, 2]), 0.3, 2.5
    last, _ = run(soft_weight=lam, temperature=tau)
    value = last.method.objective(student, teacher, labels)

    def softmax(z: torch.Tensor) -> torch.Tensor:
        return z.detach().exp() / z.detach().exp().sum(-1, keepdim=True)

    p, q, hard = softmax(teacher / tau), softmax(student / tau), softmax(student)
    soft = tau**2 * (p * (p / q).log()).sum(-1)
    truth = -hard[torch.arange(4), labels].log()
    torch.testing.assert_close(value.detach(), (1 - lam) * truth + lam * soft)
    one_hot = torch.eye(6, dtype=torch.float64)[labels]
    (slope,) = torch.autograd.grad(value.sum(), student)
    torch.testing.assert_close(slope, (1 - lam) * (hard - one_hot) + lam * tau * (q - p))


def test_without_a_share_of_the_teacher_it_is_cross_entropy() -> None:
    draw = torch.Generator().manual_seed(1)
    student, teacher = torch.randn(2, 5, 4, generator=draw, dtype=torch.float64).unbind()
    labels = torch.tensor([0, 3, 1, 2, 2])
    last, _ = run(soft_weight=0.0)
    value = last.method.objective(student, teacher, labels)
    torch.testing.assert_close(value, nll(student, None, labels))


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    pytest.importorskip("sklearn", reason="the extra 'classes' is not installed")
    monkeypatch.setenv("STILLROOM_CACHE", str(tmp_path / "cache"))
    base = {
        "student": {"net": {"kind": "mlp", "widths": [8]}},
        "teacher": {"trained": {"student": {"net": {"kind": "mlp", "widths": [24]}}, "steps": 20}},
        "data": {"items": {"name": "digits", "train": 64, "validation": 16, "test": 16}},
        "train": {"steps": 12, "batch": 16, "lr": 0.01},
        "eval": {"every": None, "metrics": ["accuracy", "agreement"], "samples": 0},
        "run": {"threads": 1},
    }
    return lambda **told: make({**base, **told}, folder=tmp_path)


def test_without_assistants_it_is_plain_distillation_to_the_bit(
    recipe: Any, tmp_path: Path
) -> None:
    told = {"name": "takd", "assistants": [], "soft_weight": 0.75, "temperature": 2.0}
    train(build(recipe(pipeline=told)), tmp_path / "takd")
    plain = {"name": "kd", "label_weight": 0.25, "temperature": 2.0}
    train(build(recipe(method=plain)), tmp_path / "kd")
    ours, theirs = (load_file(tmp_path / n / "student/model.safetensors") for n in ("takd", "kd"))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_the_assistant_is_another_network_whose_steps_stand_beside(
    recipe: Any, tmp_path: Path
) -> None:
    job = build(recipe(pipeline={"name": "takd", "assistants": [WIDE, WIDE]}))
    result = train(job, tmp_path / "out")
    assert result.info["steps"] == 12
    ledger = result.info["data"]["pipeline"]
    assert [line["steps"] for line in ledger] == [12, 12]
    assistants: list[Any] = [
        classes.load(place)
        for place in sorted((tmp_path / "cache" / "stages").glob("lesson-*/student"))
    ]
    assert [one.network.parts[0][0].out_features for one in assistants] == [16, 16]
    teacher: Any = job.teachers["teacher"]
    with torch.no_grad():
        batch = job.suite.splits["test"].batch(range(16))  # type: ignore[union-attr]
        said = [one.eval()(batch).logits for one in assistants]
        assert any(torch.equal(teacher(batch).logits, own) for own in said)
        held = job.suite.splits["validation"].batch(range(16))  # type: ignore[union-attr]
        right = [(one(held).logits.argmax(-1) == held.labels).double().mean() for one in assistants]
    assert not torch.equal(*said)
    assert {line["validation_accuracy"] for line in ledger} == {float(share) for share in right}


def test_another_teacher_makes_another_assistant(recipe: Any, tmp_path: Path) -> None:
    told = {"pipeline": {"name": "takd", "assistants": [WIDE]}}
    build(recipe(**told))
    build(recipe(**told))
    other = {"student": {"net": {"kind": "mlp", "widths": [24]}}, "steps": 20, "seed": 1}
    build(recipe(**told, teacher={"trained": other}))
    stages = [place for place in (tmp_path / "cache" / "stages").glob("lesson-*") if place.is_dir()]
    assert len(stages) == 2
