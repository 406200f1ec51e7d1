"""Token graphs against loops over lists, in float64."""

import math

import pytest
import torch

from stillroom.core import Failure
from stillroom.losses.token_graph import (
    aligned,
    context,
    contrast,
    grid,
    local,
    neighbours,
    overlap,
)

M, K, T = 8, 3, 0.3
IMAGE = torch.tensor([0, 0, 1, 1, 1, 2, 2, 3])


def draw(*shape, seed=0):
    made = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=made, dtype=torch.float64)


def cosine(a, b):
    dot = sum(x * y for x, y in zip(a, b, strict=True))
    return dot / math.hypot(*a) / math.hypot(*b)


def softmax(row):
    weight = [math.exp(z) for z in row]
    return [w / sum(weight) for w in weight]


def kl(p, q):
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def near_by_loops(tokens, k=K):
    told = []
    for i, one in enumerate(tokens):
        others = [j for j in range(M) if IMAGE[j] != IMAGE[i]]
        told.append(sorted(others, key=lambda j: -cosine(one, tokens[j]))[:k])
    return told


def test_neighbours_are_those_of_other_images():
    tokens = draw(M, 4)
    tokens[1] = tokens[0] + 0.01 * tokens[2]  # most alike, but of the same image
    assert neighbours(tokens, IMAGE, K).tolist() == near_by_loops(tokens.tolist())


def test_neighbours_are_as_many_as_every_token_has():
    # the three tokens of image 1 have five others
    assert neighbours(draw(M, 4), IMAGE, 7).shape == (M, 5)
    assert neighbours(draw(M, 4), torch.zeros(M), 7).shape == (M, 0)


def test_local_by_loops():
    v, u = draw(M, 3), draw(M, 5, seed=1)
    near = near_by_loops(u.tolist())
    wanted = []
    for i in range(M):
        a, b = (
            softmax([cosine(x[i], x[j]) / T for j in near[i]]) for x in (u.tolist(), v.tolist())
        )
        wanted.append(kl(a, b))
    found = local(v, u, torch.tensor(near), T)
    assert found.tolist() == pytest.approx(wanted, rel=1e-12)
    assert min(wanted) > 0


def test_local_without_neighbours_is_zero():
    v = draw(M, 3).requires_grad_()
    value = local(v, draw(M, 3, seed=1), torch.zeros(M, 0, dtype=torch.long), T)
    assert value.tolist() == [0] * M
    (slope,) = torch.autograd.grad(value.sum(), v)
    assert not slope.any()


def test_contrast_by_loops():
    v, u = draw(M, 3).tolist(), draw(M, 3, seed=1).tolist()
    wanted = [-math.log(softmax([cosine(v[i], x) / T for x in u])[i]) for i in range(M)]
    found = contrast(torch.tensor(v).double(), torch.tensor(u).double(), T)
    assert found.tolist() == pytest.approx(wanted, rel=1e-6)


def test_context_by_loops():
    v, u = draw(2, 4, 3), draw(2, 4, 5, seed=1)
    wanted = []
    for own, other in zip(v.tolist(), u.tolist(), strict=True):
        rows = []
        for i in range(4):
            a, b = (softmax([cosine(x[i], y) / T for y in x]) for x in (other, own))
            rows.append(kl(a, b))
        wanted.append(sum(rows) / 4)
    assert context(v, u, T).tolist() == pytest.approx(wanted, rel=1e-12)


def test_equal_sides_differ_in_nothing_but_the_contrast():
    u = draw(M, 4)
    near = neighbours(u, IMAGE, K)
    assert local(3 * u, u, near, T).abs().max() < 1e-15  # lengths do not count
    assert context(3 * u.view(2, 4, 4), u.view(2, 4, 4), T).abs().max() < 1e-15
    assert contrast(u, u, T).min() > 0.01


def test_values_follow_the_order_of_tokens():
    v, u, order = draw(M, 4), draw(M, 4, seed=1), torch.randperm(M)
    near, turned = neighbours(u, IMAGE, K), neighbours(u[order], IMAGE[order], K)
    torch.testing.assert_close(local(v[order], u[order], turned, T), local(v, u, near, T)[order])
    torch.testing.assert_close(contrast(v[order], u[order], T), contrast(v, u, T)[order])
    assert (order[turned].sort(1).values == near[order].sort(1).values).all()


@pytest.mark.parametrize("value", ["local", "contrast", "context"])
def test_gradient_is_the_slope(value):
    u, near = draw(M, 3, seed=1), neighbours(draw(M, 3, seed=1), IMAGE, K)
    formula = {
        "local": lambda v: local(v, u, near, T),
        "contrast": lambda v: contrast(v, u, T),
        "context": lambda v: context(v.view(2, 4, 3), u.view(2, 4, 3), T),
    }[value]
    assert torch.autograd.gradcheck(formula, [draw(M, 3).requires_grad_()])


def test_half_precision_is_computed_in_float32():
    v, u = draw(M, 3).bfloat16(), draw(M, 3, seed=1).bfloat16()
    assert contrast(v, u, T).dtype == torch.float32
    torch.testing.assert_close(contrast(v, u, T), contrast(v.double(), u.double(), T).float())


def test_overlap_counts_whom_both_have():
    one, other = torch.tensor([[1, 2, 3], [0, 2, 3]]), torch.tensor([[3, 0, 1], [4, 5, 6]])
    assert overlap(one, other).tolist() == pytest.approx([2 / 3, 0])


@pytest.mark.parametrize(
    ("shape", "wanted"),
    [((2, 9, 5), (2, 5, 3, 3)), ((2, 10, 5), (2, 5, 3, 3)), ((2, 7, 5), (2, 5, 1, 7))],
)
def test_tokens_as_a_grid(shape, wanted):
    assert grid(draw(*shape)).shape == wanted


def test_two_tokens_are_a_class_token_and_the_image():
    assert grid(torch.tensor([[[7.0], [1.0]]])).tolist() == [[[[1.0]]]]


def test_the_finer_grid_is_averaged_to_the_coarser():
    fine = torch.arange(16.0).view(1, 1, 4, 4)
    coarse = torch.tensor([[[9.0], [1.0], [2.0], [3.0], [4.0]]])  # a class token and 2 x 2
    own, other = aligned(fine, coarse)
    assert own.flatten().tolist() == [2.5, 4.5, 10.5, 12.5]
    assert other.flatten().tolist() == [1, 2, 3, 4]
    other, own = aligned(coarse, fine)
    assert own.flatten().tolist() == [2.5, 4.5, 10.5, 12.5]


def test_each_side_of_the_grid_is_the_coarser_one_s():
    own, other = aligned(draw(1, 2, 4, 2), draw(1, 3, 3, 6))
    assert (own.shape, other.shape) == ((1, 6, 2), (1, 6, 3))


def test_tokens_that_make_no_square_go_with_their_like_alone():
    own, other = aligned(draw(2, 7, 3), draw(2, 7, 4))
    assert (own.shape, other.shape) == ((2, 7, 3), (2, 7, 4))
    with pytest.raises(Failure, match=r"7 tokens make no square.*\[2, 4, 3, 3\]"):
        aligned(draw(2, 7, 3), draw(2, 4, 3, 3))
    with pytest.raises(Failure, match="has no places"):
        aligned(draw(2, 7), draw(2, 4, 3, 3))
