"""Difficulty, ratio and proxy against plain numbers; the limits; what the whole batch decides."""

import math
import statistics
from dataclasses import replace

import pytest
import torch
import worlds

from stillroom.core import Batch
from stillroom.losses.divergences import forward_kl
from stillroom.losses.per_row import per_row
from stillroom.losses.policy import label_logp
from stillroom.methods.self_evolution_kd import SelfEvolutionKD

N, V = 5, 7
LABELS = torch.tensor([0, 3, 5, 6, 2])
TEXT = worlds.World(kind="text", exact=True)
CURVES = {"ratio": lambda k: k / (k + 1), "exponential": lambda k: 1 - math.exp(-k)}
CURVES |= {"linear": lambda k: k}


def given(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    student, teacher = (2 * torch.randn(N, V, dtype=torch.float64, generator=draw) for _ in "st")
    return student.requires_grad_(), teacher


def softmax(row: list[float]) -> list[float]:
    weights = [math.exp(z) for z in row]
    return [w / sum(weights) for w in weights]


def hardness(q: list[float], g: list[float]) -> float:
    return sum(b * math.log(b / a) for a, b in zip(q, g, strict=True) if b)


def by_hand(q: list[float], g: list[float], r: float) -> tuple[float, list[float]]:
    """A row's loss, and its slope by the student's logits through that by its probabilities."""
    proxy = [(1 - r) * a + r * b for a, b in zip(q, g, strict=True)]
    slope = [-(1 - r) * b / m for b, m in zip(g, proxy, strict=True)]
    mean = sum(a * s for a, s in zip(q, slope, strict=True))
    return hardness(proxy, g), [a * (s - mean) for a, s in zip(q, slope, strict=True)]


def priors(teacher: torch.Tensor, beta: float) -> list[list[float]]:
    return [
        [beta * (v == int(label)) + (1 - beta) * p for v, p in enumerate(softmax(row))]
        for row, label in zip(teacher.tolist(), LABELS, strict=True)
    ]


@pytest.mark.parametrize("curve", CURVES)
@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
def test_value_and_slope_by_hand(beta, curve):
    student, teacher = given()
    method = SelfEvolutionKD(beta=beta, curve=curve, threshold="fixed", tau=1.5, cap=0.7)
    qs, gs = [softmax(row) for row in student.tolist()], priors(teacher, beta)
    ks = [hardness(q, g) for q, g in zip(qs, gs, strict=True)]
    rs = [min(0.7, CURVES[curve](k)) if k > 1.5 else 0.0 for k in ks]
    assert 0 < sum(r > 0 for r in rs) < N
    found = method.difficulty(student, teacher, LABELS).detach()
    assert found.tolist() == pytest.approx(ks, rel=1e-12)
    ratio = method._ratio(found, found.new_tensor(1.5))
    assert ratio.tolist() == pytest.approx(rs, rel=1e-12)
    value = method.objective(student, teacher, LABELS, ratio=ratio)
    (slope,) = torch.autograd.grad(value.sum(), student)
    for row, (q, g, r) in enumerate(zip(qs, gs, rs, strict=True)):
        wanted, slopes = by_hand(q, g, r)
        assert value[row].item() == pytest.approx(wanted, rel=1e-10)
        assert slope[row].tolist() == pytest.approx(slopes, rel=1e-9, abs=1e-12)


def test_limits_are_the_losses_that_everybody_knows():
    student, teacher = given(1)
    none = torch.zeros(N, dtype=torch.float64)
    kd, ce = SelfEvolutionKD(beta=0), SelfEvolutionKD(beta=1)
    found = kd.objective(student, teacher, LABELS, ratio=none)
    torch.testing.assert_close(found, forward_kl(student, teacher))
    found = ce.objective(student, teacher, LABELS, ratio=none)
    torch.testing.assert_close(found, -label_logp(student, LABELS))
    assert torch.equal(ce._ratio(found + 1, found.new_tensor(0.0)) > 0, torch.ones(N).bool())
    off = SelfEvolutionKD(cap=0)
    assert not off._ratio(found + 1, found.new_tensor(0.0)).any()


@pytest.mark.parametrize("ratio", [0.0, 0.6])
def test_nothing_moves_a_student_that_is_the_prior(ratio):
    _, teacher = given(2)
    method = SelfEvolutionKD(beta=0.4)
    prior = torch.tensor(priors(teacher, 0.4), dtype=torch.float64).log().requires_grad_()
    value = method.objective(prior, teacher, LABELS, ratio=torch.full((N,), ratio).double())
    (slope,) = torch.autograd.grad(value.sum(), prior)
    assert value.abs().max() < 1e-14
    assert slope.abs().max() < 1e-14


def test_a_token_as_hard_as_can_be_has_a_bounded_loss_and_a_finite_slope():
    teacher = torch.tensor([[0.0, -1e4, -1e4]])
    student = torch.tensor([[-1e4, 0.0, 0.0]], requires_grad=True)
    method = SelfEvolutionKD()
    label = torch.tensor([0])
    k = method.difficulty(student, teacher, label).detach()
    ratio = method._ratio(k, k.new_tensor(1.0))
    value = method.objective(student, teacher, label, ratio=ratio)
    assert ratio.item() == pytest.approx(0.9)
    assert value.item() == pytest.approx(-math.log(0.9))
    assert torch.autograd.grad(value.sum(), student)[0].isfinite().all()


def test_tokens_that_both_rule_out_are_as_if_absent():
    student, teacher = (x.detach() for x in given(3))
    kept, labels = [0, 2, 3, 5, 6], torch.tensor([0, 2, 3, 4, 1])
    method, ratio = SelfEvolutionKD(), torch.tensor([0.0, 0.5, 0.9, 0.2, 0.0]).double()
    small = student[:, kept].requires_grad_()
    wanted = method.objective(small, teacher[:, kept], labels, ratio=ratio)
    student[:, [1, 4]] = teacher[:, [1, 4]] = -math.inf
    whole, among = student.requires_grad_(), torch.tensor(kept)[labels]
    found = method.objective(whole, teacher, among, ratio=ratio)
    torch.testing.assert_close(found, wanted)
    slopes = [torch.autograd.grad(v.sum(), x)[0] for v, x in ((found, whole), (wanted, small))]
    torch.testing.assert_close(slopes[0][:, kept], slopes[1])
    assert not slopes[0][:, [1, 4]].any()


def test_the_student_cannot_gain_by_finding_a_token_harder(monkeypatch):
    """The slope is that with the ratio held still: difficulty itself has none."""
    method = SelfEvolutionKD(threshold="fixed", tau=0.0, beta=0.2)
    seen = []
    real = SelfEvolutionKD.objective

    def objective(self, student, teacher, labels, ratio=None):
        assert ratio is not None
        seen.append(ratio)
        return real(self, student, teacher, labels, ratio)

    monkeypatch.setattr(SelfEvolutionKD, "objective", objective)
    worlds.steps(worlds.job(method, TEXT, steps=1))
    assert seen
    assert any((ratio > 0).any() for ratio in seen)
    assert not any(ratio.requires_grad for ratio in seen)


@pytest.mark.parametrize(
    "told", [{"threshold": "mean"}, {"threshold": "quantile", "quantile": 0.7}]
)
def test_the_whole_batch_decides_which_tokens_are_hard(told, monkeypatch):
    """Rows count by their weight; the first step's difficulties by hand."""
    batches: list[tuple[Batch, torch.Tensor]] = []
    real = SelfEvolutionKD.prepare

    def prepare(self, run, batch):
        student, teacher = run.ask("student", batch), run.teacher(batch)
        probabilities = [per_row(_softmax(i), student, teacher, batch.labels) for i in range(11)]
        batches.append((real(self, run, batch), torch.stack(probabilities)))
        return batches[-1][0]

    monkeypatch.setattr(SelfEvolutionKD, "prepare", prepare)

    def weighed(batch: Batch) -> Batch:
        return batch.add_rows(
            mask=torch.tensor([0.0, 0.5, 1.0, 1.0])[torch.arange(len(batch.mask)) % 4]
        )

    out = replace(TEXT, change=weighed)
    method = SelfEvolutionKD(beta=0.25, **told)
    logs = worlds.steps(worlds.job(method, out, steps=1)).logs
    (batch, p), counts = batches[0], batches[0][0].mask > 0
    ks = []
    for row, label in enumerate(batch.labels.tolist()):
        q, t = p[:, row, 0].tolist(), p[:, row, 1].tolist()
        ks.append(hardness(q, [0.25 * (v == label) + 0.75 * x for v, x in enumerate(t)]))
    own = [k for k, counted in zip(ks, counts.tolist(), strict=True) if counted]
    weights = batch.mask.tolist()
    tau = sum(w * k for w, k in zip(weights, ks, strict=True)) / sum(weights)
    if "quantile" in told:
        tau = sorted(own)[math.ceil(0.7 * len(own)) - 1]
    wanted = [k / (k + 1) if k > tau + 1e-12 else 0.0 for k in ks]
    assert batch.ratio.tolist() == pytest.approx(wanted, rel=1e-9)
    shown = [r for r, counted in zip(wanted, counts.tolist(), strict=True) if counted]
    assert logs[0]["self_evolution_kd/ratio"] == pytest.approx(statistics.mean(shown))
    hard = logs[0]["self_evolution_kd/hard"]
    assert hard == pytest.approx(sum(r > 0 for r in shown) / len(shown))
    if "quantile" in told:
        assert hard == pytest.approx(0.3, abs=1 / len(own))


def _softmax(column: int):
    return lambda s, t, _: torch.stack([s.softmax(-1)[:, column], t.softmax(-1)[:, column]], -1)
