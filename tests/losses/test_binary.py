"""Logits compared class by class, against another formula."""

import math

import pytest
import torch
from numerics import contract, note
from worlds import gap

from stillroom.losses.binary import binary_kl_norm


def draw(*shape, seed=0):
    made = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=made, dtype=torch.float64) * 3


@contract
def test_it_is_the_log_of_a_hyperbolic_cosine_and_its_slope_a_bounded_one():
    student, teacher = draw(4, 5).requires_grad_(), draw(4, 5, seed=1)
    found = binary_kl_norm(student, teacher)
    wanted = [
        sum(math.log(math.cosh(float(a - b) / 2)) for a, b in zip(s, t, strict=True))
        for s, t in zip(student.detach(), teacher, strict=True)
    ]
    note("binary_kl_norm", "oracle", gap(found.tolist(), wanted), 1e-12)
    (slope,) = torch.autograd.grad(found.sum(), student)
    on_paper = torch.tanh((student.detach() - teacher) / 2) / 2
    note("binary_kl_norm", "gradient", gap(slope, on_paper), 1e-12)


def test_it_is_zero_at_the_teacher_s_logits_alone_and_sees_a_constant():
    z = draw(4, 5)
    assert binary_kl_norm(z, z).abs().max() < 1e-15
    moved = binary_kl_norm(z + 1, z)
    assert moved.tolist() == pytest.approx([5 * math.log(math.cosh(0.5))] * 4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_far_logits_have_a_finite_value_and_half_a_slope(dtype):
    student = torch.tensor([[1e4, -1e4, 0.0]], dtype=dtype, requires_grad=True)
    value = binary_kl_norm(student, torch.zeros(1, 3, dtype=dtype))
    value.sum().backward()
    assert value.item() == pytest.approx(1e4 - 2 * math.log(2), rel=1e-2)
    assert student.grad.float().tolist() == [[0.5, -0.5, 0.0]]
