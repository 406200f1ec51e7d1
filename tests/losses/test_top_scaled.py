"""A teacher with its top scaled up, and cosines by parts: plain loops, ties and empty parts."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from stillroom.losses.top_scaled import parted_cosine, top_scaled

N, C = 12, 8
TOLD = {"gain": 0.5, "shift": 0.2, "margin": 0.1}
seeds = st.integers(0, 2**31)


def drawn(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    student, teacher = (2 * torch.randn(N, C, generator=draw, dtype=torch.float64) for _ in "st")
    labels = torch.where(
        torch.rand(N, generator=draw) < 0.5,
        teacher.argmax(-1),
        torch.randint(0, C, (N,), generator=draw),
    )
    labels[0] = teacher[0].topk(2).indices[1]  # a near miss is one, too
    return student, teacher, labels


def scaled_by_loops(z: list[float], label: int, top: int, told: dict[str, float]) -> list[float]:
    falling = sorted(z, reverse=True)
    inside = [c for c in range(C) if falling.index(z[c]) < top or c == label]
    rest = [c for c in range(C) if c not in inside]
    lead = 0.0
    if rest:
        lead = sum(z[c] for c in inside) / len(inside) - sum(z[c] for c in rest) / len(rest)
    out = list(z)
    for c in inside:
        w = 1 + told["gain"] * max(0.0, 1 - falling.index(z[c]) / top)
        scaled = z[c] * w if z[c] >= 0 else z[c] / w
        out[c] = scaled + told["gain"] * told["shift"] * lead
    if z[label] < max(z):
        out[label] = max(out) + told["margin"]
    return out


def cosine(a: list[float], b: list[float]) -> float:
    size = math.hypot(*a) * math.hypot(*b)
    return sum(x * y for x, y in zip(a, b, strict=True)) / size if size else 0.0


def parts_of(t: list[float], top: int) -> list[list[int]]:
    ranked = sorted(range(C), key=lambda c: -t[c])
    strong = [c for c in ranked[:top] if t[c] > 0]
    weak = [c for c in ranked[C - min(top, C) :] if t[c] < 0]
    return [strong, weak, [c for c in range(C) if c not in strong and c not in weak]]


def cosines_by_loops(s: list[float], t: list[float], top: int) -> float:
    told = zip((0.7, 0.4, 1.0), parts_of(t, top), strict=True)
    return 1 - sum(w * cosine([s[c] for c in p], [t[c] for c in p]) for w, p in told)


@pytest.mark.parametrize("top", [1, 3, C, C + 5])
def test_the_top_by_loops(top):
    _, teacher, labels = drawn()
    wrong = teacher.argmax(-1) != labels
    assert wrong.any()
    assert not wrong.all()
    found = top_scaled(teacher, labels, top, **TOLD)
    rows = zip(teacher.tolist(), labels.tolist(), strict=True)
    wanted = [scaled_by_loops(z, y, top, TOLD) for z, y in rows]
    torch.testing.assert_close(found, torch.tensor(wanted, dtype=torch.float64))
    assert torch.equal(found.argmax(-1), labels)


@pytest.mark.parametrize(("top", "gain"), [(0, 0.5), (3, 0.0)])
def test_no_top_and_no_gain_leave_the_teacher_as_it_is(top, gain):
    _, teacher, labels = drawn()
    assert torch.equal(top_scaled(teacher, labels, top, gain=gain, shift=0.2, margin=0.1), teacher)


def test_a_negative_logit_of_the_top_never_sinks():
    teacher = -1 - torch.rand(N, C, generator=torch.Generator().manual_seed(0))
    found = top_scaled(teacher, teacher.argmax(-1), 3, gain=0.5, shift=0.0, margin=0.1)
    assert (found >= teacher).all()
    assert ((found > teacher).sum(-1) == 3).all()


def test_equal_logits_share_their_rank():
    teacher = torch.tensor([[2.0, 1.0, 2.0, 1.0, 0.0], [1.0, 1.0, 1.0, 1.0, 1.0]])
    # two of rank 1 and two of rank 3, of which the top two are those of rank 1; all alike are one
    found = top_scaled(teacher, torch.tensor([2, 4]), 2, gain=0.5, shift=0.0, margin=0.1)
    assert found.tolist() == [[3.0, 1.0, 3.0, 1.0, 0.0], [1.5] * 5]
    found = top_scaled(teacher[:1], torch.tensor([0]), 3, gain=0.6, shift=0.0, margin=0.1)
    torch.testing.assert_close(found, torch.tensor([[3.2, 1.2, 3.2, 1.2, 0.0]]))


@pytest.mark.parametrize("top", [0, 1, 3, 4, C + 5])
def test_cosines_by_loops(top):
    student, teacher, _ = drawn()
    found = parted_cosine(student, teacher, top, positive=0.7, negative=0.4)
    rows = zip(student.tolist(), teacher.tolist(), strict=True)
    wanted = [cosines_by_loops(s, t, top) for s, t in rows]
    torch.testing.assert_close(found, torch.tensor(wanted, dtype=torch.float64))


@given(seed=seeds, top=st.integers(1, C))
def test_its_gradient_is_the_slope_of_the_loops(seed, top):
    student, teacher, _ = (x[:1] for x in drawn(seed))
    student.requires_grad_()
    value = parted_cosine(student, teacher, top, positive=0.7, negative=0.4)
    (slope,) = torch.autograd.grad(value.sum(), student)
    s, t, step = student[0].tolist(), teacher[0].tolist(), 1e-6
    for c in range(C):
        up, down = ([x + d * (i == c) for i, x in enumerate(s)] for d in (step, -step))
        wanted = (cosines_by_loops(up, t, top) - cosines_by_loops(down, t, top)) / (2 * step)
        # a part of tiny student logits bends within a step
        assert slope[0, c].item() == pytest.approx(wanted, rel=1e-3, abs=1e-4)


@given(seed=seeds, scale=st.floats(0.1, 30))
def test_a_multiple_of_the_teacher_is_the_least(seed, scale):
    student, teacher, _ = drawn(seed)
    teacher[:, 0], teacher[:, 1] = 3.0, -3.0  # so that no part is empty
    told = {"positive": 0.7, "negative": 0.4}
    found = parted_cosine((scale * teacher).requires_grad_(), teacher, 3, **told)
    torch.testing.assert_close(found.detach(), torch.full((N,), 1 - 2.1).double())
    assert (parted_cosine(student, teacher, 3, **told) > found).all()
    apart = parted_cosine(scale * student, teacher, 3, **told)
    torch.testing.assert_close(apart, parted_cosine(student, teacher, 3, **told))


def test_each_part_may_have_a_scale_of_its_own():
    _, teacher, _ = drawn()
    student = teacher.clone()
    for i, row in enumerate(teacher.tolist()):
        for factor, part in zip((2.0, 0.5, 7.0), parts_of(row, 3), strict=True):
            student[i, part] *= factor
    found = parted_cosine(student, teacher, 3)
    torch.testing.assert_close(found, parted_cosine(teacher, teacher, 3))
    assert (parted_cosine(student, teacher, 0) > 1e-3).all()  # one cosine over all sees it


def test_a_number_added_to_all_logits_of_a_side_counts():
    student, teacher, _ = drawn()
    plainly = parted_cosine(student, teacher, 3)
    assert (parted_cosine(student + 1, teacher, 3) - plainly).abs().min() > 1e-4
    assert (parted_cosine(student, teacher + 1, 3) - plainly).abs().max() > 0.1


def test_the_order_of_classes_is_nothing_even_among_equals():
    student, teacher, labels = drawn()
    teacher = teacher.round()  # many ties
    assert any(len(set(row)) < C for row in teacher.tolist())
    order = torch.tensor([3, 1, 7, 0, 2, 6, 4, 5])
    place = order.argsort()
    for top in (1, 2, 3):
        found = top_scaled(teacher[:, order], place[labels], top, **TOLD)
        torch.testing.assert_close(found, top_scaled(teacher, labels, top, **TOLD)[:, order])
        found = parted_cosine(student[:, order], teacher[:, order], top)
        torch.testing.assert_close(found, parted_cosine(student, teacher, top))


@pytest.mark.parametrize(("sign", "empty"), [(1, 1), (-1, 0)])
def test_an_empty_part_is_left_out(sign, empty):
    student, teacher, _ = drawn()
    teacher = sign * (teacher.abs() + 0.1)
    student = student.requires_grad_()
    found = parted_cosine(student, teacher, 3)
    (slope,) = torch.autograd.grad(found.sum(), student)
    assert slope.isfinite().all()
    assert not parts_of(teacher[0].tolist(), 3)[empty]
    torch.testing.assert_close(parted_cosine(teacher, teacher, 3), torch.full((N,), -1.0).double())
    # four of a side leave no rest of eight
    mixed = torch.tensor([[4.0, 3.0, 2.0, 1.0, -1.0, -2.0, -3.0, -4.0]]).double()
    least = parted_cosine(mixed, mixed, 4)
    torch.testing.assert_close(least, torch.tensor([-1.0]).double())


def test_zeros_have_no_direction_and_no_gradient():
    _, teacher, _ = drawn()
    student = torch.zeros(N, C).double().requires_grad_()
    found = parted_cosine(student, teacher, 3)
    assert found.tolist() == [1.0] * N
    (slope,) = torch.autograd.grad(found.sum(), student)
    assert not slope.any()
    assert parted_cosine(student, student.detach(), 3).tolist() == [1.0] * N


def test_half_precision_is_computed_in_float32():
    student, teacher, labels = drawn()
    low_s, low_t = student.bfloat16(), teacher.bfloat16()
    scaled = top_scaled(low_t, labels, 3, **TOLD)
    assert scaled.dtype == torch.float32
    torch.testing.assert_close(scaled.double(), top_scaled(low_t.double(), labels, 3, **TOLD))
    value = parted_cosine(low_s, low_t, 3)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value.double(), parted_cosine(low_s.double(), low_t.double(), 3))
