"""Standardised and whitened features: by their defining properties, and by sums in Python."""

import numpy as np
import pytest
import torch

from stillroom.losses.whitening import moments, standardised, whitened

B, D = 40, 5


def features(n=B, d=D, seed=0):
    draw = torch.Generator().manual_seed(seed)
    spread = torch.randn(d, d, generator=draw, dtype=torch.float64)
    return torch.randn(n, d, generator=draw, dtype=torch.float64) @ spread + 3


def counts(n=B):
    return torch.tensor([1.0, 0.0, 0.5, 2.0, 1.0], dtype=torch.float64).repeat(n)[:n]


def test_moments_are_those_of_numpy():
    x, w = features(), counts()
    mean, covariance = moments(x, w)
    np.testing.assert_allclose(mean.numpy(), np.average(x.numpy(), axis=0, weights=w.numpy()))
    wanted = np.cov(x.numpy(), rowvar=False, aweights=w.numpy(), ddof=0)
    np.testing.assert_allclose(covariance.numpy(), wanted, rtol=1e-12, atol=1e-12)


def test_standardised_channels_have_mean_0_and_variance_1_and_keep_their_correlations():
    x, w = features(), counts()
    found = standardised(x, *moments(x, w), eps=1e-14)
    mean, covariance = moments(found, w)
    torch.testing.assert_close(mean, torch.zeros_like(mean), atol=1e-12, rtol=0)
    wanted = np.corrcoef(x[w > 0].repeat_interleave((2 * w[w > 0]).long(), 0).numpy(), rowvar=False)
    torch.testing.assert_close(covariance, torch.from_numpy(wanted), atol=1e-10, rtol=0)


def test_whitening_is_the_symmetric_root_of_the_inverse_covariance():
    x, w = features(), counts()
    mean, covariance = moments(x, w)
    eye = torch.eye(D, dtype=torch.float64)
    # what it does to unit vectors is its matrix: W = W^T, positive, W C W = I tell it from all else
    matrix = whitened(mean + eye, mean, covariance, eps=1e-14)
    torch.testing.assert_close(matrix, matrix.T, atol=1e-10, rtol=0)
    assert np.linalg.eigvalsh(matrix.numpy()).min() > 0
    torch.testing.assert_close(matrix @ covariance @ matrix, eye, atol=1e-9, rtol=0)
    again, identity = moments(whitened(x, mean, covariance, eps=1e-14), w)
    torch.testing.assert_close(again, torch.zeros_like(again), atol=1e-10, rtol=0)
    torch.testing.assert_close(identity, eye, atol=1e-9, rtol=0)


@pytest.mark.parametrize("made", [standardised, whitened])
def test_the_size_of_features_changes_nothing(made):
    x, w = features(), counts()
    wanted = made(x, *moments(x, w), eps=0.01)
    torch.testing.assert_close(made(50 * x, *moments(50 * x, w), eps=0.01), wanted)


@pytest.mark.parametrize("made", [standardised, whitened])
def test_what_does_not_count_moves_nothing(made):
    x, w = features(), counts()
    other = torch.where(w[:, None] > 0, x, 1e3)
    kept = made(other, *moments(other, w), eps=0.01)[w > 0]
    torch.testing.assert_close(kept, made(x, *moments(x, w), eps=0.01)[w > 0])


def test_fewer_examples_than_channels_are_not_blown_up():
    x = features(n=4, d=30)
    found = whitened(x, *moments(x, torch.ones(4)), eps=1e-3)
    # in the span of the batch at most the root of n deviations; nothing outside of it
    assert found.norm(dim=-1).max() < 2.0
    assert torch.linalg.matrix_rank(found, rtol=1e-6) == 3


@pytest.mark.parametrize("made", [standardised, whitened])
@pytest.mark.parametrize("value", [0.0, 0.3, 1e4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_features_that_do_not_vary_stay_finite(made, value, dtype):
    x = torch.full((6, 3), value, dtype=dtype)
    found = made(x, *moments(x, torch.ones(6)), eps=1e-3)
    assert found.dtype == torch.float32
    assert found.abs().max() <= (1 if value else 0)  # of rounding, a deviation at most
    assert made(x, *moments(x, torch.zeros(6)), eps=1e-3).isfinite().all()
