"""Preference losses by plain numbers, and the log-probability of answers from its tokens."""

import math

import pytest
import torch

from stillroom.core import Failure
from stillroom.losses.preference import answer_logp, preference, shortfall

GAPS = [(1.5, -0.5), (-2.0, 1.0), (0.3, 0.3)]


def sigmoid(z: float) -> float:
    return 1 / (1 + math.exp(-z))


BY_HAND = {
    "sigmoid": lambda gap, z, e: -(1 - e) * math.log(sigmoid(z)) - e * math.log(1 - sigmoid(z)),
    "hinge": lambda gap, z, e: max(0.0, -z),
    "linear": lambda gap, z, e: -z,
}


@pytest.mark.parametrize("margin", [0.0, 0.4])
@pytest.mark.parametrize("shape", BY_HAND)
def test_each_shape_by_hand(shape, margin):
    chosen, rejected = torch.tensor(GAPS, dtype=torch.float64).T
    smoothings = (0.0, 0.2) if shape == "sigmoid" else (0.0,)
    for e in smoothings:
        told = {"beta": 0.7, "margin": margin, "shape": shape, "smoothing": e}
        found = preference(chosen, rejected, **told)
        wanted = [BY_HAND[shape](w - r, 0.7 * (w - r) - margin, e) for w, r in GAPS]
        assert found.tolist() == pytest.approx(wanted, rel=1e-12)


def test_a_margin_may_be_one_a_pair():
    chosen, rejected = torch.tensor(GAPS, dtype=torch.float64).T
    margins = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)
    found = preference(chosen, rejected, beta=1.0, margin=margins)
    for i, margin in enumerate(margins.tolist()):
        alone = preference(chosen[i], rejected[i], beta=1.0, margin=margin)
        assert float(found[i]) == float(alone)


def test_the_squared_shape_is_least_at_its_goal():
    goal = torch.tensor(1 / (2 * 0.25), dtype=torch.float64, requires_grad=True)
    value = preference(goal, torch.tensor(0.0), beta=0.25, shape="squared")
    assert value.item() == 0
    assert torch.autograd.grad(value, goal)[0].item() == 0
    off = preference(torch.tensor(3.5), torch.tensor(0.0), beta=0.25, shape="squared")
    assert float(off) == pytest.approx(1.5**2)


def test_the_slope_is_bounded_by_beta():
    """-beta sigmoid(-beta D) for the chosen one, and the opposite for the rejected one."""
    pair = torch.tensor([[40.0, 1.0, -40.0], [0.0, 0.0, 0.0]], dtype=torch.float64)
    chosen, rejected = pair.requires_grad_()
    slope = torch.autograd.grad(preference(chosen, rejected, beta=0.3).sum(), pair)[0]
    wanted = [-0.3 * sigmoid(-0.3 * d) for d in (40.0, 1.0, -40.0)]
    assert slope[0].tolist() == pytest.approx(wanted, rel=1e-9)
    assert slope[1].tolist() == pytest.approx([-w for w in wanted], rel=1e-9)


def test_smoothing_goes_with_the_sigmoid_alone():
    with pytest.raises(Failure, match="smoothing is of the sigmoid's labels"):
        preference(torch.zeros(1), torch.zeros(1), beta=1.0, smoothing=0.1, shape="hinge")


def test_answers_from_their_tokens():
    logp = torch.tensor([-1.0, -2.0, -4.0, torch.nan, -8.0], requires_grad=True)
    owner, counts = torch.tensor([0, 0, 2, 2, 3]), torch.tensor([1.0, 1.0, 1.0, 0.0, 0.5])
    total = answer_logp(logp, owner, counts, 5, mean=False)
    assert total.tolist() == [-3.0, 0.0, -4.0, -4.0, 0.0]
    assert answer_logp(logp, owner, counts, 5, mean=True).tolist() == [-1.5, 0.0, -4.0, -8.0, 0.0]
    assert torch.autograd.grad(total.sum(), logp)[0].tolist() == [1.0, 1.0, 1.0, 0.0, 0.5]


def test_what_was_lost_counts_and_what_was_won_does_not():
    assert shortfall(torch.tensor([-0.5, 0.0, 0.5])).tolist() == [0.5, 0.0, 0.0]
