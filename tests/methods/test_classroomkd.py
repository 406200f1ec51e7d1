"""ClassroomKD against loops in Python, and what its filter must keep."""

import itertools
import math
from types import SimpleNamespace

import pytest
import torch
from numerics import contract, note
from worlds import World, gap, job, steps

from stillroom.core import Batch, Signals
from stillroom.methods.classroomkd import ClassroomKD

B, C, MENTORS = 5, 4, 3
LABELS = torch.tensor([0, 3, 2, 1, 3])
MASK = torch.tensor([1.0, 1.0, 0.0, 0.5, 1.0], dtype=torch.float64)


def draw(*shape, seed=0):
    made = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=made, dtype=torch.float64) * 1.5


def batch_of(labels=LABELS, mask=MASK):
    return Batch(
        x=torch.zeros(len(labels), 1), labels=labels, mask=mask, id=torch.arange(len(mask))
    )


def said(method, student, mentors, batch=None, uniform=lambda tag: 0.0):
    """The two terms of an update by name, and what was logged."""
    logged = {}
    names = {f"mentor {i}": z for i, z in enumerate(mentors)}
    run = SimpleNamespace(
        student=lambda batch: Signals(logits=student),
        teacher=lambda batch, name: Signals(logits=names[name]),
        teachers=names,
        gather=lambda value: value,
        log=logged.update,
        uniform=uniform,
    )
    (update,) = method.updates(run, batch_of() if batch is None else batch)
    return {term.name: term for term in update.terms}, logged


def total(terms, mask=MASK):
    return sum(term.weight * (term.value * mask).sum() / mask.sum() for term in terms.values())


def probabilities(row, temperature=1.0):
    weight = [math.exp(float(z) / temperature) for z in row]
    return [w / sum(weight) for w in weight]


def lessons(scores, gain, rounded):
    """For each mentor its weight and temperature, or None: of one sample or of the batch."""
    shares = [a / sum(scores) for a in scores]
    shares = [round(s, 2) for s in shares] if rounded else shares
    own, *theirs = [share * (len(scores) - 1) for share in shares]
    return [
        (w, 1 + gain * (abs(w - own) / max(w, own) if max(w, own) else 0)) if w >= own else None
        for w in theirs
    ]


def on_paper(method, student, mentors):
    """Loss and its gradient, each from its own formula, in loops."""
    models = [student, *mentors]
    right = [[probabilities(z[i])[LABELS[i]] for i in range(B)] for z in models]
    geometric = [
        math.exp(sum(m * math.log(p) for m, p in zip(MASK, row, strict=True)) / float(MASK.sum()))
        for row in right
    ]
    loss, slope = 0.0, torch.zeros(B, C, dtype=torch.float64)
    for i in range(B):
        scores = geometric if method.granularity == "batch" else [row[i] for row in right]
        share = float(MASK[i] / MASK.sum())
        p = probabilities(student[i])
        loss -= share * scores[0] * math.log(p[LABELS[i]])
        for c in range(C):
            slope[i, c] += share * scores[0] * (p[c] - (c == int(LABELS[i])))
        told = lessons(scores, method.temperature_gain, method.rounded)
        for mentor, lesson in zip(mentors, told, strict=True):
            if lesson is None:
                continue
            w, tau = lesson
            s, t = probabilities(student[i], tau), probabilities(mentor[i], tau)
            kl = sum(a * math.log(a / b) for a, b in zip(t, s, strict=True))
            loss += share * w * tau**2 * kl
            for c in range(C):
                slope[i, c] += share * w * tau * (s[c] - t[c])
    return loss, slope


@contract
@pytest.mark.parametrize("rounded", [True, False])
@pytest.mark.parametrize("granularity", ["batch", "sample"])
def test_value_and_gradient(granularity, rounded):
    active = set()
    for seed in range(4):
        method = ClassroomKD(granularity=granularity, rounded=rounded, temperature_gain=3.0)
        student = draw(B, C, seed=seed).requires_grad_()
        mentors = [draw(B, C, seed=10 * seed + i + 1) for i in range(MENTORS)]
        terms, logged = said(method, student, mentors)
        loss, slope = on_paper(method, student.detach(), mentors)
        found = total(terms)
        note("classroomkd", "oracle", abs(float(found.detach()) - loss), 1e-12)
        (own,) = torch.autograd.grad(found, student)
        note("classroomkd", "gradient", gap(own, slope), 1e-12)
        active |= set(logged["active"].flatten().tolist())
    assert active == {0.0, 1.0}  # some taught and some did not


@pytest.mark.parametrize("granularity", ["batch", "sample"])
def test_where_all_mentors_are_worse_the_labels_alone_are_left(granularity):
    right = 2.0 * torch.nn.functional.one_hot(LABELS, C).double()
    student = (draw(B, C) + 4 * right).requires_grad_()
    mentors = [draw(B, C, seed=i) - right for i in range(MENTORS)]
    terms, logged = said(ClassroomKD(granularity=granularity), student, mentors)
    assert logged["active"].sum() == 0
    assert (terms["mentors"].value == 0).all()
    chance = student.softmax(-1)[torch.arange(B), LABELS].detach()
    a = chance if granularity == "sample" else ((MASK * chance.log()).sum() / MASK.sum()).exp()
    wanted = a * torch.nn.functional.cross_entropy(student, LABELS, reduction="none")
    assert gap(terms["label"].value, wanted) < 1e-14


@pytest.mark.parametrize("granularity", ["batch", "sample"])
def test_a_mentor_with_the_student_s_own_logits_teaches_nothing(granularity):
    student = draw(B, C).requires_grad_()
    terms, logged = said(ClassroomKD(granularity=granularity), student, [student.detach().clone()])
    assert (logged["active"] == 1).all()
    assert terms["mentors"].value.abs().max() < 1e-15
    (slope,) = torch.autograd.grad(terms["mentors"].value.sum(), student)
    assert slope.abs().max() < 1e-15


@pytest.mark.parametrize("granularity", ["batch", "sample"])
def test_the_order_of_mentors_changes_nothing(granularity):
    student, mentors = draw(B, C), [draw(B, C, seed=i + 1) for i in range(MENTORS)]
    told = [
        total(said(ClassroomKD(granularity=granularity), student, order)[0])
        for order in itertools.permutations(mentors)
    ]
    assert max(told) - min(told) < 1e-14
    changed = total(said(ClassroomKD(granularity=granularity), student, mentors[:2] * 2)[0])
    assert abs(changed - told[0]) > 1e-3


def test_samples_of_a_batch_of_one_are_the_batch():
    batch = batch_of(LABELS[:1], MASK[:1])
    student, mentors = draw(1, C, seed=4), [draw(1, C, seed=i + 1) for i in range(MENTORS)]
    each, whole = (
        said(ClassroomKD(granularity=g), student, mentors, batch)[0] for g in ("sample", "batch")
    )
    assert each["mentors"].value.item() > 0.1
    assert {k: t.value.item() for k, t in each.items()} == pytest.approx(
        {k: t.value.item() for k, t in whole.items()}, rel=1e-14
    )


def test_samples_do_not_know_of_each_other_and_a_batch_does():
    student, mentors = draw(B, C), [draw(B, C, seed=i + 1) for i in range(MENTORS)]
    moved = [torch.cat([m[:1] + draw(1, C, seed=9), m[1:]]) for m in mentors]
    for granularity, same in (("sample", True), ("batch", False)):
        before, after = (
            said(ClassroomKD(granularity=granularity), student, z)[0]["mentors"].value[1:]
            for z in (mentors, moved)
        )
        assert torch.equal(before, after) is same


def test_nothing_is_known_of_the_true_class_and_still_all_is_finite():
    """All chances of the true class underflow: shares are then those of the logs."""
    lost = torch.full((B, C), 900.0, dtype=torch.float64)
    lost[torch.arange(B), LABELS] = 0.0
    student = lost.clone().requires_grad_()
    terms, logged = said(ClassroomKD(), student, [lost, lost - draw(B, C).abs()])
    value = total(terms)
    value.backward()
    assert value.isfinite()
    assert student.grad.isfinite().all()
    assert (logged["active"] >= 0).all()


@pytest.mark.parametrize("granularity", ["batch", "sample"])
def test_a_random_filter_lets_as_many_pass_and_not_the_same(granularity):
    student, mentors = draw(B, C, seed=12), [draw(B, C, seed=i + 1) for i in range(MENTORS)]
    counts, masks, numbers = {}, {}, [0.5, 0.1, 0.9]
    for active in ("better", "random"):
        for turn in range(MENTORS):
            method = ClassroomKD(granularity=granularity, active=active)
            _, logged = said(
                method, student, mentors, uniform=lambda i, t=turn: numbers[(i + t) % MENTORS]
            )
            counts.setdefault(active, []).append(logged["active"].sum(0).tolist())
            masks.setdefault(active, set()).add(str(logged["active"].tolist()))
    assert counts["better"] == counts["random"]
    assert len(masks["better"]) == 1
    assert len(masks["random"]) == MENTORS
    _, every = said(ClassroomKD(granularity=granularity, active="all"), student, mentors)
    assert (every["active"] == 1).all()


def test_a_run_hears_every_mentor_and_logs_each_share():
    for log in steps(job(ClassroomKD(granularity="sample"), World(kind="classes"))).logs:
        shares = [log[f"active/{name}"] for name in ("teacher", "peer")]
        assert log["active"] == pytest.approx(sum(shares) / 2)
