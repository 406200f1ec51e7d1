"""Projectors that stay orthogonal, regressors that fit, means that count each example once."""

import pytest
import torch
from torch import nn

from stillroom.core import Failure
from stillroom.nets.centroids import Centroids
from stillroom.nets.projectors import Orthogonal, Regressor

SHAPES = [(32, 128), (48, 48), (40, 12)]
both_ways = pytest.mark.parametrize(("width", "wanted"), SHAPES)


def off(projector):
    """How far the narrower side of P is from orthonormal, measured in float64."""
    p = projector.matrix().detach().float().double()  # as float32 features meet it
    p = p if p.shape[0] >= p.shape[1] else p.T
    return float((p.T @ p - torch.eye(p.shape[1], dtype=p.dtype)).abs().max())


def trained(projector, steps=100, lr=0.05, seed=1):
    draw = torch.Generator().manual_seed(seed)
    width, wanted = projector.turn.in_features, projector.turn.out_features
    z, t = (torch.randn(64, d, generator=draw) for d in (width, wanted))
    optimizer = torch.optim.AdamW(projector.parameters(), lr=lr, weight_decay=0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        (projector(z) - t).square().mean().backward()
        optimizer.step()
    return projector


@both_ways
def test_an_orthogonal_projector_stays_so_over_steps_and_saves(width, wanted, tmp_path):
    torch.manual_seed(0)
    projector = Orthogonal(width, wanted)
    before = projector.matrix().detach().clone()
    assert off(projector) < 1e-6
    trained(projector)
    assert (projector.matrix() - before).abs().max() > 0.05
    assert off(projector) < 1e-6
    torch.save(projector.state_dict(), tmp_path / "p.pt")
    torch.manual_seed(7)
    other = Orthogonal(width, wanted)
    assert (other.matrix() - projector.matrix()).abs().max() > 0.05
    other.load_state_dict(torch.load(tmp_path / "p.pt"))
    assert torch.equal(other.matrix(), projector.matrix())
    assert torch.equal(trained(other).matrix(), trained(projector).matrix())
    assert off(other) < 1e-6


def test_it_keeps_lengths_and_angles_where_there_is_room():
    torch.manual_seed(0)
    projector = trained(Orthogonal(6, 9))
    z = torch.randn(5, 6, dtype=torch.float64)
    torch.testing.assert_close(projector(z) @ projector(z).T, z @ z.T)


def test_its_gradient_is_the_slope():
    torch.manual_seed(0)
    projector = Orthogonal(3, 5)
    trained_one = projector.turn.parametrizations.weight.original
    z, t = (torch.randn(4, d, dtype=torch.float64) for d in (3, 5))

    def loss(a):
        name = "turn.parametrizations.weight.original"
        said = torch.func.functional_call(projector, {name: a}, (z,))
        return (said - t).square().sum()

    start = (trained_one.detach() + 0.3 * torch.randn_like(trained_one)).requires_grad_()
    assert torch.autograd.gradcheck(loss, [start])


@pytest.mark.parametrize("seed", [0, 1])
def test_it_reaches_the_best_orthogonal_map_and_a_rotated_student_changes_nothing(seed):
    """Procrustes: ``min |Z P^T - T|^2 = |Z|^2 + |T|^2 - 2 * (sum of singular values of T^T Z)``."""
    torch.manual_seed(seed)
    z, t = (torch.randn(30, d, dtype=torch.float64) for d in (3, 5))
    rotation = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64)).Q
    least = z.square().sum() + t.square().sum() - 2 * torch.linalg.svdvals(t.T @ z).sum()
    for points in (z, z @ rotation):
        projector = Orthogonal(3, 5)
        solver = torch.optim.LBFGS(
            projector.parameters(), max_iter=500, line_search_fn="strong_wolfe",
            tolerance_grad=1e-9, tolerance_change=1e-14,
        )  # fmt: skip

        def loss(solver=solver, projector=projector, points=points):
            solver.zero_grad()
            value = (projector(points) - t).square().sum()
            value.backward()
            return value

        solver.step(loss)
        torch.testing.assert_close(loss().detach(), least, rtol=1e-8, atol=1e-8)


def test_autocast_leaves_it_orthogonal():
    torch.manual_seed(0)
    projector, z = trained(Orthogonal(16, 32)), torch.randn(4, 16)
    with torch.autocast("cpu", torch.bfloat16):
        found = projector(z.bfloat16())
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.norm(dim=-1), z.bfloat16().float().norm(dim=-1))


def regressor(own, wanted):
    return Regressor(torch.zeros(1, *own), torch.zeros(1, *wanted))


@pytest.mark.parametrize(
    ("own", "wanted"),
    [((8,), (12,)), ((5, 8), (5, 12)), ((3, 8, 8), (6, 8, 8)), ((3, 8, 7), (6, 4, 5))],
)
def test_a_regressor_brings_a_layer_to_the_shape_of_another(own, wanted):
    assert regressor(own, wanted)(torch.randn(2, *own)).shape == (2, *wanted)


def test_a_regressor_s_kernel_is_as_small_as_will_do():
    assert regressor((3, 8, 7), (6, 4, 5)).map.kernel_size == (5, 3)  # N_g - k + 1 = N_h
    assert isinstance(regressor((8,), (12,)).map, nn.Linear)


@pytest.mark.parametrize(
    ("own", "wanted"),
    [((8,), (3, 4, 4)), ((5, 8), (6, 8)), ((3, 4, 4), (6, 8, 8)), ((3, 8, 4), (6, 4, 8))],
)
def test_layers_that_no_regressor_joins_are_refused(own, wanted):
    with pytest.raises(Failure, match="no regressor leads") as refusal:
        regressor(own, wanted)
    assert str(list(own)) in str(refusal.value)


def test_centroids_count_examples_by_their_weight():
    table = torch.tensor([[1.0, 0.0], [3.0, 0.0], [0.0, 2.0], [9.0, 9.0]])
    means = Centroids(3, 2)
    means.add(table[[1, 0]], torch.tensor([0, 0]), torch.tensor([1.0, 1.0]))
    means.add(table[[2, 3]], torch.tensor([2, 1]), torch.tensor([0.5, 0.0]))
    assert means.sums.tolist() == [[4.0, 0.0], [0.0, 0.0], [0.0, 1.0]]
    assert means.counts.tolist() == [2.0, 0.0, 0.5]
    assert means.means().tolist() == [[2.0, 0.0], [0.0, 0.0], [0.0, 2.0]]
    assert means.directions().tolist() == [[1.0, 0.0], [0.0, 0.0], [0.0, 1.0]]
