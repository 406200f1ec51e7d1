"""The paper's toy in exact numbers: a mixture of two, a student that is one Gaussian."""

import contextlib
import io
import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import softplus

from stillroom.losses.policy import bradley_terry

EXAMPLE = Path(__file__).parents[2] / "examples" / "gad_mixture.py"
CLASSES = np.arange(10)


def mixture():
    """Written once more, from the description."""
    density = [
        share * np.exp(-0.5 * (CLASSES - centre) ** 2 / 0.55**2)
        for share, centre in ((0.65, 2), (0.35, 7))
    ]
    whole = sum(density) / np.sum(density) + 1e-4
    return whole / whole.sum()


def gaussian(mean, width):
    weight = np.exp(-0.5 * (CLASSES - mean) ** 2 / width**2)
    return weight / weight.sum()


def kl(p, q):
    with np.errstate(divide="ignore", invalid="ignore"):
        return float(np.where(p > 0, p * (np.log(p) - np.log(q)), 0.0).sum())


def smallest(value, means, widths):
    """The best mean and width on a grid that is laid finer around the best, nine times."""
    for _ in range(9):
        grid = [(value(m, w), m, w) for m in means for w in widths]
        _, mean, width = min(grid)
        near = [2 * (axis[1] - axis[0]) for axis in (means, widths)]
        means = np.linspace(mean - near[0], mean + near[0], 15)
        widths = np.linspace(max(0.05, width - near[1]), width + near[1], 15)
    return mean, width


@pytest.fixture(scope="module")
def table():
    """What the example prints, by method, and its teacher."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        made = runpy.run_path(str(EXAMPLE))
    head, *rows = said.getvalue().splitlines()
    assert head.split() == ["mean", "width", "reverse", "KL", "forward", "KL"]
    found = {name: [float(x) for x in numbers] for name, *numbers in map(str.split, rows)}
    assert list(found) == ["SeqKD", "GAD"]
    return found, made["TEACHER"]


def test_the_teacher_is_the_mixture_with_its_floor(table):
    _, teacher = table
    np.testing.assert_allclose(teacher.numpy(), mixture(), rtol=1e-12)
    assert teacher.sum().item() == pytest.approx(1)
    assert teacher.argmax() == 2


def test_seqkd_spreads_over_both_parts(table):
    p = mixture()
    mean, width = smallest(
        lambda m, w: kl(p, gaussian(m, w)), np.linspace(0, 9, 25), np.linspace(0.3, 6, 25)
    )
    q = gaussian(mean, width)
    assert (mean, width) == pytest.approx((3.06, 3.43), abs=0.02)
    assert kl(q, p) == pytest.approx(1.90, abs=0.01)
    assert kl(p, q) == pytest.approx(0.783, abs=0.001)
    assert table[0]["SeqKD"] == pytest.approx([mean, width, kl(q, p), kl(p, q)], abs=0.03)


def test_gad_commits_to_the_part_that_it_can_reach(table):
    p = mixture()
    mean, width = smallest(
        lambda m, w: kl(gaussian(m, w), p), np.linspace(0, 9, 25), np.linspace(0.3, 6, 25)
    )
    least = kl(gaussian(mean, width), p)
    assert (mean, width, least) == pytest.approx((2.0, 0.549, 0.431), abs=0.002)
    # committing costs the share of the part that is given up: about -ln 0.65
    assert least == pytest.approx(-np.log(0.65), abs=0.01)
    found = dict(zip(["mean", "width", "reverse", "forward"], table[0]["GAD"], strict=True))
    assert found["mean"] == pytest.approx(2, abs=0.2)
    assert found["width"] == pytest.approx(width, abs=0.2)
    assert least <= found["reverse"] < 0.55
    assert found["forward"] > 5 > 1 > table[0]["SeqKD"][3]


def test_the_wide_student_is_a_second_minimum_of_the_reverse_kl():
    """Why the start must be told: from the width that imitation finds, GAD stays there."""
    p = mixture()

    def value(mean, width):
        return kl(gaussian(mean, width), p)

    mean, width = smallest(value, np.linspace(2, 6, 15), np.linspace(2.5, 6, 15))
    assert value(mean, width) == pytest.approx(1.895, abs=0.01)
    here = value(mean, width)
    around = [(mean + a, width + b) for a in (-0.2, 0, 0.2) for b in (-0.2, 0, 0.2)]
    assert here <= min(value(*place) for place in around)


@pytest.mark.parametrize("narrow", [False, True])
def test_the_best_critic_is_the_log_ratio(narrow):
    """Full expectations over both sides, no samples, to the bottom by gradient descent."""
    p = torch.from_numpy(mixture())
    q = torch.from_numpy(gaussian(3.0, 1.5) if narrow else gaussian(3.1, 3.4))
    pairs = p[:, None] * q[None, :]

    def loss(scores):
        return (pairs * bradley_terry(scores[:, None], scores[None, :])).sum()

    scores = torch.zeros(10, dtype=torch.float64, requires_grad=True)
    assert loss(scores).item() == pytest.approx(np.log(2))
    descent = torch.optim.LBFGS(
        [scores], max_iter=3000, tolerance_grad=1e-14, tolerance_change=0, history_size=20,
        line_search_fn="strong_wolfe",
    )  # fmt: skip

    def closure():
        descent.zero_grad()
        value = loss(scores)
        value.backward()
        return value

    descent.step(closure)
    wanted = p.log() - q.log()
    found = scores.detach()
    # a search by values cannot see slopes below the root of a rounding error
    assert scores.grad.abs().max() < 1e-8
    torch.testing.assert_close(found - found.mean(), wanted - wanted.mean(), rtol=0, atol=1e-4)
    # at the bottom the loss is that of the log-ratio, which scores of another scale do not reach
    least = (pairs * softplus(wanted[None, :] - wanted[:, None])).sum().item()
    assert loss(found).item() == pytest.approx(least, abs=1e-12)
    assert loss(2 * wanted).item() > least + 1e-3
