"""Plackett-Luce distillation: by loops over places, and where it is another known loss."""

import math
from typing import Any

import pytest
import torch
from numerics import contract, note
from torch.nn import functional as F
from worlds import gap

from stillroom.core import Batch, Head, Signals
from stillroom.methods.pld import PLD

N, C = 5, 6
LABELS = torch.tensor([0, 3, 5, 1, 3])


def draw(seed: int = 0) -> torch.Tensor:
    made = torch.Generator().manual_seed(seed)
    return 2 * torch.randn(N, C, generator=made, dtype=torch.float64)


def batch() -> Batch:
    return Batch(id=torch.arange(N), labels=LABELS, mask=torch.ones(N))


def value(method: PLD, student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    term: Any = method.loss(Signals(logits=student), Signals(logits=teacher), batch(), {})
    assert (term.over, term.weight) == ("mask", 1.0)
    return term.value


def softmax(row, temperature: float = 1.0) -> list[float]:
    weight = [math.exp(z / temperature) for z in row]
    return [w / sum(weight) for w in weight]


def by_places(s, t, label, weigh) -> tuple[float, list[float]]:
    """Value and slope of one row: the label, then the others as the teacher ranks them."""
    order = [label, *sorted((c for c in range(C) if c != label), key=lambda c: -t[c])]
    total, slope = 0.0, [0.0] * C
    for k, chosen in enumerate(order):
        share = softmax([s[c] for c in order[k:]])
        total -= weigh(k, chosen) * math.log(share[0])
        slope[chosen] -= weigh(k, chosen)
        for c, p in zip(order[k:], share, strict=True):
            slope[c] += weigh(k, chosen) * p
    return total, slope


@contract
@pytest.mark.parametrize("kind", ["classes", "tokens"])
@pytest.mark.parametrize(
    "method", [PLD(), PLD(temperature=3.0), PLD(weights="equal"), PLD(weights="falling")]
)
def test_value_and_gradient_by_loops(method, kind):
    s, t = draw().requires_grad_(), draw(1)
    if kind == "classes":
        found = value(method, s, t)
    else:  # the identity as head, so that hidden states are the logits
        head = Head(torch.eye(C, dtype=torch.float64))
        said = [Signals(hidden=z, head=head) for z in (s, t)]
        term: Any = method.loss(*said, batch(), {})
        found = term.value
    values, slopes = [], []
    for row, theirs, label in zip(s.tolist(), t.tolist(), LABELS.tolist(), strict=True):
        q = softmax(theirs, method.temperature)
        weigh = {
            "teacher": lambda _, c, q=q: q[c],
            "equal": lambda _k, _c: 1.0,
            "falling": lambda k, _: (2 ** (C - 1 - k) - 1) / (2 ** (C - 1) - 1),
        }[method.weights]
        one, slope = by_places(row, theirs, label, weigh)
        values.append(one)
        slopes.append(slope)
    note("pld", "oracle", gap(found.tolist(), values), 1e-12)
    (slope,) = torch.autograd.grad(found.sum(), s)
    note("pld", "gradient", gap(slope.tolist(), slopes), 1e-12)


@pytest.mark.parametrize("weights", ["teacher", "equal", "falling"])
def test_a_number_added_to_all_logits_of_a_side_changes_nothing(weights):
    method, s, t = PLD(weights=weights), draw(), draw(1)
    wanted = value(method, s, t)
    torch.testing.assert_close(value(method, s + 7, t), wanted)
    torch.testing.assert_close(value(method, s, t - 9), wanted)


def test_a_teacher_sure_of_the_label_gives_cross_entropy():
    s, sure = draw().requires_grad_(), 60 * F.one_hot(LABELS, C).double() + draw(1)
    found, wanted = value(PLD(), s, sure), F.cross_entropy(s, LABELS, reduction="none")
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)
    # and the softer the weights, the more of the ranking is learned: ListMLE / C in the end
    soft, even = value(PLD(temperature=1e9), s, sure), value(PLD(weights="equal"), s, sure)
    torch.testing.assert_close(soft, even / C, rtol=1e-6, atol=0)
    assert (even > wanted + 0.1).all()


def test_what_the_teacher_holds_to_be_wrong_weighs_less():
    s, doubted = torch.zeros(N, C).double().requires_grad_(), -9.0 * F.one_hot(LABELS, C).double()
    slopes = [
        torch.autograd.grad(value(PLD(), s, t).sum(), s)[0][torch.arange(N), LABELS]
        for t in (-doubted, doubted)
    ]
    assert (slopes[0] < -0.8).all()  # cross-entropy has 1 / 6 - 1
    assert (slopes[1].abs() < 0.02).all()


def test_the_teacher_itself_is_not_the_least():
    t = draw(1)
    t[torch.arange(N), LABELS] = 9.0
    assert (value(PLD(), t, t) > 0).all()
    assert (value(PLD(), 3 * t, t) < value(PLD(), t, t)).all()


def test_weights_of_thousands_of_classes_are_finite():
    s = torch.randn(2, 3000, generator=torch.Generator().manual_seed(0))
    found = PLD(weights="falling").objective(s, -s, torch.tensor([4, 2999]))
    assert found.isfinite().all()
    assert (found > 0).all()
