"""Targets of few tokens: each against its formula, token by token."""

import math

import pytest
import torch
import worlds

from stillroom.core import Failure
from stillroom.engine.run import Run
from stillroom.losses.divergences import forward_kl
from stillroom.losses.sparse import draws, top_k
from stillroom.methods.rskd import RSKD

N, V, K = 4, 9, 3
TEXT = worlds.World(kind="text", exact=True)


def given(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    student, teacher = (2 * torch.randn(N, V, dtype=torch.float64, generator=draw) for _ in "st")
    return student.requires_grad_(), teacher, torch.tensor([0, 3, 5, 8])


def by_hand(target: str, t: list[float], p: list[float], label: int) -> float:
    """One row's loss in plain numbers."""
    named = sorted(range(V), key=lambda v: -t[v])[:K]
    a = sum(t[v] for v in named)
    if target == "topk":
        return sum(t[v] * math.log(t[v] / p[v]) for v in named)
    if target == "renormalised":
        return sum(t[v] / a * math.log(t[v] / a / p[v]) for v in named)
    if target == "smoothed":
        goal = [t[v] if v in named else (1 - a) / (V - K) for v in range(V)]
        return sum(g * math.log(g / q) for g, q in zip(goal, p, strict=True))
    if target == "ghost":
        left = 1 - sum(p[v] for v in named)
        known = sum(t[v] * math.log(t[v] / p[v]) for v in named)
        return known + (1 - a) * math.log((1 - a) / left)
    assert target == "naive"
    known = sum(t[v] * math.log(t[v] / p[v]) for v in named)
    return known - (1 - a) * math.log(p[label])


@pytest.mark.parametrize("weight", [0.0, 0.3])
@pytest.mark.parametrize("target", ["topk", "renormalised", "smoothed", "ghost", "naive"])
def test_the_likeliest_tokens_by_hand(target, weight):
    student, teacher, labels = given()
    method = RSKD(target=target, top_k=K, label_weight=weight)
    found = method.objective(student, teacher, labels)
    probabilities = [x.softmax(-1).tolist() for x in (teacher, student)]
    for row, (t, p) in enumerate(zip(*probabilities, strict=True)):
        label = int(labels[row])
        wanted = (1 - weight) * by_hand(target, t, p, label) - weight * math.log(p[label])
        assert found[row].item() == pytest.approx(wanted, rel=1e-9)
    stored = method.objective(student, top_k(teacher, K), labels)
    torch.testing.assert_close(stored, found)


def test_raw_top_k_is_over_confident_where_draws_are_not():
    """The optimum of the first is t / a on K alone: no gradient there, where forward KL has one."""
    _, teacher, labels = given()
    t = teacher.softmax(-1)
    kept = top_k(teacher, K)
    lost = torch.full_like(t, -60.0).scatter(-1, kept.ids, kept.logp).requires_grad_()
    slope = torch.autograd.grad(
        RSKD(target="topk", top_k=K).objective(lost, teacher, labels).sum(), lost
    )
    assert slope[0].abs().max() < 1e-12
    exact = torch.autograd.grad(forward_kl(lost, teacher).sum(), lost)
    assert exact[0].abs().max() > 0.01


def test_many_draws_come_to_forward_kl_and_few_do_on_average():
    student, teacher, labels = given()
    numbers = torch.rand(N, 200_000, generator=torch.Generator().manual_seed(0))
    method = RSKD()
    many = method.objective(student, teacher, labels, uniform=numbers)
    wanted = forward_kl(student, teacher)
    torch.testing.assert_close(many, wanted, rtol=0.02, atol=0.01)
    slope, exact = (torch.autograd.grad(v.sum(), student)[0] for v in (many, wanted))
    torch.testing.assert_close(slope, exact, rtol=0, atol=0.01)
    few = numbers.view(N, 20_000, 10)
    copies = [x.unsqueeze(1).expand(N, 20_000, -1).reshape(-1, V) for x in (student, teacher)]
    value = method.objective(*copies, labels.repeat_interleave(20_000), few.reshape(-1, 10))
    (mean,) = torch.autograd.grad(value.sum() / 20_000, student)
    torch.testing.assert_close(mean, exact, rtol=0, atol=0.01)


@pytest.mark.parametrize("proposal", [0.7, 1.0])
def test_an_error_of_the_gradient_falls_as_one_over_the_root_of_draws(proposal):
    """The expected square of it is the variance of w over n, in closed form."""
    _, teacher, _ = given(3)
    t = teacher.softmax(-1)[:1]
    q = (t**proposal) / (t**proposal).sum()
    spread = float((t**2 / q).sum() - (t**2).sum())
    for n in (4, 64):
        numbers = torch.rand(4000, n, generator=torch.Generator().manual_seed(n))
        told = draws(teacher[:1].expand(4000, V), numbers, proposal=proposal)
        w = torch.zeros(4000, V, dtype=torch.float64).scatter_add_(-1, told.ids, told.logp.exp())
        error = float((w - t).square().sum(-1).mean())
        assert error == pytest.approx(spread / n, rel=0.1)


def test_draws_are_those_of_step_sample_and_place(monkeypatch):
    """However the batch is padded and split, and others in each step."""
    seen: list[torch.Tensor] = []
    real = RSKD.prepare

    def prepare(self: RSKD, run: Run, batch):
        made = real(self, run, batch)
        seen.append(made["uniform"])
        for i in range(made.size):
            alone = real(self, run, batch.part(i, i + 1))
            assert torch.equal(made.part(i, i + 1)["uniform"], alone["uniform"])
        return made

    monkeypatch.setattr(RSKD, "prepare", prepare)
    worlds.steps(worlds.job(RSKD(draws=3), TEXT, steps=2))
    assert seen[0].shape[1] == 3
    assert len(torch.unique(torch.cat(seen))) == torch.cat(seen).numel()


@pytest.mark.parametrize(("target", "kind"), [("sampled", "topk"), ("ghost", "sampled")])
def test_a_store_of_the_other_kind_is_refused(target, kind):
    class Teacher:
        signals, fresh = frozenset({kind, "sparse"}), False

    with pytest.raises(Failure, match=f"the target '{target}' cannot be made of"):
        RSKD(target=target).check(Teacher())
