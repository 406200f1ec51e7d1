"""Optimal transport: against exact plans, by its marginals, and what must not change it."""

import itertools
import math

import pytest
import torch

from stillroom.losses.transport import (
    cosine_cost,
    side_by_side,
    sinkhorn,
    softmax_cost,
    transport,
)

DRAW = torch.Generator()


@pytest.fixture(autouse=True)
def _drawn_anew():
    DRAW.manual_seed(0)


def states(*shape, dtype=torch.float64):
    return torch.randn(*shape, dtype=dtype, generator=DRAW)


def masses(batch, n, *, gone=0):
    """Of uneven sizes; the last ``gone`` are not there."""
    made = 0.2 + torch.rand(batch, n, dtype=torch.float64, generator=DRAW)
    made[:, n - gone :] = 0
    return made


def exact(cost, a, b):
    """The least cost of moving a to b, by linear programming."""
    optimize = pytest.importorskip("scipy.optimize")
    n, m = cost.shape
    rows = [[float(k // m == i) for k in range(n * m)] for i in range(n)]
    columns = [[float(k % m == j) for k in range(n * m)] for j in range(m)]
    wanted = torch.cat([a / a.sum(), b / b.sum()]).tolist()
    return optimize.linprog(cost.flatten().tolist(), A_eq=rows + columns, b_eq=wanted).fun


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_marginals_hold(dtype):
    cost = cosine_cost(states(4, 6, 5, dtype=dtype), states(4, 9, 5, dtype=dtype))
    a, b = masses(4, 6, gone=1), masses(4, 9, gone=2)
    plan = sinkhorn(cost, a.to(dtype), b.to(dtype), eps=0.1)
    assert plan.dtype == dtype
    assert (plan >= 0).all()
    for axis, mass in ((2, a), (1, b)):
        gap = plan.sum(axis).double() - mass / mass.sum(-1, keepdim=True)
        assert gap.abs().max() < 1e-4
    assert plan[:, 5].abs().max() == 0
    assert plan[:, :, 7:].abs().max() == 0


def test_the_plan_is_the_best_of_its_kind():
    """No plan with these marginals has a lower ``<T, C> + eps sum T log T``."""
    cost, a, b = cosine_cost(states(1, 4, 3), states(1, 5, 3)), masses(1, 4), masses(1, 5)
    plan = sinkhorn(cost, a, b, eps=0.1, iterations=1000)

    def target(plan):
        return float((plan * cost + 0.1 * torch.special.xlogy(plan, plan)).sum())

    least = target(plan)
    for i, j, k, h in [(0, 1, 0, 1), (1, 3, 2, 4), (2, 0, 3, 1), (3, 2, 4, 0)]:
        four = ((i, k, 1), (i, h, -1), (j, k, -1), (j, h, 1))
        most = min(float(plan[0, row, column]) for row, column, _ in four)
        for step in (most / 2, -most / 2):  # the marginals stay
            other = plan.clone()
            for row, column, sign in four:
                other[0, row, column] += sign * step
            assert target(other) > least


def test_a_small_eps_comes_near_the_exact_distance():
    optimize = pytest.importorskip("scipy.optimize")
    cost = cosine_cost(states(3, 5, 4), states(3, 7, 4))
    a, b = masses(3, 5), masses(3, 7)
    found = transport(cost, a, b, eps=0.002, iterations=20000)
    for i in range(3):
        least = exact(cost[i], a[i], b[i])
        assert -1e-6 < float(found[i]) - least < 0.01
    one = torch.ones(3, 5).double()
    found = transport(cost[:, :, :5], one, one, eps=0.002, iterations=20000)
    for i in range(3):
        rows, columns = optimize.linear_sum_assignment(cost[i, :, :5].numpy())
        assert float(found[i]) == pytest.approx(float(cost[i][rows, columns].mean()), abs=0.01)


def test_more_eps_spreads_the_plan_up_to_evenly():
    cost, one = cosine_cost(states(2, 4, 3), states(2, 4, 3)), torch.ones(2, 4).double()
    found = [transport(cost, one, one, eps=e, iterations=5000) for e in (0.01, 0.1, 1, 1e4)]
    for less, more in itertools.pairwise(found):
        assert (more > less).all()
    torch.testing.assert_close(found[-1], cost.mean((1, 2)), rtol=1e-4, atol=0)


def test_identical_sequences_are_at_no_distance():
    u, one = states(3, 6, 8), torch.ones(3, 6).double()
    found = transport(cosine_cost(u, u), one, one, eps=0.005, iterations=2000)
    assert found.abs().max() < 1e-4
    turned = transport(cosine_cost(u, -u), one, one, eps=0.005, iterations=2000)
    assert turned.min() > 0.5


@pytest.mark.parametrize("kind", ["cosine", "softmax"])
@pytest.mark.parametrize("unroll", [False, True])
def test_the_order_of_states_is_of_no_account(kind, unroll):
    u, v, b = states(2, 4, 5), states(2, 6, 5), masses(2, 6)
    a = torch.ones(2, 4).double()
    order = torch.randperm(6, generator=DRAW)
    said = [distance(kind, u, x, a, y, unroll) for x, y in ((v, b), (v[:, order], b[:, order]))]
    torch.testing.assert_close(*said)


def distance(kind, u, v, a, b, unroll=False):
    cost = cosine_cost(u, v) if kind == "cosine" else softmax_cost(u, v, b)
    return transport(cost, a, b, unroll=unroll)


@pytest.mark.parametrize("kind", ["cosine", "softmax"])
@pytest.mark.parametrize("unroll", [False, True])
def test_padding_and_company_change_nothing(kind, unroll):
    """Values and gradients of an example alone, and among longer ones with anything as padding."""
    lengths = [(2, 5), (4, 3), (1, 1), (3, 6)]
    pairs = [(states(n, 4), states(m, 4)) for n, m in lengths]
    u, v = torch.full((4, 5, 4), 7.0).double(), torch.full((4, 8, 4), -9.0).double()
    a, b = torch.zeros(4, 5).double(), torch.zeros(4, 8).double()
    for i, (x, y) in enumerate(pairs):
        u[i, 1 : 1 + len(x)], a[i, 1 : 1 + len(x)] = x, 1
        v[i, : len(y)], b[i, : len(y)] = y, 1
    u.requires_grad_()
    together = distance(kind, u, v, a, b, unroll)
    (slopes,) = torch.autograd.grad(together.sum(), u)
    assert slopes[a == 0].abs().max() == 0
    for i, (x, y) in enumerate(pairs):
        alone = x[None].clone().requires_grad_()
        even = [torch.ones(1, len(z)).double() for z in (x, y)]
        found = distance(kind, alone, y[None], *even, unroll)
        assert float(together[i].detach()) == pytest.approx(float(found.detach()), abs=1e-12)
        (slope,) = torch.autograd.grad(found.sum(), alone)
        torch.testing.assert_close(slopes[i, 1 : 1 + len(x)], slope[0], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("unroll", [False, True])
def test_an_example_without_states_counts_nothing_and_pulls_nowhere(unroll):
    u, v = states(3, 4, 5).requires_grad_(), states(3, 2, 5)
    a, b = torch.ones(3, 4).double(), torch.ones(3, 2).double()
    a[0], b[1] = 0, 0
    for kind in ("cosine", "softmax"):
        found = distance(kind, u, v, a, b, unroll)
        assert found[:2].tolist() == [0, 0]
        assert found[2] > 0
        (slope,) = torch.autograd.grad(found.sum(), u)
        assert slope[:2].abs().max() == 0
        assert torch.isfinite(slope).all()


def test_gradients_take_the_plan_as_given_or_not():
    cost = cosine_cost(states(1, 3, 4), states(1, 4, 4)).requires_grad_()
    a, b = masses(1, 3), masses(1, 4)
    plan = sinkhorn(cost.detach(), a, b)
    (given,) = torch.autograd.grad(transport(cost, a, b).sum(), cost)
    torch.testing.assert_close(given, plan)
    (whole,) = torch.autograd.grad(transport(cost, a, b, unroll=True).sum(), cost)
    for i, j in ((0, 0), (2, 3), (1, 2)):
        step = torch.zeros_like(cost)
        step[0, i, j] = 1e-5
        high, low = (transport(cost.detach() + s, a, b, iterations=1000) for s in (step, -step))
        assert float(whole[0, i, j]) == pytest.approx(float((high - low) / 2e-5), rel=1e-4)
    assert (whole - given).abs().max() > 1e-3


def test_iterations_and_stop_end_it():
    cost, one = cosine_cost(states(2, 5, 3), states(2, 5, 3)), torch.ones(2, 5).double()

    def missed(**told):
        return float((sinkhorn(cost, one, one, **told).sum(2) - 0.2).abs().sum(1).max())

    assert missed(iterations=1) > 1e-2
    assert missed(iterations=1000, stop=1e-3) < 1e-3
    assert missed(iterations=1000, stop=1e-3) > 1e-9 > missed(iterations=1000)


def test_the_softmax_is_over_what_is_there():
    u, v = states(1, 2, 4), states(1, 3, 4)
    cost = softmax_cost(u, v, torch.tensor([[1.0, 0.0, 2.0]]))[0]
    for i in range(2):
        scores = [math.exp(float(u[0, i] @ v[0, j]) / 2) for j in (0, 2)]
        assert cost[i].tolist() == pytest.approx(
            [1 - scores[0] / sum(scores), 1, 1 - scores[1] / sum(scores)]
        )


def test_costs_and_plans_of_half_precision_are_at_least_float32():
    u, v, one = (states(1, 3, 4, dtype=torch.float32) for _ in range(2)), None, torch.ones(1, 3)
    u, v = (x.bfloat16() for x in u)
    with torch.autocast("cpu", torch.bfloat16):
        costs = [cosine_cost(u, v), softmax_cost(u, v, one)]
        plan = sinkhorn(costs[0], one, one)
    exactly = [cosine_cost(u.double(), v.double()), softmax_cost(u.double(), v.double(), one)]
    for cost, wanted in zip(costs, exactly, strict=True):
        assert cost.dtype == torch.float32
        assert (cost - wanted).abs().max() < 1e-5
    assert plan.dtype == torch.float32


def test_rows_come_side_by_side():
    values = states(6, 2).requires_grad_()
    owner = torch.tensor([0, 0, 0, 2, 3, 3])
    made = side_by_side(values, owner, 5)
    assert made.shape == (5, 3, 2)
    for example, rows in enumerate([[0, 1, 2], [], [3], [4, 5], []]):
        assert torch.equal(made[example, : len(rows)], values[rows])
        assert made[example, len(rows) :].abs().sum() == 0
    made.sum().backward()
    assert values.grad is not None
    assert (values.grad == 1).all()
    assert side_by_side(values[:0], owner[:0], 2).shape == (2, 1, 2)
