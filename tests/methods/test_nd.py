"""ND against sums in Python; its means against the whole training set, read by hand."""

import math
from types import SimpleNamespace

import launch
import pytest
import torch
from worlds import EXAMPLES, World, gap, job, plain_sgd, steps

from stillroom.core import Batch, Signals
from stillroom.data.streams import Stream
from stillroom.methods.kd import KD
from stillroom.methods.nd import ND, norm_and_direction
from stillroom.nets.centroids import Centroids

EXACT = World(kind="classes", exact=True, change=launch.weighed)
U = [0.6, 0.8, 0.0]
S, T = [3.0, -4.0, 12.0], [1.0, 2.0, 2.0]  # of length 13 and 3


def tensor(*rows, grad=False):
    return torch.tensor(rows, dtype=torch.float64, requires_grad=grad)


def dot(a, b):
    return sum(x * y for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("scale", [0.01, 0.1, 3 / 13, 1.0, 10.0])
def test_value_and_gradient_by_hand(scale):
    s = [scale * v for v in S]
    own = tensor(s, grad=True)
    found = norm_and_direction(own, tensor(T), tensor(U))
    length, theirs = math.hypot(*s), 3.0
    assert found.item() == pytest.approx(1 - dot(s, U) / max(length, theirs))
    (slope,) = torch.autograd.grad(found.sum(), own)
    short = [-u / theirs for u in U]  # turns and lengthens
    turned = [-(u - dot(s, U) * v / length**2) / length for u, v in zip(U, s, strict=True)]
    if length < theirs - 1e-9:
        wanted = short
    elif length > theirs + 1e-9:
        wanted = turned
    else:
        wanted = [(a + b) / 2 for a, b in zip(short, turned, strict=True)]
    torch.testing.assert_close(slope, tensor(wanted))


@pytest.mark.parametrize("factor", [1.0, 1.5, 40.0])
def test_along_the_class_and_as_long_as_the_teacher_s_is_0(factor):
    s = [factor * 3 * u for u in U]
    assert norm_and_direction(tensor(s), tensor(T), tensor(U)).item() == pytest.approx(0, abs=1e-12)


def test_a_long_embedding_is_turned_alone_and_a_short_one_lengthened_too():
    for scale, lengthened in ((1.0, False), (0.1, True)):
        own = tensor([scale * abs(v) for v in S], grad=True)
        (slope,) = torch.autograd.grad(norm_and_direction(own, tensor(T), tensor(U)).sum(), own)
        along = float((slope * own.detach()).sum())
        assert along < -0.01 if lengthened else abs(along) < 1e-12
        assert slope.norm() > 0.01


@pytest.mark.parametrize(("s", "t", "u"), [(S, T, [0.0] * 3), ([0.0] * 3, [0.0] * 3, U)])
def test_a_class_without_a_mean_and_embeddings_of_length_0_say_nothing(s, t, u):
    own = tensor(s, grad=True)
    value = norm_and_direction(own, tensor(t), tensor(u))
    (slope,) = torch.autograd.grad(value.sum(), own)
    assert value.item() == 0
    assert not slope.any()


@pytest.mark.parametrize("batch", [8, 3, 20])
def test_the_means_are_over_the_training_set_once_and_then_stay(batch):
    given = plain_sgd(ND(), EXACT, batch=batch, steps=3, every=1)
    everything = EXACT.change(EXACT.data().data.batch(range(EXAMPLES)))
    given.teachers["teacher"].network.taps = ("last",)
    told = given.teachers["teacher"](everything).features["last"]
    sums, counts = [[0.0] * 12 for _ in range(3)], [0.0] * 3
    for vector, label, weight in zip(told, everything.labels, everything.mask, strict=True):
        counts[label] += float(weight)
        sums[label] = [a + float(weight * v) for a, v in zip(sums[label], vector, strict=True)]
    run = steps(given)
    for at in (1, 2, 3):
        means = run.states[at]["networks"]["means"]
        torch.testing.assert_close(means["sums"], torch.tensor(sums, dtype=torch.float64))
        torch.testing.assert_close(means["counts"], torch.tensor(counts, dtype=torch.float64))
    assert not run.states[0]["networks"]["means"]["counts"].any()


def test_the_training_set_is_read_before_the_first_step_and_the_stream_stays(monkeypatch):
    drawn, following = [], Stream.next

    def watched(stream):
        batch = following(stream)
        drawn.append(batch.id.tolist())
        return batch

    monkeypatch.setattr(Stream, "next", watched)
    steps(plain_sgd(ND(), EXACT, batch=3, steps=4))
    assert len(drawn) == 4


def test_the_direction_of_an_example_is_that_of_its_class_s_mean():
    means = Centroids(2, 3)
    told = Batch(id=torch.arange(3), labels=torch.tensor([0, 1, 1]), mask=torch.ones(3))
    means.add(tensor(U, S, T), told.labels, told.mask)
    run = SimpleNamespace(step=5, players={"means": means})
    found = ND().prepare(run, told).direction
    mean = [(a + b) / 2 for a, b in zip(S, T, strict=True)]
    second = [v / math.hypot(*mean) for v in mean]
    torch.testing.assert_close(found, tensor(U, second, second))


def test_the_terms_of_a_step_by_hand_with_the_ramp():
    """Weights of label, KD and ND at several passes; the direction is that of the label's class."""
    logits, scores = tensor([1.0, 0.0, -1.0], grad=True), tensor([0.0, 2.0, 1.0])
    student = Signals(logits=logits, features={"last": tensor(S)})
    teacher = Signals(logits=scores, features={"last": tensor(T)})
    batch = Batch(id=torch.arange(1), labels=torch.tensor([2]), mask=torch.ones(1))
    method = ND(nd_weight=1.5, kd_weight=3.0, temperature=2.0, ramp_passes=4.0)
    for step, ramp in ((0, 0.0), (10, 0.25), (40, 1.0), (60, 1.0)):
        run = SimpleNamespace(
            student=lambda batch: student, teacher=lambda batch: teacher, log=lambda **told: None,
            players={"student": torch.nn.Identity()}, progress=step / 100, epochs=10.0,
        )  # fmt: skip
        (update,) = method.updates(run, batch.add(direction=tensor(U)))
        told = {term.name: (term.weight, term.value.item()) for term in update.terms}
        p, q = (x[0].detach() / 2 for x in (scores, logits))
        soft = sum(a * math.log(a / b) for a, b in zip(p.softmax(0), q.softmax(0), strict=True))
        assert told["soft"] == (pytest.approx(3.0 * ramp), pytest.approx(4 * float(soft)))
        hard = -math.log(logits[0].detach().softmax(0)[2])
        assert told["label"] == (1.0, pytest.approx(hard))
        assert told["nd"] == (1.5, pytest.approx(1 - dot(S, U) / 13))


def test_without_its_term_it_is_kd():
    nd = ND(nd_weight=0.0, kd_weight=1.0, temperature=3.0, ramp_passes=0.0)
    ours = steps(plain_sgd(nd, EXACT, lr=0.1, batch=4))
    theirs = steps(plain_sgd(KD(temperature=3.0, label_weight=0.5), EXACT, lr=0.2, batch=4))
    assert set(ours.final) == {"student"}
    assert gap(ours.final, theirs.final) < 1e-12


def test_embeddings_become_long_and_turn_to_their_class():
    run = steps(job(ND(kd_weight=0.0), EXACT, steps=150, lr=0.03))
    lengths, cosines = ([log[f"nd/{k}"] for log in run.logs] for k in ("length", "cosine"))
    assert lengths[0] < 0.9
    assert lengths[-1] > 1.0
    assert cosines[-1] > max(0.9, cosines[0] + 0.3)


def test_embeddings_of_a_width_need_no_projector():
    given = job(ND(), EXACT, steps=1)
    given.teachers["teacher"].network = EXACT.student().requires_grad_(False).eval()
    assert set(steps(given).final) == {"student", "means"}
    assert set(steps(job(ND(), EXACT, steps=1)).final) == {"student", "means", "projector"}
