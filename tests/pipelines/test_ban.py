"""BAN: losses and gradients by hand, generations born anew, a killed chain, its ensemble."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from fakes import FakeWork

from stillroom.config.build import build
from stillroom.config.recipe import make
from stillroom.core import Batch, Failure, Signals
from stillroom.engine.training import train
from stillroom.losses.policy import nll
from stillroom.models import classes
from stillroom.pipelines.ban import BAN, permuted
from stillroom.rollouts.sampling import uniform

B, C = 6, 5


@pytest.fixture
def said() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits of student and teacher in float64, and labels that neither always gives."""
    draw = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(2, B, C, generator=draw, dtype=torch.float64) * 2).unbind()
    return student.requires_grad_(), teacher, torch.randint(0, C, (B,), generator=draw)


def taught(loss: str, student: Any, teacher: Any, labels: Any, mask: Any = None) -> torch.Tensor:
    """[B] values of one loss, all its terms together."""
    run: Any = type("Run", (), {"uniform": lambda self: 0.25, "teacher": None})()
    mask = torch.ones(B) if mask is None else mask
    batch = Batch(x=student, labels=labels, mask=mask, id=torch.arange(10, 10 + B))
    method: Any = BAN(loss=loss).method  # type: ignore[arg-type]
    batch = method.prepare(run, batch)
    terms = method.loss(Signals(logits=student), Signals(logits=teacher), batch, {})
    terms = terms if isinstance(terms, list) else [terms]
    return torch.stack([term.weight * term.value for term in terms]).sum(0)


def softmax(z: torch.Tensor) -> torch.Tensor:
    e = z.detach().exp()
    return e / e.sum(-1, keepdim=True)


def slope(value: torch.Tensor, student: torch.Tensor) -> torch.Tensor:
    return torch.autograd.grad(value.sum(), student)[0]


def test_the_gradient_is_that_of_the_label_and_that_of_the_other_classes(said: Any) -> None:
    student, teacher, labels = said
    value = taught("ban", student, teacher, labels)
    p, q = softmax(teacher), softmax(student)
    torch.testing.assert_close(value.detach(), -(p * q.log()).sum(-1))
    label = torch.eye(C, dtype=torch.float64)[labels]
    importance, dark = (q - p) * label, (q - p) * (1 - label)
    assert importance.abs().min(1).values.max() == 0
    torch.testing.assert_close(slope(value, student), importance + dark)


def test_a_student_that_is_its_teacher_has_no_gradient(said: Any) -> None:
    student, _, labels = said
    assert slope(taught("ban", student, student.detach(), labels), student).abs().max() < 1e-12


def test_with_labels_both_parts_weigh_alike(said: Any) -> None:
    student, teacher, labels = said
    both = taught("ban_l", student, teacher, labels)
    hard = -softmax(student).log()[torch.arange(B), labels]
    torch.testing.assert_close(
        both.detach(), taught("ban", student, teacher, labels).detach() + hard
    )


def test_confidence_weighs_the_label_within_the_batch(said: Any) -> None:
    student, teacher, labels = said
    mask = torch.tensor([1.0, 1, 0, 1, 1, 1])
    value = taught("cwtm", student, teacher, labels, mask)
    kept = [0, 1, 3, 4, 5]
    sure = {s: softmax(teacher)[s].max().item() for s in kept}
    wanted = sum(
        sure[s] / sum(sure.values()) * -softmax(student)[s, labels[s]].log().item() for s in kept
    )
    mean = (value.detach() * mask).sum() / mask.sum()
    assert mean.item() == pytest.approx(wanted, rel=1e-12)


def test_with_a_constant_confidence_it_is_plain_cross_entropy(said: Any) -> None:
    student, teacher, labels = said
    turned = torch.stack([teacher[0].roll(s) for s in range(B)])  # one confidence, other classes
    value = taught("cwtm", student, turned, labels)
    torch.testing.assert_close(value, nll(student, None, labels))
    torch.testing.assert_close(slope(value, student), slope(nll(student, None, labels), student))


def test_permuted_a_teacher_that_is_even_outside_its_largest_class_is_plain(said: Any) -> None:
    student, teacher, labels = said
    even = torch.full_like(teacher, -1.0).scatter(-1, teacher.argmax(-1, keepdim=True), 2.0)
    ours, plain = (taught(loss, student, even, labels) for loss in ("dkpp", "ban"))
    torch.testing.assert_close(ours, plain)
    torch.testing.assert_close(slope(ours, student), slope(plain, student))
    other = [taught(loss, student, teacher, labels) for loss in ("dkpp", "ban")]
    assert (other[0] - other[1]).abs().max() > 0.01


def test_the_largest_stays_and_the_others_take_each_order_as_often() -> None:
    p = torch.tensor([0.1, 0.5, 0.3, 0.0, 0.1 / 1]).to(torch.float64)
    p[4] = 0.1 + 1e-9  # so that orders can be told apart
    many = 24_000
    numbers = uniform(3, torch.arange(many)[:, None], torch.arange(5))
    turned = permuted(p.expand(many, 5), numbers)
    assert (turned[:, 1] == 0.5).all()
    assert (turned.sort(-1).values == p.sort().values).all()
    counts = turned.unique(dim=0, return_counts=True)[1]
    assert len(counts) == 24
    assert ((counts - 1000.0).abs() < 5 * 1000**0.5).all()


def test_an_order_is_that_of_an_example_and_a_step_whatever_its_batch(said: Any) -> None:
    student, teacher, labels = said
    whole = taught("dkpp", student, teacher, labels)
    run: Any = type("Run", (), {"uniform": lambda self: 0.25})()
    batch = Batch(x=student, labels=labels, mask=torch.ones(B), id=torch.arange(10, 10 + B))
    method: Any = BAN(loss="dkpp").method
    parts = []
    for part, where in ((method.prepare(run, batch).part(i, i + 2), i) for i in (0, 2, 4)):
        own, other = (Signals(logits=z[where : where + 2]) for z in (student, teacher))
        parts.append(method.loss(own, other, part, {}).value)
    torch.testing.assert_close(torch.cat(parts), whole)


def run(**fields: Any) -> tuple[Any, FakeWork]:
    work: Any = FakeWork(lambda text: "", [], steps=fields.pop("steps", 10))
    return BAN(**fields).run(work), work


def test_each_generation_learns_from_the_one_before_and_begins_anew() -> None:
    last, work = run(generations=3)
    told = [*work.lessons, last]
    assert [lesson.name for lesson in told] == [f"generation {k}" for k in (1, 2, 3)]
    assert [lesson.teacher for lesson in told] == [
        None, Path("generation 1"), Path("generation 2")
    ]  # fmt: skip
    assert [lesson.steps for lesson in told] == [3, 3, 4]
    assert [lesson.draw for lesson in told] == [1, 2, 3]  # 0 may be the teacher's own
    assert all(lesson.start is None and lesson.rows is None for lesson in told)
    assert list(last.beside) == ["generation-1", "generation-2"]


def test_generation_0_may_learn_the_labels() -> None:
    last, work = run(generations=1, first="labels")
    zero: Any = work.lessons[0]
    assert (len(work.lessons), zero.draw, zero.teacher, zero.method.needs.teacher) == (
        1, 0, None, frozenset()
    )  # fmt: skip
    assert (last.draw, last.teacher) == (1, Path("generation 0"))
    alone, work = run(generations=0, first="labels")
    assert (alone.name, alone.steps, work.lessons) == ("generation 0", 10, [])


def test_too_few_steps_and_no_generation_are_refused() -> None:
    with pytest.raises(Failure, match="10 steps are too few for 11"):
        run(generations=11)
    with pytest.raises(Failure, match=r"ban\.generations"):
        run(generations=0)


NET = {"net": {"kind": "mlp", "widths": [8]}}


def told(**changes: Any) -> dict[str, Any]:
    """A chain of three generations after one of labels."""
    return {
        "method": "seqkd",
        "pipeline": {"name": "ban", "first": "labels", "generations": 3},
        "student": NET,
        "teacher": {"recorded": True},
        "data": {"items": {"name": "digits", "train": 64, "validation": 16, "test": 64}},
        "train": {"steps": 40, "batch": 16, "lr": 0.01},
        "eval": {"every": None, "metrics": ["accuracy", "ensemble"], "samples": 0},
        "run": {"threads": 1},
    } | changes


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    pytest.importorskip("sklearn", reason="the extra 'classes' is not installed")
    monkeypatch.setenv("STILLROOM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "stages"


def test_text_is_refused(cache: Path, tmp_path: Path) -> None:
    text = told(data={"world": {"name": "chains"}}, student={"lm": {"model_type": "llama"}})
    with pytest.raises(Failure, match=r"pipeline: BAN works on image: give data\.items"):
        build(make(text, folder=tmp_path))
    undo = told(pipeline={"name": "undo"})
    with pytest.raises(Failure, match="pipeline: UNDO works on text: give text"):
        build(make(undo, folder=tmp_path))


def test_no_two_generations_begin_alike(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from stillroom.config import lessons

    starts: list[bytes] = []
    real = lessons.train

    def watched(job: Any, folder: Path) -> Any:
        starts.append(job.student.network.parts[0][0].weight.detach().numpy().tobytes())
        return real(job, folder)

    monkeypatch.setattr(lessons, "train", watched)
    job = build(make(told(), folder=tmp_path))
    starts.append(job.student.network.parts[0][0].weight.detach().numpy().tobytes())
    assert len(set(starts)) == 4


def test_the_ensemble_is_the_mean_of_all_generations(cache: Path, tmp_path: Path) -> None:
    job = build(make(told(), folder=tmp_path))
    result = train(job, tmp_path / "out")
    places = [*sorted((tmp_path / "out" / "beside").iterdir()), tmp_path / "out" / "student"]
    assert [place.name for place in places] == ["generation-1", "generation-2", "student"]
    assert job.suite is not None
    test = job.suite.splits["test"].batch(range(64))
    with torch.no_grad():
        each = [softmax(classes.load(place).eval()(test).logits) for place in places]
    mean = torch.stack(each).mean(0)
    assert len({tuple(q[0].tolist()) for q in each}) == 3
    right = (mean.argmax(-1) == test.labels).double().mean().item()
    own = -mean[torch.arange(64), test.labels].log().double().mean().item()
    assert result.test["ensemble_accuracy"] == right
    assert result.test["ensemble_nll"] == pytest.approx(own, rel=1e-6)
    assert result.test["ensemble_nll"] != pytest.approx(result.test["class_nll"], rel=1e-3)


@pytest.mark.slow
def test_one_that_is_killed_in_its_third_stage_goes_on_there(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGKILL in generation 2: generations 0 and 1 are kept, and the end is that of a whole run."""
    long = told(train={"steps": 1200, "batch": 16, "lr": 0.01})
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(long), encoding="utf-8")
    words = [sys.executable, "-m", "stillroom", "run", "recipe.yaml", "--out", "parts"]
    place = make({**long, "name": "recipe"}, folder=tmp_path)

    def lessons() -> dict[str, int]:
        places = cache.glob("lesson-*/result.json")
        return {place.parent.name: place.stat().st_mtime_ns for place in places}

    def third() -> Path | None:
        """The metrics of the third lesson, once it took some steps."""
        under = list(cache.glob(".lesson-*.writing/metrics.jsonl"))
        lines = under[0].read_text(encoding="utf-8").count("\n") if under else 0
        return under[0] if len(lessons()) == 2 and lines > 5 else None

    process = subprocess.Popen(words, cwd=tmp_path, env={**os.environ, "CI": "true"})
    end = time.time() + 120
    while third() is None and time.time() < end:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert third() is not None, "it was not in its third lesson"
    kept = lessons()
    result = train(build(place), tmp_path / "parts")
    assert kept.items() <= lessons().items()
    assert len(lessons()) == 3
    monkeypatch.setenv("STILLROOM_CACHE", str(tmp_path / "another cache"))
    train(build(place), tmp_path / "whole")
    weights = [tmp_path / out / "student" / "model.safetensors" for out in ("parts", "whole")]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    ledger = result.info["data"]["pipeline"]
    assert [line["what"] for line in ledger] == [f"taught generation {k}" for k in range(3)]
