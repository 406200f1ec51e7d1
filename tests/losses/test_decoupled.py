"""The parts of a decoupled KL: against plain Python, and added up."""

import math

import pytest
import torch

from stillroom.losses.decoupled import log_odds, others_kl, target_kl

N, V = 6, 7
LABELS = torch.tensor([0, 3, 6, 1, 3, 2])


def draw(seed):
    made = torch.Generator().manual_seed(seed)
    return 2 * torch.randn(N, V, generator=made, dtype=torch.float64)


def softmax(row):
    weights = [math.exp(float(z)) for z in row]
    return [w / sum(weights) for w in weights]


def kl(p, q):
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def parts(student, teacher, label):
    """Of two rows, by dividing probabilities: the label's part, that of the others, 1 - p."""
    q, p = softmax(student), softmax(teacher)
    two = [[x[label], 1 - x[label]] for x in (p, q)]
    rest = [[x[v] / (1 - x[label]) for v in range(V) if v != label] for x in (p, q)]
    return kl(*two), kl(*rest), 1 - p[label]


def test_both_parts_are_those_of_divided_probabilities():
    student, teacher = draw(0), draw(1)
    label, others = target_kl(student, teacher, LABELS), others_kl(student, teacher, LABELS)
    odds = log_odds(teacher, LABELS)
    for row, (s, t, y) in enumerate(zip(student, teacher, LABELS.tolist(), strict=True)):
        wanted, rest, unsure = parts(s, t, y)
        assert label[row].item() == pytest.approx(wanted, rel=1e-11)
        assert others[row].item() == pytest.approx(rest, rel=1e-11)
        assert odds[row].item() == pytest.approx(math.log(1 / unsure - 1), rel=1e-11)


def test_they_add_up_to_the_whole_in_value_and_gradient():
    student, teacher = draw(0).requires_grad_(), draw(1)
    p = teacher.softmax(-1)
    unsure = 1 - p.gather(-1, LABELS[:, None]).squeeze(-1)
    found = target_kl(student, teacher, LABELS) + unsure * others_kl(student, teacher, LABELS)
    wanted = [kl(softmax(t), softmax(s)) for s, t in zip(student.detach(), teacher, strict=True)]
    torch.testing.assert_close(found, torch.tensor(wanted, dtype=torch.float64))
    (slope,) = torch.autograd.grad(found.sum(), student)
    torch.testing.assert_close(slope, student.detach().softmax(-1) - p)


def test_the_others_pull_at_all_logits_but_the_label_s():
    student, teacher = draw(0).requires_grad_(), draw(1)
    (slope,) = torch.autograd.grad(others_kl(student, teacher, LABELS).sum(), student)
    for row, y in enumerate(LABELS.tolist()):
        kept = [v for v in range(V) if v != y]
        q, p = (softmax([x[row, v] for v in kept]) for x in (student.detach(), teacher))
        assert slope[row, y] == 0
        assert slope[row, kept].tolist() == pytest.approx(
            [a - b for a, b in zip(q, p, strict=True)], abs=1e-12
        )


@pytest.mark.parametrize("part", [target_kl, others_kl])
def test_equal_sides_are_at_rest(part):
    student = draw(0).requires_grad_()
    value = part(student, student.detach().clone(), LABELS)
    (slope,) = torch.autograd.grad(value.sum(), student)
    assert value.abs().max() < 1e-14
    assert slope.abs().max() < 1e-14


@pytest.mark.parametrize("part", [target_kl, others_kl])
def test_a_certain_teacher_in_float32_leaves_no_nan(part):
    """Its 1 - p is 0 there, whether the label is what it is certain of or not."""
    teacher = draw(1).float()
    teacher[:, 3] += 300
    student = draw(0).float().requires_grad_()
    value = part(student, teacher, LABELS)
    (slope,) = torch.autograd.grad(value.sum(), student)
    assert value.isfinite().all()
    assert slope.isfinite().all()
    sure = LABELS == 3
    assert log_odds(teacher, LABELS)[sure].min() > 280
    if part is target_kl:
        q = student.detach().softmax(-1)[:, 3]
        torch.testing.assert_close(value[sure], -q[sure].log())
        torch.testing.assert_close(value[~sure], -torch.log1p(-_of_label(student))[~sure])


def _of_label(student):
    return student.detach().softmax(-1).gather(-1, LABELS[:, None]).squeeze(-1)
