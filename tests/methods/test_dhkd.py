"""DHKD against formulas on paper: which loss moves which head, and gradients that are aligned."""

import math
from dataclasses import replace

import launch
import pytest
import torch
from numerics import contract, note
from torch import nn
from torch.nn import functional as F
from worlds import World, gap, job, plain_sgd, steps

from stillroom.core import Batch, Setup
from stillroom.engine.record import Record
from stillroom.engine.training import train
from stillroom.methods.dhkd import DHKD
from stillroom.models.classes import Classifier

B, D, C = 6, 5, 3
LABELS = torch.tensor([0, 2, 1, 1, 2, 0])
EXACT = World(kind="classes", exact=True)


def draw(*shape, seed=0):
    made = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=made, dtype=torch.float64)


def network(seed, width=D):
    torch.manual_seed(seed)
    return Classifier(nn.Sequential(nn.Linear(4, width), nn.Tanh(), nn.Linear(width, C))).double()


def world(method, seed=0):
    """A student that speaks as the method asks, its players, a batch and a teacher's scores."""
    student, teacher = network(seed), network(seed + 100, 7)
    student.taps = tuple(method.layers().get("student", ()))
    batch = Batch(x=draw(B, 4), labels=LABELS, mask=torch.ones(B), id=torch.arange(B))
    torch.manual_seed(seed)
    players = method.players(Setup(student, {}, batch, B))
    return student, {"student": student, **players}, batch, teacher(batch)


def terms_of(method, student, players, batch, teacher):
    terms = method.loss(student(batch), teacher, batch, players)
    return {term.name: term.weight * term.value.mean() for term in terms}


@contract
@pytest.mark.parametrize("head", ["linear", "mlp", "shared"])
def test_value_and_gradients_of_both_heads(head):
    method = DHKD(head=head, hidden=4, temperature=1.5, label_weight=0.7, logit_weight=0.4)
    student, players, batch, teacher = world(method)
    terms = terms_of(method, student, players, batch, teacher)
    own, last = student.network[2], student.network[:2](batch.x).detach()
    z, zt = own(last).detach(), teacher.logits.detach()
    za = z if head == "shared" else players["auxiliary"](last).detach()
    logit = sum(
        math.log(math.cosh(float(a - b) / 3))
        for a, b in zip(za.flatten(), zt.flatten(), strict=True)
    )
    note("dhkd", "oracle", abs(terms["logit"].item() - 0.4 * 1.5**2 * logit / B), 1e-12)
    label = -sum(float(z[i].log_softmax(-1)[LABELS[i]]) for i in range(B)) / B
    note("dhkd", "oracle", abs(terms["label"].item() - 0.7 * label), 1e-12)
    sum(terms.values()).backward()
    of_label = 0.7 / B * (z.softmax(-1) - F.one_hot(LABELS, C))
    of_logit = 0.4 * 1.5 / B * (torch.sigmoid((za - zt) / 1.5) - 0.5)
    both = of_label + of_logit if head == "shared" else of_label
    note("dhkd", "gradient", gap(own.weight.grad, both.T @ last), 1e-12)
    if head == "linear":
        aux = players["auxiliary"]
        note("dhkd", "gradient", gap(aux.weight.grad, of_logit.T @ last), 1e-12)
        to_last = of_label @ own.weight.detach() + of_logit @ aux.weight.detach()
        first = (to_last * (1 - last**2)).T @ batch.x
        note("dhkd", "gradient", gap(student.network[0].weight.grad, first), 1e-12)


@pytest.mark.parametrize("head", ["linear", "mlp", "shared"])
def test_the_logits_move_the_student_s_own_head_only_where_it_is_shared(head):
    method = DHKD(head=head)
    student, players, batch, teacher = world(method)
    own = list(student.network[2].parameters())
    logit = terms_of(method, student, players, batch, teacher)["logit"]
    slopes = torch.autograd.grad(logit, own, allow_unused=True)
    assert all((slope is None) == (head != "shared") for slope in slopes)
    label = terms_of(method, student, players, batch, teacher)["label"]
    if head != "shared":
        further = list(players["auxiliary"].parameters())
        assert all(s is None for s in torch.autograd.grad(label, further, allow_unused=True))


def test_a_constant_added_to_the_teacher_s_logits_is_seen():
    """A softmax would not see it."""
    method = DHKD()
    student, players, batch, teacher = world(method)
    before = terms_of(method, student, players, batch, teacher)
    teacher["logits"] = teacher.logits + 3.0
    after = terms_of(method, student, players, batch, teacher)
    assert after["label"] == before["label"]
    assert after["logit"] > before["logit"] + 0.1


def test_without_weight_on_the_logits_the_student_is_trained_on_labels_alone():
    plain = DHKD(logit_weight=0.0)
    student, players, batch, teacher = world(plain)
    terms = terms_of(plain, student, players, batch, teacher)
    wanted = F.cross_entropy(student(batch).logits, LABELS)
    assert sum(terms.values()).item() == pytest.approx(wanted.item(), rel=1e-12)


def slopes_of(method, given):
    """Gradients of both losses for all parameters of student and head, by hand and flat."""
    student, players, batch, teacher = given
    moving = [p for network in players.values() for p in network.parameters()]
    terms = terms_of(method, student, players, batch, teacher)
    found = []
    for name in ("label", "logit"):
        slopes = torch.autograd.grad(
            terms[name], moving, retain_graph=True, allow_unused=True, materialize_grads=True
        )
        found.append(torch.cat([s.flatten() for s in slopes]))
    return found


class Aligning:
    """What a method touches of a run when it aligns."""

    def __init__(self, given):
        self.said, self.players, _, self.teaches = given
        self.logged = {}

    def student(self, batch):
        return self.said(batch)

    def teacher(self, batch):
        return self.teaches

    def gather(self, value):
        return value

    def log(self, **values):
        self.logged |= values


@contract
@pytest.mark.parametrize("head", ["linear", "shared"])
def test_the_aligned_step_is_the_projection_of_the_paper(head):
    signs = set()
    for seed in range(12):
        method = DHKD(head=head, align=True, logit_weight=0.5)
        given = world(method, seed)
        g1, g2 = slopes_of(method, given)
        product = float(g1 @ g2)
        projected = g2 - min(0.0, product) / float(g1 @ g1) * g1
        run = Aligning(given)
        with torch.no_grad():
            batch = method.prepare(run, given[2])
        found = sum(slopes_of(method, (given[0], given[1], batch, given[3])))
        note("dhkd", "gradient", gap(found, g1 + projected), 1e-12)
        own = sum(p.numel() for p in given[0].parameters())
        cosine = F.cosine_similarity(g1[:own], g2[:own], 0)
        assert float(run.logged["cosine"]) == pytest.approx(float(cosine), abs=1e-12)
        assert float(projected @ g1) > -1e-12
        signs.add(product < 0)
    assert signs == {True, False}  # some conflict and some do not


@pytest.mark.parametrize("head", ["linear", "mlp", "shared"])
def test_aligned_steps_of_a_split_batch_are_those_of_the_whole(head):
    method = DHKD(head=head, hidden=6, align=True, logit_weight=3.0)
    told = {"steps": 8, "seed": 3}
    whole = steps(plain_sgd(method, EXACT, **told))
    assert any(log["cosine"] < -0.01 for log in whole.logs)
    for budget in (5, 1):
        split = steps(plain_sgd(method, EXACT, tokens_per_micro=budget, **told))
        assert gap(whole.logs, split.logs) < 1e-10
        assert gap(whole.final, split.final) < 1e-10


def aligned(out):
    exact = replace(EXACT, change=launch.weighed)
    method = DHKD(head="shared", align=True, logit_weight=3.0)
    train(plain_sgd(method, exact, steps=6), out)


@contract
@pytest.mark.slow
def test_two_processes_align_as_one_does(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    children = [
        launch.alone(tmp_path / "log", aligned, one),
        *launch.together(2, tmp_path / "logs", aligned, two),
    ]
    codes = [child.wait(120) for child in children]
    assert codes == [0, 0, 0], "\n".join(child.said() for child in children)
    lines = [Record(place).lines("metrics.jsonl") for place in (one, two)]
    told = [[{k: v for k, v in n.items() if "time/" not in k} for n in log] for log in lines]
    assert min(log.get("cosine", 0) for log in told[0]) < -0.1
    note("dhkd", "2 processes", gap(*told), 1e-9)


def test_the_statistics_of_a_batch_norm_move_once_a_step():
    def counted(align):
        run = steps(job(DHKD(align=align), World(kind="classes"), steps=3))
        return [int(v) for k, v in run.final["student"].items() if "num_batches" in k]

    assert counted(align=True) == counted(align=False) == [3]


def test_the_shipped_student_has_one_head(tmp_path):
    steps(job(DHKD(), EXACT), folder=tmp_path / "run")
    again = EXACT.student()
    again.load(tmp_path / "run" / "student")
    assert not any("auxiliary" in name for name in again.state_dict())
