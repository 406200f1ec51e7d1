"""Easy and hard tokens: the split and both means by hand, over batches that are cut anywhere."""

import math
import statistics

import pytest
import torch
import worlds
from torch import nn

from stillroom.core import Batch, Head, Signals
from stillroom.methods.atkd import ATKD

N, V = 9, 6
LABELS = torch.tensor([0, 3, 5, 1, 3, 2, 4, 0, 5])
MASK = torch.tensor([1.0, 1.0, 0.0, 0.5, 1.0, 1.0, 0.0, 1.0, 1.0], dtype=torch.float64)
EXACT = worlds.World(kind="text", exact=True)


def draw(seed, scale=2.0):
    made = torch.Generator().manual_seed(seed)
    return scale * torch.randn(N, V, generator=made, dtype=torch.float64)


def softmax(row):
    weights = [math.exp(float(z)) for z in row]
    return [w / sum(weights) for w in weights]


def kl(p, q):
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


class Scores:
    """A run whose logits are given, with the identity as head; counts how often it asks."""

    def __init__(self, student, teacher, others=()):
        self.head = Head(torch.eye(V, dtype=torch.float64))
        self.says, self.told, self.others = student, teacher, list(others)
        self.logged, self.asked = {}, 0

    def student(self, batch):
        return Signals(hidden=self.says[batch.place], head=self.head)

    def teacher(self, batch):
        self.asked += 1
        return Signals(hidden=self.told[batch.place], head=self.head)

    def gather(self, value):
        return torch.cat([value, self.others.pop(0)]) if self.others else value

    def log(self, **values):
        self.logged |= values


def batch_of():
    """Three examples of three rows."""
    ids = torch.zeros(3, 4, dtype=torch.long)
    rows = torch.tensor([i * 4 + j for i in range(3) for j in range(3)])
    told = {"positions": ids, "real": ids == 0, "last": ids[:, 0] + 3, "id": torch.arange(3)}
    made = Batch.text(ids=ids, rows=rows, labels=LABELS, mask=MASK, **told)
    return made.add_rows(place=torch.arange(N))


def loss_of(method, run, parts=((0, 3),)):
    """The step's loss as the engine has it: each term's mean over its mask, of all parts."""
    with torch.no_grad():
        batch = method.prepare(run, batch_of())
    means = {}
    for start, stop in parts:
        part = batch.part(start, stop)
        (update,) = method.updates(run, part)
        for term in update.terms:
            mask = part[term.over]
            share = term.weight * (term.value * mask).sum() / batch[term.over].sum().clamp_min(1e-9)
            means[term.name] = means.get(term.name, 0) + share
    return sum(means.values())


def by_hand(student, teacher, weight, *, reverse=False, all_hard=False):
    """In plain numbers, parting probabilities by division."""
    told = zip(student, teacher, LABELS.tolist(), strict=True)
    rows = [(softmax(s), softmax(t), y) for s, t, y in told]
    counted = [i for i in range(N) if MASK[i] > 0]
    middle = statistics.median(1 - rows[i][1][rows[i][2]] for i in counted)
    sums = {True: [0.0, 0.0], False: [0.0, 0.0]}
    for i in counted:
        q, p, y = rows[i]
        easy = 1 - p[y] < middle and not all_hard
        left, right = (q, p) if reverse else (p, q)
        rest = [[x[v] / (1 - x[y]) for v in range(V) if v != y] for x in (left, right)]
        value = kl(*rest)
        if not easy:
            value += kl(*([x[y], 1 - x[y]] for x in (left, right)))
        sums[easy][0] += float(MASK[i]) * value
        sums[easy][1] += float(MASK[i])
    means = {k: total / count if count else 0.0 for k, (total, count) in sums.items()}
    return weight * means[True] + (1 - weight) * means[False]


@pytest.mark.parametrize("weight", [0.0, 0.2, 1.0])
@pytest.mark.parametrize("divergence", ["forward", "reverse"])
@pytest.mark.parametrize("parts", [((0, 3),), ((0, 1), (1, 3))])
def test_the_loss_by_hand_in_value_and_gradient(weight, divergence, parts):
    student, teacher = draw(0).requires_grad_(), draw(1)
    method = ATKD(easy_weight=weight, divergence=divergence)
    reverse = divergence == "reverse"
    found = loss_of(method, Scores(student, teacher), parts)
    at = student.detach()
    assert found.item() == pytest.approx(by_hand(at, teacher, weight, reverse=reverse), rel=1e-11)
    (slope,) = torch.autograd.grad(found, student)
    for place in [(0, 0), (1, 3), (2, 1), (3, 2), (7, 0), (8, 4)]:
        ends = []
        for step in (1e-6, -1e-6):
            moved = at.clone()
            moved[place] += step
            ends.append(by_hand(moved, teacher, weight, reverse=reverse))
        assert slope[place].item() == pytest.approx((ends[0] - ends[1]) / 2e-6, abs=1e-8)
    assert slope[2].abs().max() == slope[6].abs().max() == 0  # masked


def test_where_all_are_hard_both_parts_are_learned_of_all():
    student, teacher = draw(0), draw(1)
    found = loss_of(ATKD(easy=0.0, easy_weight=0.3), Scores(student, teacher))
    wanted = by_hand(student, teacher, 0.3, all_hard=True)
    assert found.item() == pytest.approx(wanted, rel=1e-11)


@pytest.mark.parametrize("divergence", ["forward", "reverse"])
def test_a_student_that_is_the_teacher_is_at_rest(divergence):
    student = draw(0).requires_grad_()
    found = loss_of(ATKD(divergence=divergence), Scores(student, student.detach().clone()))
    (slope,) = torch.autograd.grad(found, student)
    assert abs(found.item()) < 1e-14
    assert slope.abs().max() < 1e-14


def test_the_label_of_an_easy_token_is_left_alone():
    student, teacher = draw(0).requires_grad_(), draw(1)
    run, method = Scores(student, teacher), ATKD()
    batch = method.prepare(run, batch_of())
    easy = batch.easy > 0
    assert torch.equal(batch.easy + batch.hard, MASK)
    assert easy.sum() == 3  # of 7 that count, the middle one is hard
    (slope,) = torch.autograd.grad(loss_of(method, run), student)
    own = slope.gather(-1, LABELS[:, None]).squeeze(-1)
    assert own[easy].abs().max() == 0
    assert own[batch.hard > 0].abs().min() > 1e-4
    assert slope[easy].abs().amax(-1).min() > 1e-4


def test_rounding_does_not_part_what_is_equal():
    """Rows of the same scores, as two passes may compute them: all are in the middle."""
    teacher = draw(1)[:1].expand(N, V) + 1e-9 * draw(2)
    same = batch_of().add(labels=torch.zeros(N, dtype=torch.long))
    batch = ATKD().prepare(Scores(draw(0), teacher), same)
    assert batch.easy.sum() == 0


def test_the_teacher_is_asked_once_a_step_and_not_about_parts():
    run = Scores(draw(0), draw(1))
    loss_of(ATKD(), run, ((0, 1), (1, 2), (2, 3)))
    assert run.asked == 1


def test_the_middle_is_that_of_all_processes_however_many_rows_each_has():
    """Another process has ten rows more of which the teacher is surer than of any here."""
    nan = float("nan")
    told = [0.001 * i for i in range(1, 18)]
    others = [[17.0], told, [5.0], [0.9999, 0.9999, nan, nan, nan, nan, nan]]
    surer, fewer = (
        [torch.tensor(o, dtype=torch.float64) for o in others[i : i + 2]] for i in (0, 2)
    )
    method, (student, teacher) = ATKD(), (draw(0), draw(1))
    assert method.prepare(Scores(student, teacher, surer), batch_of()).easy.sum() == 0
    odds = teacher.softmax(-1).gather(-1, LABELS[:, None]).squeeze(-1)[MASK > 0]
    run = Scores(student, teacher, fewer)
    method.prepare(run, batch_of())
    pooled = [1 - p for p in odds.tolist()] + [0.9999] * 2
    assert run.logged["atkd/line"].item() == pytest.approx(statistics.median(pooled), rel=1e-12)


def test_a_group_without_tokens_adds_nothing():
    """A teacher that finds all tokens alike: none is below the middle."""
    teacher = EXACT.teacher(ATKD())
    head = teacher(EXACT.data().batch([0])).head
    for part in (head.weight, head.bias):
        nn.init.zeros_(part)
    logs = worlds.steps(worlds.job(ATKD(), EXACT, teachers={"teacher": teacher})).logs
    for log in logs:
        assert log["loss/student/easy"] == log["atkd/easy"] == 0
        assert log["loss/student/hard"] > 0
        assert log["grad_norm/student"] > 0
        assert log["atkd/line"] == pytest.approx(1 - 1 / worlds.VOCABULARY)
