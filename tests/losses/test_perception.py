"""Standardised columns: against batch normalisation, and what they cannot see."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from stillroom.losses.perception import perception

B, C = 7, 4
seeds = st.integers(0, 2**31)


def drawn(seed: int = 0) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    return 3 * torch.randn(B, C, generator=draw, dtype=torch.float64) + torch.arange(C)


def test_it_is_batch_normalisation_in_value_and_gradient():
    logits, weight = drawn().requires_grad_(), drawn(1)
    wanted = F.batch_norm(logits, None, None, training=True, eps=0.3)
    found = perception(logits, eps=0.3)
    torch.testing.assert_close(found, wanted)
    slopes = [torch.autograd.grad((x * weight).sum(), logits)[0] for x in (found, wanted)]
    torch.testing.assert_close(*slopes)


@given(seed=seeds, shift=st.floats(-30, 30), scale=st.floats(0.1, 30))
def test_what_is_done_to_a_whole_class_is_gone(seed, shift, scale):
    logits, far = drawn(seed), torch.linspace(-1, 1, C).double()
    moved = logits * (scale * (2 + far)) + shift * far
    found, wanted = (perception(z, eps=1e-12) for z in (moved, logits))
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-8)
    turned = perception(-logits, eps=1e-12)
    torch.testing.assert_close(turned, -wanted, rtol=1e-6, atol=1e-8)


def test_what_is_done_to_a_whole_example_is_not():
    logits = drawn()
    moved = logits.clone()
    moved[2] += 1.0
    assert (perception(moved) - perception(logits)).abs().max() > 0.1


def test_columns_have_mean_0_and_variance_1():
    found = perception(drawn(), eps=1e-12)
    torch.testing.assert_close(found.mean(0), torch.zeros(C).double())
    torch.testing.assert_close(found.var(0, correction=0), torch.ones(C).double())


@pytest.mark.parametrize("logits", [drawn()[:1], torch.full((B, C), 3.0).double()])
def test_where_all_are_alike_nobody_stands_out(logits):
    logits = logits.clone().requires_grad_()
    found = perception(logits)
    assert not found.any()
    (slope,) = torch.autograd.grad((found * drawn(2)[: len(logits)]).sum(), logits)
    assert slope.isfinite().all()
    assert slope.abs().max() < 3 * 10 / 1e-5**0.5


def test_half_precision_is_computed_in_float32():
    low = drawn().bfloat16()
    assert perception(low).dtype == torch.float32
    torch.testing.assert_close(perception(low).double(), perception(low.double()))
