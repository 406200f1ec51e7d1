import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from stillroom.core import Failure
from stillroom.losses.relations import angle, distance, distance_within

both = pytest.mark.parametrize("loss", [distance, angle])
seeds = st.integers(0, 2**31)
N = 6


def embeddings(seed: int = 0, n: int = N) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    student = torch.randn(n, 3, generator=draw, dtype=torch.float64)
    return student, torch.randn(n, 5, generator=draw, dtype=torch.float64)


def huber(u: float) -> float:
    return u * u / 2 if abs(u) <= 1 else abs(u) - 0.5


def relative_distances(points: list[list[float]]) -> list[list[float]]:
    table = [[math.dist(a, b) for b in points] for a in points]
    positive = [d for row in table for d in row if d > 0]
    return [[d / (sum(positive) / len(positive)) for d in row] for row in table]


def cosine(vertex: list[float], a: list[float], b: list[float]) -> float:
    first, second = math.dist(a, vertex), math.dist(b, vertex)
    if first == 0 or second == 0:
        return 0.0
    dot = sum((x - v) * (y - v) for x, y, v in zip(a, b, vertex, strict=True))
    return dot / first / second


def distance_by_loops(student: list[list[float]], teacher: list[list[float]]) -> list[float]:
    s, t = relative_distances(student), relative_distances(teacher)
    everyone = range(len(s))
    return [sum(huber(s[i][j] - t[i][j]) for j in everyone) / len(s) for i in everyone]


def angle_by_loops(student: list[list[float]], teacher: list[list[float]]) -> list[float]:
    values = []
    for s_j, t_j in zip(student, teacher, strict=True):
        pairs = list(zip(student, teacher, strict=True))
        gaps = [cosine(s_j, a, c) - cosine(t_j, b, d) for a, b in pairs for c, d in pairs]
        values.append(sum(map(huber, gaps)) / len(gaps))
    return values


@pytest.mark.parametrize(
    ("loss", "by_loops"), [(distance, distance_by_loops), (angle, angle_by_loops)]
)
@pytest.mark.parametrize("spread", [1.0, 100.0])
def test_equals_plain_loops(loss, by_loops, spread):
    student, teacher = embeddings()
    student[0] *= spread  # far out, so that the linear part of Huber is reached
    student[2] = student[1]  # and two that coincide
    wanted = torch.tensor(by_loops(student.tolist(), teacher.tolist()), dtype=torch.float64)
    torch.testing.assert_close(loss(student, teacher), wanted)


def test_distance_by_hand():
    # distances 1, 2, 3 of points on a line, mean 2; teacher: all distances alike
    student = torch.tensor([[0.0], [1.0], [3.0]])
    teacher = torch.eye(3)
    # |psi - 1|: (0,1) 1/2, (1,2) 0, (0,2) 1/2; halved squares 1/8, over 3
    wanted = torch.tensor([2 / 8, 1 / 8, 1 / 8]) / 3
    torch.testing.assert_close(distance(student, teacher), wanted)


def test_angle_by_hand():
    # student: right angle at 0 and 45 degrees at the others; teacher: 60 degrees everywhere
    student = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    teacher = torch.eye(3, dtype=torch.float64)
    gaps = torch.tensor([0.5, math.sqrt(0.5) - 0.5, math.sqrt(0.5) - 0.5], dtype=torch.float64)
    # two ordered pairs (i, k) of nine differ at each vertex; the others are 0 or 1 on both sides
    torch.testing.assert_close(angle(student, teacher), gaps**2 / 2 * 2 / 9)


@both
@given(seed=seeds, scale=st.floats(0.01, 100), shift=st.floats(-10, 10))
def test_rotation_translation_and_scale_of_either_side_change_nothing(loss, seed, scale, shift):
    student, teacher = embeddings(seed)
    wanted = loss(student, teacher)
    moved = []
    for points in (student, teacher):
        rotation = torch.linalg.qr(points.T @ points + points[:1].T).Q
        moved.append(points @ rotation * scale + shift)
    torch.testing.assert_close(loss(moved[0], teacher), wanted)
    torch.testing.assert_close(loss(student, moved[1]), wanted)
    torch.testing.assert_close(loss(moved[0], student), torch.zeros_like(wanted))
    assert (wanted > 0).all()


@both
def test_follows_the_order_of_examples(loss):
    student, teacher = embeddings()
    order = torch.tensor([3, 1, 5, 0, 2, 4])
    torch.testing.assert_close(loss(student[order], teacher[order]), loss(student, teacher)[order])


@both
@pytest.mark.parametrize("n", [0, 1])
def test_nothing_to_compare_is_zero(loss, n):
    student, teacher = embeddings(n=n)
    value = loss(student.requires_grad_(), teacher)
    assert value.tolist() == [0] * n
    (gradient,) = torch.autograd.grad(value.sum(), student)
    assert not gradient.any()


def test_two_examples_have_no_relative_distance():
    assert distance(*embeddings(n=2)).abs().max() < 1e-12


@both
def test_gradient_is_the_slope(loss):
    assert torch.autograd.gradcheck(loss, [x.requires_grad_() for x in embeddings(n=4)])


@both
def test_coinciding_examples_give_finite_gradients(loss):
    student, teacher = embeddings()
    pair = student.clone()
    pair[1] = pair[0]
    for points in (pair, torch.ones_like(student)):
        inputs = points.requires_grad_()
        value = loss(inputs, teacher)
        (gradient,) = torch.autograd.grad(value.sum(), inputs)
        assert value.isfinite().all()
        assert (value > 0).all()
        assert gradient.isfinite().all()


def test_all_coinciding_counts_as_distance_zero():
    student, teacher = embeddings()
    wanted = [sum(map(huber, row)) / N for row in relative_distances(teacher.tolist())]
    found = distance(torch.ones_like(student), teacher)
    torch.testing.assert_close(found, torch.tensor(wanted, dtype=torch.float64))
    assert not distance(torch.ones(N, 3), torch.ones(N, 5)).any()


@both
def test_half_precision_is_computed_in_float32(loss):
    student, teacher = (x.bfloat16() for x in embeddings())
    value = loss(student, teacher)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, loss(student.double(), teacher.double()).float())


@both
@pytest.mark.parametrize("shape", [(4, 5), (6,), (6, 2, 2)])
def test_other_examples_are_refused(loss, shape):
    with pytest.raises(Failure, match=r"\[6, 3\]"):
        loss(embeddings()[0], torch.zeros(shape))


# ---- distance_within


def groups(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Five groups of up to six members, with 6, 4, 2, 1 and 0 of them there."""
    draw = torch.Generator().manual_seed(seed)
    student = torch.randn(5, N, 3, generator=draw, dtype=torch.float64)
    teacher = torch.randn(5, N, 4, generator=draw, dtype=torch.float64)
    there = torch.zeros(5, N, dtype=torch.bool)
    for row, who in zip(there, ([0, 1, 2, 3, 4, 5], [0, 2, 3, 5], [1, 4], [3], []), strict=True):
        row[who] = True
    return student, teacher, there


def test_groups_equal_plain_loops_over_their_members():
    student, teacher, there = groups()
    student[0, 0] *= 100  # far out, so that the linear part of Huber is reached
    student[1, 3] = student[1, 2]
    found = distance_within(student, teacher, there)
    for g, members in enumerate(there):
        who = members.nonzero().flatten().tolist()
        wanted = torch.zeros(N, dtype=torch.float64)
        if len(who) > 1:
            alone = distance_by_loops(student[g, who].tolist(), teacher[g, who].tolist())
            wanted[who] = torch.tensor(alone, dtype=torch.float64)
        torch.testing.assert_close(found[g], wanted)
    assert found[1].max() > 0
    assert found[2].abs().max() < 1e-15  # of two, the only distance is its own mean


def test_who_is_no_member_has_neither_value_nor_gradient():
    student, teacher, there = groups()
    student.requires_grad_()
    plain = distance_within(student, teacher, there)
    (slope,) = torch.autograd.grad(plain.sum(), student)
    assert slope[~there].abs().max() == 0
    assert slope[0].abs().min() > 0
    with torch.no_grad():
        student[~there] += 5
    assert torch.equal(distance_within(student, teacher, there), plain)


def test_members_that_coincide_have_a_finite_gradient():
    student, teacher, there = groups()
    student[0, :] = 1.0
    student[1, 3] = student[1, 2]
    student.requires_grad_()
    (slope,) = torch.autograd.grad(distance_within(student, teacher, there).sum(), student)
    assert slope.isfinite().all()
    assert slope[1].abs().max() > 0


def test_gradients_of_groups_are_those_of_differences():
    student, teacher, there = groups()
    assert torch.autograd.gradcheck(
        lambda s: distance_within(s, teacher, there), student.requires_grad_()
    )


def test_groups_of_other_shapes_are_refused():
    student, teacher, there = groups()
    with pytest.raises(Failure, match=r"members \[5, 5\]"):
        distance_within(student, teacher, there[:, 1:])
    with pytest.raises(Failure, match="groups need one embedding"):
        distance_within(student, teacher[1:], there)
