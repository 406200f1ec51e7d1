"""Subclasses along directions: against numpy's singular values, by hand, and at their limits."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from stillroom.nets.subspaces import (
    Moments,
    Subspaces,
    null_space,
    principal,
    rotation,
    scattered,
)

D = 5


def points(n: int = 40, seed: int = 0) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    spread = torch.tensor([3.0, 0.5, 2.0, 0.1, 1.0], dtype=torch.float64)
    mix = torch.randn(D, D, generator=draw, dtype=torch.float64)
    return torch.randn(n, D, generator=draw, dtype=torch.float64) * spread @ mix + 7


def draw() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def moments_of(h: Tensor, member: Tensor, classes: int, parts: int = 1) -> Moments:
    told = Moments.none(torch.zeros(classes, D))
    for rows, own in zip(h.chunk(parts), member.chunk(parts), strict=True):
        told.add(rows, own)
    return told


@pytest.mark.parametrize("parts", [1, 7])
def test_moments_are_those_of_each_class_however_they_come(parts: int) -> None:
    h, member = points(), torch.arange(40) % 3
    told = moments_of(h, member, 4, parts)
    assert told.count.tolist() == [14, 13, 13, 0]
    for c in range(3):
        own = h[member == c].numpy()
        np.testing.assert_allclose(told.mean[c], own.mean(0), rtol=1e-12)
        np.testing.assert_allclose(told.covariance(c), np.cov(own.T, bias=True), atol=1e-10)
    assert told.covariance(3).abs().sum() == 0


def test_principal_directions_are_those_of_the_singular_values_widest_first() -> None:
    h = points()
    covariance = moments_of(h, torch.zeros(40).long(), 1).covariance(0)
    found = principal(covariance, 3)
    _, _, rows = np.linalg.svd(h.numpy() - h.numpy().mean(0))
    for s in range(3):
        assert abs(float(found[:, s] @ torch.tensor(rows[s]))) == pytest.approx(1, abs=1e-9)
        assert found[found[:, s].abs().argmax(), s] > 0
    assert principal(covariance, 9).shape == (D, D)


def test_there_are_no_more_directions_than_the_rank() -> None:
    flat = points(3)  # three points lie in a plane
    covariance = moments_of(flat, torch.zeros(3).long(), 1).covariance(0)
    assert principal(covariance, 4).shape == (D, 2)
    assert principal(torch.zeros(D, D).double(), 4).shape == (D, 0)


def test_the_null_space_is_what_a_layer_does_not_read() -> None:
    weight = torch.randn(2, D, generator=draw(), dtype=torch.float64)
    free = null_space(weight)
    assert free is not None
    assert (weight @ free).abs().max() < 1e-12
    torch.testing.assert_close(free @ free, free)
    moved = points()[0] @ free
    torch.testing.assert_close(moved @ free, moved)
    assert torch.linalg.matrix_rank(free) == D - 2
    twice = null_space(torch.cat([weight, weight]))  # by rank, not by rows
    assert twice is not None
    torch.testing.assert_close(twice, free)
    assert null_space(torch.randn(D + 1, D, generator=draw())) is None
    assert null_space(torch.eye(D)) is None


def test_rotations_are_orthonormal_and_even() -> None:
    torch.testing.assert_close(
        rotation(4, draw()) @ rotation(4, draw()).T, torch.eye(4, dtype=torch.float64)
    )
    seed = draw()
    many = torch.stack([rotation(2, seed) for _ in range(4000)])
    assert many.mean(0).abs().max() < 0.05
    assert many.square().mean(0).sub(0.5).abs().max() < 0.03
    assert torch.linalg.det(many).mean().abs() < 0.05  # mirrored as often as not


def test_scattered_directions_are_orthonormal_within_what_is_kept() -> None:
    weight = torch.randn(2, D, generator=draw(), dtype=torch.float64)
    free = null_space(weight)
    assert free is not None
    found = scattered(free, 9, draw())
    assert found.shape == (D, D - 2)
    torch.testing.assert_close(found.T @ found, torch.eye(3, dtype=torch.float64))
    assert (weight @ found).abs().max() < 1e-12
    assert scattered(free, 2, draw()).shape == (D, 2)


def taken() -> tuple[Subspaces, Tensor, Tensor, list[Tensor]]:
    """Three classes: of two directions, of one, and of none."""
    h, member = points(), torch.tensor([0, 1] * 19 + [0, 2])
    told = moments_of(h, member, 3)
    bases = [principal(told.covariance(c), n) for c, n in enumerate((2, 1, 0))]
    spaces = Subspaces((3, D, 2), torch.float64)
    spaces.take(told, bases)
    return spaces, h, member, bases


def test_shares_are_a_softmax_of_scaled_scores_and_a_missing_subclass_has_none() -> None:
    spaces, h, member, bases = taken()
    scores = [(h - h[member == c].mean(0)) @ bases[c] for c in range(2)]
    own = [scores[c][member == c] for c in range(2)]
    squares = sum(float(x.square().sum()) for x in own)
    scale = math.sqrt(squares / sum(x.numel() for x in own))
    assert float(spaces.scale) == pytest.approx(scale, rel=1e-9)
    said = spaces(h, 0.7).exp()
    for i in range(len(h)):
        weight = [math.exp(float(x) / scale / 0.7) for x in scores[0][i]]
        wanted = [w / sum(weight) for w in weight]
        assert said[i, 0].tolist() == pytest.approx(wanted, rel=1e-9)
    assert (said[:, 1:] == torch.tensor([1.0, 0.0], dtype=torch.float64)).all()


def test_before_it_is_fitted_and_at_large_beta_all_subclasses_are_alike() -> None:
    spaces, h, _, _ = taken()
    new = Subspaces((3, D, 2), torch.float64)
    assert not new.fitted
    assert spaces.fitted
    assert (new(h, 1.0).exp() == 0.5).all()
    assert (spaces(h, 1e9)[:, 0].exp() - 0.5).abs().max() < 1e-6


def test_what_is_fitted_comes_back_with_the_state() -> None:
    spaces, h, _, _ = taken()
    new = Subspaces((3, D, 2), torch.float64)
    new.load_state_dict(spaces.state_dict())
    assert torch.equal(new(h, 1.0), spaces(h, 1.0))


def test_scores_are_in_float32_also_under_autocast() -> None:
    spaces, h, _, _ = taken()
    exact, single = spaces(h, 1.0), spaces.float()
    with torch.autocast("cpu", torch.bfloat16):
        said = single(h.float(), 1.0)
    assert said.dtype == torch.float32
    assert (said[:, 0] - exact[:, 0]).abs().max() < 1e-4
