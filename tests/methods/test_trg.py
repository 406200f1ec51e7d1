"""The token graph of a batch: what it is zero for, what it does not see, what it adds up to."""

import math

import pytest
import torch
from numerics import contract, note
from torch import nn
from torch.nn import functional as F
from worlds import World, gap, job, steps

from stillroom.core import Batch, Setup, Signals
from stillroom.engine.settings import Optimizer
from stillroom.losses import token_graph
from stillroom.methods.trg import TRG
from stillroom.models.classes import Classifier
from stillroom.models.networks import CNN, Shape, ViT, build
from stillroom.rollouts.sampling import uniform
from stillroom.teachers.local import Local

B, N, C = 4, 9, 3
LABELS = torch.tensor([0, 2, 1, 2])


def draw(*shape, seed=0):
    made = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=made, dtype=torch.float64)


class Drawing:
    def __init__(self, step=0):
        self.step = step

    def uniform(self, tag=0):
        return float(uniform(0, self.step, tag + 1))


def batch_of(method, step=0, order=None):
    order = torch.arange(B) if order is None else order
    told = Batch(id=10 + order, labels=LABELS[order], mask=torch.ones(B))
    return method.prepare(Drawing(step), told)


def said(width, seed, order=None):
    order = torch.arange(B) if order is None else order
    logits, tokens = draw(B, C, seed=seed)[order], draw(B, N, width, seed=seed + 1)[order]
    return Signals(logits=logits.requires_grad_(), features={"map": tokens.requires_grad_()})


def nets(own, other):
    torch.manual_seed(0)
    return {"projector": nn.Linear(own, other, bias=False).double()}


def values(terms):
    return {term.name: term.value for term in terms}


@contract
def test_each_term_by_loops_over_all_tokens():
    method = TRG(tokens=10**6, neighbours=3, graph_temperature=0.3, temperature=2.0)
    own, other, players = said(4, 0), said(6, 5), nets(4, 6)
    terms = method.loss(own, other, batch_of(method), players)
    projected = own.features["map"] @ players["projector"].weight.T
    v, u = (
        [[[x / math.hypot(*row) for x in row] for row in image] for image in tokens.tolist()]
        for tokens in (projected, other.features["map"])
    )
    wanted = {name: [0.0] * B for name in ("label", "soft", "local", "global", "context")}
    places = [(b, n) for b in range(B) for n in range(N)]

    def alike(one, two):
        return sum(x * y for x, y in zip(one, two, strict=True)) / 0.3

    def softmax(row):
        weight = [math.exp(z) for z in row]
        return [w / sum(weight) for w in weight]

    def kl(p, q):
        return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))

    for b, n in places:
        far = [p for p in places if p[0] != b]
        near = sorted(far, key=lambda p: -alike(u[b][n], u[p[0]][p[1]]))[:3]
        a, s = (softmax([alike(x[b][n], x[i][j]) for i, j in near]) for x in (u, v))
        wanted["local"][b] += kl(a, s) / N
        pull = softmax([alike(v[b][n], u[i][j]) for i, j in places])
        wanted["global"][b] -= math.log(pull[places.index((b, n))]) / N
        a, s = (softmax([alike(x[b][n], x[b][j]) for j in range(N)]) for x in (u, v))
        wanted["context"][b] += kl(a, s) / N
    for b in range(B):
        wanted["label"][b] = -math.log(softmax(own.logits[b].tolist())[LABELS[b]])
        p, q = (softmax((x.logits[b] / 2).tolist()) for x in (other, own))
        wanted["soft"][b] = 4 * kl(p, q)
    found = {name: value.tolist() for name, value in values(terms).items()}
    note("trg", "oracle", gap(found, wanted), 1e-12)
    assert {t.name: t.weight for t in TRG(local_weight=0.5, soft_weight=2).loss(
        own, other, batch_of(method), players)} == {
        "label": 1, "soft": 2, "local": 0.5, "global": 1, "context": 1,
    }  # fmt: skip


@contract
def test_the_gradient_is_the_slope_and_reaches_student_and_projector_alone():
    method = TRG(tokens=10**6, neighbours=3)
    own, other, players = said(4, 0), said(6, 5), nets(4, 6)
    batch, weight = batch_of(method), players["projector"].weight

    def total(tokens):
        told = Signals(logits=own.logits, features={"map": tokens})
        return sum(t.weight * t.value.mean() for t in method.loss(told, other, batch, players))

    tokens = own.features["map"]
    slope, by_weight = torch.autograd.grad(total(tokens), (tokens, weight), retain_graph=True)
    assert by_weight.abs().max() > 1e-6
    with pytest.raises(RuntimeError, match="not have been used"):
        torch.autograd.grad(total(tokens), other.features["map"])
    with torch.no_grad():
        differences, width = torch.zeros_like(tokens), 1e-6
        for i in range(tokens.numel()):
            step = torch.zeros_like(tokens)
            step.view(-1)[i] = width
            differences.view(-1)[i] = (total(tokens + step) - total(tokens - step)) / (2 * width)
    note("trg", "gradient", gap(slope, differences), 1e-8)


@pytest.mark.parametrize("tokens", [12, 10**6])
def test_a_student_that_is_the_teacher_has_neither_local_nor_contextual_loss(tokens):
    method = TRG(tokens=tokens)
    one, same = said(6, 5), {"projector": nn.Linear(6, 6, bias=False).double()}
    nn.init.eye_(same["projector"].weight)
    found = values(method.loss(one, one, batch_of(method), same))
    for name in ("local", "context", "soft"):
        assert found[name].abs().max() < 1e-12
    assert found["global"].min() > 0.01


@pytest.mark.parametrize("tokens", [12, 10**6])
def test_a_batch_in_another_order_has_the_same_values(tokens):
    method, players, order = TRG(tokens=tokens), nets(4, 6), torch.tensor([2, 0, 3, 1])
    plain = values(method.loss(said(4, 0), said(6, 5), batch_of(method), players))
    turned = method.loss(
        said(4, 0, order), said(6, 5, order), batch_of(method, order=order), players
    )
    for name, value in values(turned).items():
        torch.testing.assert_close(value, plain[name][order], msg=name)


def test_drawn_tokens_are_the_same_of_both_and_others_in_each_step(monkeypatch):
    method, players = TRG(tokens=12), nets(4, 4)
    nn.init.eye_(players["projector"].weight)
    seen, contrast = [], token_graph.contrast
    monkeypatch.setattr(
        token_graph, "contrast", lambda v, u, t: (seen.append((v, u)), contrast(v, u, t))[1]
    )
    own, other = said(4, 0), said(4, 5)
    marks = torch.arange(B * N, dtype=torch.float64).view(B, N, 1).expand(B, N, 4)
    own["features"] = {"map": marks + 0}
    other["features"] = {"map": marks + 0}
    drawn = []
    for step in (0, 0, 1):
        method.loss(own, other, batch_of(method, step), players)
        v, u = seen[-1]
        assert torch.equal(v, u)
        drawn.append(v[:, 0].long().tolist())
    assert all(len(set(one)) == 12 for one in drawn)
    assert [i // N for i in drawn[0]] == [b for b in range(B) for _ in range(3)]
    assert drawn[0] == drawn[1] != drawn[2]
    # not the same places of every image, which would never compare one place with another
    assert len({tuple(i % N for i in drawn[0][3 * b :][:3]) for b in range(B)}) > 1


def test_networks_with_other_grids_meet_on_the_coarser():
    shape = Shape(inputs=(1, 8, 8), classes=C)
    torch.manual_seed(0)
    pairs = [
        (CNN(channels=[5, 6]), ViT(width=8, patch=2)),  # 4 x 4 after pooling, and 4 x 4
        (ViT(width=8, patch=4), CNN(channels=[5, 6])),  # 2 x 2
    ]
    x = draw(B, 1, 8, 8)
    batch = Batch(x=x, id=torch.arange(B), labels=LABELS, mask=torch.ones(B))
    for one, two in pairs:
        student, teacher = (
            Classifier(build(spec, shape), taps=["map"]).double() for spec in (one, two)
        )
        method = TRG()
        players = method.players(Setup(student, {"teacher": Local(teacher)}, batch, B))
        terms = method.loss(
            student(batch), Local(teacher)(batch), method.prepare(Drawing(), batch), players
        )
        for term in terms:
            assert term.value.shape == (B,)
            assert term.value.isfinite().all()


def test_one_image_alone_has_no_neighbours():
    method = TRG()
    batch = method.prepare(Drawing(), Batch(id=torch.arange(1), labels=LABELS[:1]))
    own, other = (
        Signals(logits=s.logits[:1], features={"map": s.features["map"][:1]})
        for s in (said(4, 0), said(6, 5))
    )
    found = values(method.loss(own, other, batch, nets(4, 6)))
    assert found["local"].tolist() == [0]
    assert found["global"].item() > 0


WORLD = World(kind="classes", exact=True, maps=True)


def test_without_the_graph_it_is_plain_distillation():
    """The student's weights after some steps are those of the two losses written down."""
    bare = TRG(local_weight=0, global_weight=0, context_weight=0, temperature=2.0, soft_weight=3)
    told = {"steps": 1, "batch": 8, "lr": 0.1, "clip": None}
    found = steps(job(bare, WORLD, **told, optimizer=Optimizer(name="sgd"))).final["student"]
    student, teacher = WORLD.student(), WORLD.teacher(bare).network
    batch = WORLD.data("train").batch(range(8))
    z, t = student(batch).logits, teacher(batch).logits.detach()
    soft = F.kl_div((z / 2).log_softmax(-1), (t / 2).softmax(-1), reduction="batchmean")
    (F.cross_entropy(z, batch.labels) + 3 * 4 * soft).backward()
    for name, weight in student.named_parameters():
        torch.testing.assert_close(found[name], weight.detach() - 0.1 * weight.grad)


class Saying(Drawing):
    """A run whose student and teacher say what they are given."""

    def __init__(self, own, other, players):
        super().__init__()
        self.own, self.other, self.players, self.logged = own, other, players, {}

    def student(self, batch):
        return self.own

    def teacher(self, batch):
        return self.other

    def gather(self, value):
        return value

    def log(self, **values):
        self.logged |= values


def test_overlap_is_the_share_of_the_teacher_s_neighbours_that_are_the_student_s():
    method, players = TRG(tokens=10**6, neighbours=3), nets(6, 6)
    nn.init.eye_(players["projector"].weight)
    for own, wanted in ((said(6, 5), 1.0), (said(6, 0), 3 / 27)):
        run = Saying(own, said(6, 5), {"student": nn.Linear(1, 1), **players})
        (update,) = method.updates(run, batch_of(method))
        assert update.players == ("student", "projector")
        # of strangers 3 of 27 are shared by chance; 36 tokens, 4 standard errors
        assert run.logged["overlap"].mean().item() == pytest.approx(wanted, abs=0.13 * (wanted < 1))
