"""Rankings: choice after choice in plain numbers, and what the likelihood of an order must keep."""

import itertools
import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from stillroom.losses.ranking import label_first, plackett_luce

N, C = 5, 6
seeds = st.integers(0, 2**31)


def drawn(seed: int = 0, n: int = N, c: int = C) -> tuple[Tensor, Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    scores = 2 * torch.randn(n, c, generator=draw, dtype=torch.float64)
    order = torch.rand(n, c, generator=draw).argsort(-1)
    return scores.requires_grad_(), order, torch.rand(n, c, generator=draw, dtype=torch.float64)


def by_choices(scores: list[float], order: list[int], weight: list[float]) -> float:
    """One is taken after the other, each by its share of what is left."""
    left, value = set(range(len(scores))), 0.0
    for place, chosen in enumerate(order):
        total = sum(math.exp(scores[c]) for c in left)
        value -= weight[place] * math.log(math.exp(scores[chosen]) / total)
        left.remove(chosen)
    return value


def slope_by_places(scores: list[float], order: list[int], weight: list[float]) -> list[float]:
    """The formula on paper: places up to i by the softmax of what was left there, less w_i."""
    slope = [0.0] * len(scores)
    for i, one in enumerate(order):
        slope[one] = -weight[i]
        for k in range(i + 1):
            total = sum(math.exp(scores[c]) for c in order[k:])
            slope[one] += weight[k] * math.exp(scores[one]) / total
    return slope


def test_value_and_gradient_by_loops_over_places():
    scores, order, weight = drawn()
    found = plackett_luce(scores, order, weight)
    rows = list(zip(scores.tolist(), order.tolist(), weight.tolist(), strict=True))
    wanted = torch.tensor([by_choices(*row) for row in rows], dtype=torch.float64)
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)
    (slope,) = torch.autograd.grad(found.sum(), scores)
    on_paper = torch.tensor([slope_by_places(*row) for row in rows], dtype=torch.float64)
    torch.testing.assert_close(slope, on_paper, rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(slope.sum(-1), torch.zeros(N).double(), rtol=0, atol=1e-12)


def test_all_rankings_together_are_certain():
    scores, _, _ = drawn(n=1, c=4)
    orders = torch.tensor(list(itertools.permutations(range(4))))
    value = plackett_luce(scores.expand(24, -1), orders, torch.ones(4))
    assert float((-value).exp().sum().detach()) == pytest.approx(1, rel=1e-12)


def test_all_weight_on_the_first_is_cross_entropy():
    scores, order, _ = drawn()
    first = torch.tensor([1.0] + [0.0] * (C - 1))
    values = [plackett_luce(scores, order, first)]
    values.append(F.cross_entropy(scores, order[:, 0], reduction="none"))
    torch.testing.assert_close(*values, rtol=1e-13, atol=1e-13)
    slopes = [torch.autograd.grad(v.sum(), scores)[0] for v in values]
    torch.testing.assert_close(*slopes, rtol=1e-12, atol=1e-13)


def test_the_weight_of_the_last_place_is_nothing():
    scores, order, weight = drawn()
    changed = weight.clone()
    changed[:, -1] += 5
    torch.testing.assert_close(
        plackett_luce(scores, order, changed), plackett_luce(scores, order, weight)
    )


@given(seed=seeds, shift=st.floats(-50, 50))
def test_a_number_added_to_all_changes_nothing(seed, shift):
    scores, order, weight = drawn(seed)
    moved = plackett_luce(scores + shift, order, weight)
    torch.testing.assert_close(moved, plackett_luce(scores, order, weight))


@given(seed=seeds)
def test_it_is_convex_and_flat_along_a_shift_alone(seed):
    scores, order, weight = (x.detach() for x in drawn(seed, n=1))
    curved: Any = torch.autograd.functional.hessian(
        lambda s: plackett_luce(s[None], order, weight + 0.01)[0], scores[0]
    )
    bent = torch.linalg.eigvalsh(curved)
    assert bent[0].abs() < 1e-10
    assert bent[1] > 0
    assert (curved @ torch.ones(C).double()).abs().max() < 1e-10


def test_further_apart_in_the_right_order_is_always_better():
    scores = torch.arange(C, 0, -1).double()[None]
    order = torch.arange(C)[None]
    values = [float(plackett_luce(k * scores, order, torch.ones(C))) for k in (1, 2, 4, 8)]
    assert values == sorted(values, reverse=True)
    assert values[-1] > 0


def test_the_first_of_equals_is_the_lower_index_and_the_label_before_all():
    scores = torch.tensor([[1.0, 1.0, 2.0, 2.0], [1.0, 1.0, 2.0, 2.0], [0.0, 0.0, -9.0, 0.0]])
    found = label_first(scores, torch.tensor([1, 3, 2]))
    assert found.tolist() == [[1, 2, 3, 0], [3, 2, 0, 1], [2, 0, 1, 3]]
    many = label_first(torch.zeros(1, 5000), torch.tensor([7]))
    assert many.tolist() == [[7, *range(7), *range(8, 5000)]]


def test_scores_far_apart_are_finite_and_right():
    far = torch.tensor([[1e4, -1e4, 0.0]]).requires_grad_()
    found = plackett_luce(far, torch.tensor([[1, 2, 0]]), torch.tensor([0.5, 0.25, 1.0]))
    assert float(found.detach()) == pytest.approx(0.5 * 2e4 + 0.25 * 1e4)
    (slope,) = torch.autograd.grad(found.sum(), far)
    torch.testing.assert_close(slope, torch.tensor([[0.75, -0.5, -0.25]]), rtol=1e-3, atol=0)


def test_many_classes_in_half_precision_are_summed_in_float32():
    scores, order, weight = (x.detach() for x in drawn(n=2, c=3000))
    low = scores.half()
    assert plackett_luce(low, order, weight.half()).dtype == torch.float32
    first = torch.tensor([1.0] + [0.0] * 2999)
    for told in (first, weight):
        found, wanted = (plackett_luce(s, order, told) for s in (low, low.double()))
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=0, check_dtype=False)
    slopes = [
        torch.autograd.grad(plackett_luce(s.requires_grad_(), order, weight.to(s)).sum(), s)[0]
        for s in (low.float(), low.double())
    ]
    torch.testing.assert_close(slopes[0].double(), slopes[1], rtol=1e-4, atol=1e-5)
