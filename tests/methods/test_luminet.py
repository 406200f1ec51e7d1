"""LumiNet: by loops over a batch, and that a teacher's scale is nothing to it."""

import math
from typing import Any

import pytest
import torch
from numerics import contract, note
from worlds import gap

from stillroom.core import Batch, Signals
from stillroom.methods.kd import KD
from stillroom.methods.luminet import LumiNet

N, C = 7, 4
LABELS = torch.tensor([0, 3, 2, 1, 3, 0, 1])
EPS = 0.01


def draw(seed: int = 0) -> torch.Tensor:
    made = torch.Generator().manual_seed(seed)
    return 2 * torch.randn(N, C, generator=made, dtype=torch.float64)


def terms(method: Any, student: torch.Tensor, teacher: torch.Tensor) -> dict[str, Any]:
    batch = Batch(id=torch.arange(len(student)), labels=LABELS[: len(student)])
    told = method.loss(Signals(logits=student), Signals(logits=teacher), batch, {})
    return {term.name: term for term in told}


def soft(student: torch.Tensor, teacher: torch.Tensor, **told: Any) -> torch.Tensor:
    return terms(LumiNet(**told), student, teacher)["perception"].value


def softmax(row) -> list[float]:
    weight = [math.exp(z) for z in row]
    return [w / sum(weight) for w in weight]


def standing_out(z: list[list[float]]) -> tuple[list[list[float]], list[float]]:
    """Of each example in each class, and the deviation of each class."""
    means = [sum(column) / N for column in zip(*z, strict=True)]
    spread = [
        math.sqrt(sum((x - m) ** 2 for x in column) / N + EPS)
        for column, m in zip(zip(*z, strict=True), means, strict=True)
    ]
    return [[(x - m) / d for x, m, d in zip(r, means, spread, strict=True)] for r in z], spread


@contract
def test_value_and_gradient_by_loops():
    T, s, t = 3.0, draw().requires_grad_(), draw(1)
    found = terms(LumiNet(temperature=T, weight=5.0, label_weight=0.3, eps=EPS), s, t)
    assert {name: (x.weight, x.over) for name, x in found.items()} == {
        "label": (0.3, "mask"),
        "perception": (5.0, "mask"),
    }
    (h, spread), (other, _) = standing_out(s.tolist()), standing_out(t.tolist())
    p, q = ([softmax([x / T for x in row]) for row in z] for z in (h, other))
    wanted = [
        sum(b * math.log(b / a) for a, b in zip(own, theirs, strict=True))
        for own, theirs in zip(p, q, strict=True)
    ]
    label = [-math.log(softmax(row)[y]) for row, y in zip(s.tolist(), LABELS.tolist(), strict=True)]
    told = {name: x.value.tolist() for name, x in found.items()}
    note("luminet", "oracle", gap(told, {"label": label, "perception": wanted}), 1e-12)
    # on paper: a push on h, less its mean and less its part along h, by the class's deviation
    slope = [[0.0] * C for _ in range(N)]
    for c in range(C):
        push = [(p[b][c] - q[b][c]) / T for b in range(N)]
        mean, along = sum(push) / N, sum(g * h[b][c] for b, g in enumerate(push)) / N
        for b in range(N):
            slope[b][c] = (push[b] - mean - h[b][c] * along) / spread[c]
    (gradient,) = torch.autograd.grad(found["perception"].value.sum(), s)
    note("luminet", "gradient", gap(gradient.tolist(), slope), 1e-12)


@pytest.mark.parametrize("side", ["student", "teacher"])
def test_scale_and_shift_of_a_class_are_nothing_on_either_side(side):
    s, t, far = draw(), draw(1), torch.tensor([-2.0, 0.5, 1.0, 9.0]).double()
    wanted = soft(s, t, eps=1e-12)

    def moved(z):
        return z * (0.2 + far.abs()) + far

    found = soft(moved(s), t, eps=1e-12) if side == "student" else soft(s, moved(t), eps=1e-12)
    torch.testing.assert_close(found, wanted)
    assert (wanted > 1e-4).all()
    shifted = [z + torch.arange(N).double()[:, None] * (z is t) for z in (s, t)]
    assert (soft(*shifted, eps=1e-12) - wanted).abs().max() > 1e-3  # by example it is not


def test_an_over_confident_teacher_teaches_the_same_where_plain_distillation_changes():
    s, t = draw().requires_grad_(), draw(1)

    def slope(method, name, teacher):
        return torch.autograd.grad(terms(method, s, teacher)[name].value.sum(), s)[0]

    own = slope(LumiNet(), "perception", t)
    torch.testing.assert_close(slope(LumiNet(), "perception", 10 * t), own, rtol=1e-3, atol=1e-6)
    batch = Batch(id=torch.arange(N), labels=LABELS)
    plain: list[Any] = [
        KD(temperature=4.0).loss(Signals(logits=s), Signals(logits=z), batch, {})
        for z in (t, 10 * t)
    ]
    one, ten = (torch.autograd.grad(x.value.sum(), s)[0] for x in plain)
    assert (one - ten).abs().max() > 0.5


def test_it_is_nothing_where_both_stand_out_alike_though_logits_differ():
    t = draw(1)
    s = (3 * t * torch.arange(1, C + 1) - 5).requires_grad_()
    value = soft(s, t, eps=1e-12)
    assert value.abs().max() < 1e-12
    assert torch.autograd.grad(value.sum(), s)[0].abs().max() < 1e-9


def test_it_follows_the_order_of_examples_and_sees_the_others():
    s, t, order = draw(), draw(1), torch.tensor([3, 1, 6, 5, 0, 2, 4])
    torch.testing.assert_close(soft(s[order], t[order]), soft(s, t)[order])
    assert (soft(s[:4], t[:4]) - soft(s, t)[:4]).abs().max() > 1e-3


def test_a_batch_of_one_teaches_nothing_but_its_label():
    s = draw()[:1].requires_grad_()
    value = soft(s, draw(1)[:1])
    assert value.tolist() == [0.0]
    assert not torch.autograd.grad(value.sum(), s)[0].any()


class Passes:
    """A run at some pass over its data."""

    def __init__(self, epoch: int) -> None:
        self.epoch, self.players = epoch, {}

    def student(self, batch):
        return Signals(logits=draw())

    def teacher(self, batch):
        return Signals(logits=draw(1))

    def gather(self, batch):
        return batch


def test_it_rises_over_the_passes_of_the_warm_up():
    batch = Batch(id=torch.arange(N), labels=LABELS)

    def weights(warmup, epoch):
        run: Any = Passes(epoch)
        update: Any
        (update,) = LumiNet(weight=8.0, warmup=warmup, label_weight=0.5).updates(run, batch)
        return [term.weight for term in update.terms]

    assert [weights(4, epoch) for epoch in (0, 1, 3, 9)] == [[0.5, w] for w in (2.0, 4.0, 8.0, 8.0)]
    assert weights(0, 0) == [0.5, 8.0]
