"""SinKD against plain exponentials in Python floats, an exact assignment, and its limits."""

import math

import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from stillroom.core import Batch, Signals
from stillroom.methods.kd import KD
from stillroom.methods.sinkd import SinKD

B, C = 6, 4
LABELS = torch.tensor([0, 3, 1, 2, 0, 3])


def scores(seed: int = 0, size: float = 2.0, b: int = B) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    own, theirs = (size * torch.randn(b, C, generator=draw, dtype=torch.float64) for _ in "st")
    return own, theirs


def terms(method: SinKD, own: Tensor, theirs: Tensor, mask: Tensor | None = None) -> dict:
    b = len(own)
    mask = torch.ones(b) if mask is None else mask
    batch = Batch(id=torch.arange(b), labels=LABELS[:b], mask=mask)
    told = method.loss(Signals(logits=own), Signals(logits=theirs), batch, {})
    return {term.name: term for term in told}


def distance(method: SinKD, own: Tensor, theirs: Tensor) -> Tensor:
    return terms(method, own, theirs)["sinkhorn"].value.mean()


def probabilities(row: list[float], temperature: float) -> list[float]:
    weight = [math.exp(z / temperature) for z in row]
    return [w / sum(weight) for w in weight]


def by_loops(own: list, theirs: list, temperature: float, lam: float, n: int) -> float:
    """The paper's procedure as it is written: exponentials, not logarithms."""
    p, q = ([probabilities(row, temperature) for row in side] for side in (own, theirs))
    b = len(p)
    cost = [[sum(abs(x - y) for x, y in zip(u, v, strict=True)) for v in q] for u in p]
    kernel = [[math.exp(-c / lam) for c in row] for row in cost]
    for _ in range(n):
        kernel = [[k / sum(row) for k in row] for row in kernel]
        sums = [sum(row[j] for row in kernel) for j in range(b)]
        kernel = [[k / s for k, s in zip(row, sums, strict=True)] for row in kernel]
    return sum(kernel[i][j] * cost[i][j] for i in range(b) for j in range(b)) / b


@pytest.mark.parametrize(("temperature", "lam", "n"), [(2.0, 0.1, 20), (1.0, 0.5, 1), (3, 0.2, 2)])
def test_value_and_gradient_by_loops(temperature: float, lam: float, n: int) -> None:
    own, theirs = scores()
    method = SinKD(temperature=temperature, lam=lam, iterations=n)
    own.requires_grad_()
    value = distance(method, own, theirs)
    rows, other = own.tolist(), theirs.tolist()
    assert value.item() == pytest.approx(by_loops(rows, other, temperature, lam, n), rel=1e-12)
    (slope,) = torch.autograd.grad(value, own)
    step = 1e-6
    for i in range(B):
        for c in range(C):
            ends = []
            for sign in (1, -1):
                moved = [list(row) for row in rows]
                moved[i][c] += sign * step
                ends.append(by_loops(moved, other, temperature, lam, n))
            wanted = (ends[0] - ends[1]) / (2 * step)
            assert float(slope[i, c]) == pytest.approx(wanted, rel=1e-5, abs=1e-9)


def test_the_other_part_is_kd_and_the_weights_are_those_of_the_formula() -> None:
    own, theirs = scores()
    told = terms(SinKD(temperature=3.0, label_weight=0.3, sinkhorn_weight=0.7), own, theirs)
    assert {name: term.weight for name, term in told.items()} == {"kd": 1.0, "sinkhorn": 0.7}
    plain = KD(temperature=3.0, label_weight=0.3).objective(own, theirs, LABELS)
    torch.testing.assert_close(told["kd"].value, plain, rtol=1e-12, atol=0)
    assert set(terms(SinKD(sinkhorn_weight=0.0), own, theirs)) == {"kd"}


def test_a_lone_example_pays_its_own_distance() -> None:
    own, theirs = scores(b=1)
    p, q = (probabilities(z[0].tolist(), 2.0) for z in (own, theirs))
    wanted = sum(abs(x - y) for x, y in zip(p, q, strict=True))
    assert float(distance(SinKD(), own, theirs)) == pytest.approx(wanted, rel=1e-12)


def test_it_is_a_distance_of_sets() -> None:
    """In whichever order either side comes; each example carries its own share along."""
    own, theirs = scores()
    turned = torch.tensor([3, 0, 5, 1, 4, 2])
    value = terms(SinKD(), own, theirs)["sinkhorn"].value
    together = terms(SinKD(), own[turned], theirs[turned])["sinkhorn"].value
    torch.testing.assert_close(together, value[turned], rtol=1e-9, atol=0)
    # to as much as twenty iterations come to
    torch.testing.assert_close(
        distance(SinKD(), own, theirs[turned]), value.mean(), rtol=1e-9, atol=0
    )


@pytest.mark.parametrize("seed", range(3))
def test_towards_a_sharp_plan_it_is_the_best_assignment(seed: int) -> None:
    own, theirs = scores(seed)
    p, q = ((z / 2).softmax(-1) for z in (own, theirs))
    cost = (p[:, None] - q[None]).abs().sum(-1)
    best = float(cost[linear_sum_assignment(cost.numpy())].mean())
    sharper = [SinKD(lam=lam, iterations=2000) for lam in (0.1, 0.02, 0.004)]
    gaps = [abs(float(distance(method, own, theirs)) - best) for method in sharper]
    assert gaps[0] > gaps[1] > gaps[2]
    assert gaps[2] < 5e-4
    assert float(cost.diagonal().mean()) > best + 0.01  # not each example beside its own


def test_alike_is_above_zero_for_the_plan_is_blurred() -> None:
    own, _ = scores()
    assert float(distance(SinKD(), own, own)) > 1e-4
    assert float(distance(SinKD(lam=1e-3), own, own)) < 1e-6


def test_the_teacher_does_not_learn_and_a_sharp_plan_does_not_underflow() -> None:
    own, theirs = (z.float().requires_grad_() for z in scores(size=30.0))
    value = distance(SinKD(lam=1e-3), own, theirs)
    slope, none = torch.autograd.grad(value, (own, theirs), allow_unused=True)
    assert none is None
    assert torch.isfinite(value)
    assert torch.isfinite(slope).all()


def test_examples_that_a_mask_leaves_out_take_no_part() -> None:
    own, theirs = scores()
    mask = torch.tensor([1.0, 0.0, 1.0, 1.0, 0.0, 1.0])
    value = terms(SinKD(), own, theirs, mask)["sinkhorn"].value
    kept = mask > 0
    alone = SinKD().moved(own[kept], theirs[kept], torch.ones(4, dtype=torch.bool))
    torch.testing.assert_close(value[kept], alone, rtol=1e-9, atol=0)
    assert value[~kept].abs().sum() == 0
    nobody = terms(SinKD(), own, theirs, torch.zeros(B))["sinkhorn"].value
    assert nobody.abs().sum() == 0


def test_the_surer_both_are_of_other_classes_the_less_the_distance_pulls() -> None:
    """Beside KL, whose pull stays."""
    shares = []
    for size in (1.0, 10.0, 100.0):
        own, _ = scores(size=size)
        theirs = own.roll(1, -1)
        own.requires_grad_()
        told = terms(SinKD(temperature=1.0, label_weight=0.0), own, theirs)
        pulls = [
            torch.autograd.grad(told[part].value.mean(), own)[0].norm().item()
            for part in ("kd", "sinkhorn")
        ]
        shares.append(pulls[1] / pulls[0])
    assert shares[0] > 4 * shares[2]
    assert shares[1] > 2 * shares[2]
