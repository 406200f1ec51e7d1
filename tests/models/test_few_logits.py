"""The head for a few states without a gradient: the same logits by another product."""

from dataclasses import replace

import pytest
import torch

from stillroom.core import Head
from stillroom.models.heads import few_logits

V, D = 20011, 64


def head(**told):
    noise = torch.Generator().manual_seed(0)
    return Head(torch.randn(V, D, generator=noise) * 3, **told)


def states(n):
    """[n, D]: the last column of a batch, as sampling reads it."""
    return torch.randn(n, 5, D, generator=torch.Generator().manual_seed(n))[:, -1]


CASES = {
    "plain": {},
    "bias": {"bias": torch.linspace(-9, 9, V)},
    "all": {"bias": torch.linspace(-9, 9, V), "scale": 0.3, "soft_cap": 20.0},
}


def refuse(*_given):
    raise AssertionError("not by this way")


@pytest.mark.parametrize("n", [1, 3, 8, 33])
@pytest.mark.parametrize("case", CASES)
def test_the_other_product_gives_the_logits_of_float64(n, case, monkeypatch):
    of, read = head(**CASES[case]), states(n)
    wanted = read.double() @ of.weight.double().T
    if of.bias is not None:
        wanted = (wanted + of.bias.double()) * of.scale
    if of.soft_cap is not None:
        wanted = of.soft_cap * torch.tanh(wanted / of.soft_cap)
    monkeypatch.setattr(Head, "logits", refuse)
    with torch.no_grad():
        found = few_logits(of, read)
    assert found.shape == (n, V)
    assert found.is_contiguous()
    torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=2e-4)


def test_weights_in_half_precision_are_read_as_the_states_are():
    of, read = head(), states(4)
    of = replace(of, weight=of.weight.bfloat16())
    with torch.no_grad():
        found = few_logits(of, read)
    torch.testing.assert_close(
        found.double(), read.double() @ of.weight.double().T, atol=2e-4, rtol=0
    )


def test_a_gradient_goes_through_where_one_is_wanted():
    of, read = head(), states(2)
    read.requires_grad_()
    few_logits(of, read)[:, 7].sum().backward()
    assert read.grad is not None
    assert torch.equal(read.grad, of.weight[7].expand(2, -1))


@pytest.mark.parametrize("case", ["float64", "bfloat16", "small", "no oneDNN"])
def test_what_the_other_product_is_not_for_is_the_head_s_own(case, monkeypatch):
    of, read = head(), states(3)
    if case == "small":
        of = replace(of, weight=of.weight[:1000])
    elif case == "no oneDNN":
        monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    else:
        kind = getattr(torch, case)
        of, read = replace(of, weight=of.weight.to(kind)), read.to(kind)
    with torch.no_grad():
        found = few_logits(of, read)
        assert found.dtype == read.dtype
        assert torch.equal(found, of.logits(read))
