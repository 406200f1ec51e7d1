"""Targets of four networks against plain numbers, and where they come to losses that are known."""

import math
from typing import Any

import pytest
import torch
import worlds

from stillroom.losses.divergences import forward_kl
from stillroom.losses.policy import label_logp
from stillroom.methods.delta_kd import DeltaKD
from stillroom.methods.kd import KD

N, V = 4, 6
LABELS = torch.tensor([0, 2, 5, 3])
TEXT = worlds.World(kind="text", exact=True)
Rows = list[list[float]]


def given(seed: int = 0) -> list[torch.Tensor]:
    """Student, tuned teacher, raw teacher, student at its start."""
    draw = torch.Generator().manual_seed(seed)
    made = [2 * torch.randn(N, V, dtype=torch.float64, generator=draw) for _ in range(4)]
    return [made[0].requires_grad_(), *made[1:]]


def logp(row: list[float], T: float) -> list[float]:
    total = sum(math.exp(z / T) for z in row)
    return [z / T - math.log(total) for z in row]


def shifted(rows: Rows, told: dict[str, Any]) -> list[float]:
    """The target of one row, from logits of tuned teacher, raw teacher and start."""
    a, c, T, k = (told[name] for name in ("strength", "clamp", "temperature", "top_k"))
    t, r, s = (logp(row, T) for row in rows)
    kept = set(range(V))
    if k is not None:
        kept = {v for x in (t, r) for v in sorted(range(V), key=lambda v: -x[v])[:k]}
    moved = [s[v] + a * max(-c, min(c, t[v] - r[v])) * (v in kept) for v in range(V)]
    total = sum(map(math.exp, moved))
    return [math.exp(z) / total for z in moved]


CASES = [
    {"strength": 1.0, "clamp": 10.0, "temperature": 1.0, "top_k": None},
    {"strength": 0.6, "clamp": 0.8, "temperature": 2.0, "top_k": None},
    {"strength": 1.7, "clamp": 1.5, "temperature": 0.7, "top_k": 2},
]


@pytest.mark.parametrize("weight", [0.0, 0.3])
@pytest.mark.parametrize("told", CASES)
def test_the_shift_by_hand(told, weight):
    student, *others = given()
    method = DeltaKD(**told, label_weight=weight)
    tuned, raw, start = others
    value = method.objective(student, tuned, LABELS, raw=raw, start=start)
    (slope,) = torch.autograd.grad(value.sum(), student)
    T = told["temperature"]
    for row in range(N):
        target = shifted([x[row].tolist() for x in others], told)
        own, plain = (logp(student[row].tolist(), t) for t in (T, 1.0))
        kl = sum(p * (math.log(p) - q) for p, q in zip(target, own, strict=True))
        label = int(LABELS[row])
        wanted = (1 - weight) * T**2 * kl - weight * plain[label]
        assert value[row].item() == pytest.approx(wanted, rel=1e-10)
        slopes = [
            (1 - weight) * T * (math.exp(q) - p) + weight * (math.exp(z) - (v == label))
            for v, (q, p, z) in enumerate(zip(own, target, plain, strict=True))
        ]
        assert slope[row].tolist() == pytest.approx(slopes, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("told", CASES)
def test_the_difference_by_hand(told):
    student, *others = given(1)
    method, (tuned, raw, start) = DeltaKD(**told, form="difference"), others
    value = method.objective(student, tuned, LABELS, raw=raw, start=start)
    (slope,) = torch.autograd.grad(value.sum(), student)
    a, c, T, k = (told[name] for name in ("strength", "clamp", "temperature", "top_k"))
    for row in range(N):

        def measured(logits: list[float], row: int = row) -> float:
            t, r, s = (logp(x[row].tolist(), T) for x in others)
            q = logp(logits, T)
            e = [q[v] - s[v] - a * max(-c, min(c, t[v] - r[v])) for v in range(V)]
            kept = sorted(range(V), key=lambda v: -t[v])[: k or V]
            return sum((e[v] - sum(e) / V) ** 2 for v in kept) / len(kept)

        own = student[row].tolist()
        assert value[row].item() == pytest.approx(measured(own), rel=1e-10)
        for v in range(V):
            up, down = ([*own[:v], own[v] + h, *own[v + 1 :]] for h in (1e-5, -1e-5))
            found = (measured(up) - measured(down)) / 2e-5
            assert slope[row, v].item() == pytest.approx(found, rel=1e-6, abs=1e-8)


def test_a_teacher_that_did_not_change_leaves_the_student_where_it_began():
    student, tuned, _, start = given(2)
    for top_k in (None, 2):
        found = DeltaKD(top_k=top_k).objective(student, tuned, LABELS, raw=tuned, start=start)
        torch.testing.assert_close(found, forward_kl(student, start))


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_a_student_that_began_as_the_raw_teacher_learns_the_tuned_one(temperature):
    """Ordinary distillation: the raw networks cancel."""
    student, tuned, raw, _ = given(3)
    told = {"temperature": temperature, "label_weight": 0.25}
    found = DeltaKD(**told, clamp=1e3).objective(student, tuned, LABELS, raw=raw, start=raw)
    torch.testing.assert_close(found, KD(**told).objective(student, tuned, LABELS))
    assert (found - DeltaKD(**told, clamp=0.1).objective(
        student, tuned, LABELS, raw=raw, start=raw
    )).abs().max() > 0.01  # fmt: skip


@pytest.mark.parametrize("form", ["shift", "difference"])
def test_a_constant_added_to_any_logits_changes_nothing(form):
    student, tuned, raw, start = given(4)
    method = DeltaKD(form=form, clamp=0.5, top_k=3, temperature=1.3)
    wanted = method.objective(student, tuned, LABELS, raw=raw, start=start)
    for place in range(4):
        moved = [
            x + (7.0 if i == place else 0.0) for i, x in enumerate((student, tuned, raw, start))
        ]
        found = method.objective(moved[0], moved[1], LABELS, raw=moved[2], start=moved[3])
        torch.testing.assert_close(found, wanted)


def test_all_weight_on_the_label_is_cross_entropy():
    student, tuned, raw, start = given(5)
    found = DeltaKD(label_weight=1).objective(student, tuned, LABELS, raw=raw, start=start)
    torch.testing.assert_close(found, -label_logp(student, LABELS))


@pytest.mark.parametrize("form", ["shift", "difference"])
def test_without_strength_nothing_is_learned_at_the_start(form):
    log = worlds.steps(worlds.job(DeltaKD(form=form, strength=0.0), TEXT, steps=1)).logs[0]
    assert log["loss/student/loss"] == pytest.approx(0, abs=1e-14)
    assert log["grad_norm/student"] < 1e-12
    other = worlds.steps(worlds.job(DeltaKD(form=form), TEXT, steps=1)).logs[0]
    assert other["grad_norm/student"] > 1e-3


def test_each_step_is_told_by_the_network_that_has_its_name():
    """The loss of each step from whole logits of all four, the student as it began among them."""
    told = {"steps": 3, "batch": worlds.EXAMPLES, "every": 1, "keep": 4}
    run = worlds.steps(worlds.job(DeltaKD(), TEXT, **told))
    batch, student = TEXT.data().batch(range(worlds.EXAMPLES)), TEXT.student()

    def logits(network: Any) -> torch.Tensor:
        with torch.no_grad():
            said = network(batch)
            return said.head.logits(said.hidden)

    given = worlds.job(DeltaKD(), TEXT).teachers
    start, tuned, raw = logits(student), logits(given["teacher"]), logits(given["raw"])
    assert (tuned - raw).abs().max() > 0.1
    target = (start + tuned - raw).log_softmax(-1)
    for step, log in enumerate(run.logs):
        student.load_state_dict(run.states[step]["networks"]["student"])
        assert (
            worlds.gap(run.states[step]["networks"]["start"], run.states[0]["networks"]["student"])
            == 0
        )
        own = logits(student).log_softmax(-1)
        wanted = (target.exp() * (target - own)).sum(-1).mean()
        assert log["loss/student/loss"] == pytest.approx(wanted.item(), rel=1e-9)


def test_what_is_clamped_is_logged():
    few, many = (
        worlds.steps(worlds.job(DeltaKD(clamp=c), TEXT, steps=1)).logs[0]["delta_kd/clamped"]
        for c in (100.0, 1e-6)
    )
    assert few == 0
    assert many > 0.95
