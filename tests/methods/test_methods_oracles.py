"""Each method against another formula: loops in Python, hand values, gradients on paper."""

import itertools
import math

import pytest
import torch
from numerics import contract, note
from torch import nn
from torch.nn import functional as F
from worlds import gap

from stillroom.core import Batch, Head, Setup, Signals
from stillroom.data.text import collate
from stillroom.methods.gkd import GKD
from stillroom.methods.kd import KD
from stillroom.methods.ps_kd import PSKD
from stillroom.methods.rkd import RKD
from stillroom.methods.seqkd import SeqKD
from stillroom.models import text
from stillroom.rollouts.sampling import uniform

N, V = 5, 6
LABELS = torch.tensor([0, 3, 5, 1, 3])


def draw(*shape, seed=0):
    made = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=made, dtype=torch.float64) * 2


def probabilities(row, temperature=1.0):
    weight = [math.exp(float(z) / temperature) for z in row]
    return [w / sum(weight) for w in weight]


def kl(p, q):
    return sum(a * (math.log(a) - math.log(b)) for a, b in zip(p, q, strict=True))


def batch_of(**fields):
    return Batch(id=torch.arange(N), labels=LABELS, mask=torch.ones(N), **fields)


def text_batch():
    pairs = [([2, 3], [4, 5, 1]), ([5], [1]), ([3, 3, 2], [2, 1])]
    return collate(pairs, torch.arange(3), 0)


def model(seed=0, width=4):
    torch.manual_seed(seed)
    sizes = {"hidden_size": width, "intermediate_size": 8, "num_attention_heads": 2}
    return text.build("windowed", V, 1, 0, **sizes, max_position_embeddings=16).double()


# ---- kd


@contract
@pytest.mark.parametrize("temperature", [1.0, 3.0])
@pytest.mark.parametrize("label_weight", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("kind", ["classes", "tokens"])
def test_kd_in_value_and_gradient(temperature, label_weight, kind):
    method = KD(temperature=temperature, label_weight=label_weight)
    z, t = draw(N, V).requires_grad_(), draw(N, V, seed=1)
    if kind == "classes":
        student, teacher = Signals(logits=z), Signals(logits=t)
    else:  # the identity as head, so that hidden states are the logits
        head = Head(torch.eye(V, dtype=torch.float64))
        student, teacher = Signals(hidden=z, head=head), Signals(hidden=t, head=head)
    found = method.loss(student, teacher, batch_of(), {})
    wanted = []
    for row, theirs, label in zip(z.detach(), t, LABELS, strict=True):
        soft = kl(probabilities(theirs, temperature), probabilities(row, temperature))
        hard = -math.log(probabilities(row)[label])
        wanted.append((1 - label_weight) * temperature**2 * soft + label_weight * hard)
    assert (found.over, found.weight) == ("mask", 1.0)
    note("kd", "oracle", gap(found.value.tolist(), wanted), 1e-12)
    (slope,) = torch.autograd.grad(found.value.sum(), z)
    soft = temperature * ((z / temperature).softmax(-1) - (t / temperature).softmax(-1))
    hard = z.softmax(-1) - F.one_hot(LABELS, V)
    on_paper = (1 - label_weight) * soft + label_weight * hard
    note("kd", "gradient", gap(slope, on_paper), 1e-12)


# ---- seqkd


@contract
def test_seqkd_is_the_mean_negative_log_likelihood_with_the_end():
    lm, batch = model(), text_batch()
    term = SeqKD().loss(lm(batch), Signals(), batch, {})
    wanted = []
    for ids, prompt in (([2, 3, 4, 5, 1], 2), ([5, 1], 1), ([3, 3, 2, 2, 1], 3)):
        logits = lm.model(torch.tensor([ids])).logits[0].detach()
        wanted += [-math.log(probabilities(logits[k - 1])[ids[k]]) for k in range(prompt, len(ids))]
    assert len(wanted) == 6
    note("seqkd", "oracle", gap(term.value.tolist(), wanted), 1e-12)
    mean = F.cross_entropy(lm(batch).logits, batch.labels)
    assert float((term.value * batch.mask).sum().detach() / batch.mask.sum()) == pytest.approx(
        mean.item()
    )


# ---- gkd


@contract
@pytest.mark.parametrize("beta", [0.0, 0.25, 0.5, 1.0])
def test_gkd_s_divergence_between_its_ends(beta):
    student, teacher = draw(N, V), draw(N, V, seed=1)
    wanted = []
    for row, theirs in zip(student, teacher, strict=True):
        q, p = probabilities(row), probabilities(theirs)
        m = [beta * a + (1 - beta) * b for a, b in zip(p, q, strict=True)]
        ends = {0.0: kl(p, q), 1.0: kl(q, p)}
        wanted.append(ends.get(beta, beta * kl(p, m) + (1 - beta) * kl(q, m)))
    found = GKD(beta=beta).loss(Signals(logits=student), Signals(logits=teacher), batch_of(), {})
    note("gkd", "oracle", gap(found.value.tolist(), wanted), 1e-12)


class Writing:
    """A run whose student writes one known batch, and notes how it was asked."""

    def __init__(self, lm, teacher, step=0):
        self.lm, self.says, self.step, self.asked = lm, teacher, step, []
        self.players = {}
        self.written = collate([([2, 3], [2, 2]), ([5], [4, 4, 1])], torch.arange(2), 0)

    def student(self, batch):
        return self.lm(batch)

    def teacher(self, batch):
        return self.says(batch)

    def rollout(self, batch, n=1, **sampling):
        self.asked.append((n, sampling))
        return self.written

    def uniform(self, tag=0):
        return float(uniform(0, self.step, tag + 1))


def test_gkd_off_policy_is_soft_cross_entropy_on_the_teacher_s_text():
    run = Writing(model(0), model(1, width=6))
    method = GKD(beta=0.0, on_policy=0.0)
    for run.step in range(30):
        batch = method.prepare(run, text_batch())
        assert torch.equal(batch.ids, text_batch().ids)
    assert run.asked == []
    (update,) = method.updates(run, batch)
    logits = run.lm(batch).logits
    target = run.says(batch).logits.softmax(-1)
    soft = F.cross_entropy(logits, target, reduction="none")
    certain = torch.special.entr(target).sum(-1)  # KL is the cross-entropy less what is constant
    torch.testing.assert_close(update.terms.value, soft - certain, rtol=1e-9, atol=1e-12)
    one = torch.autograd.grad(update.terms.value.sum(), list(run.lm.parameters()))
    other = torch.autograd.grad(soft.sum(), list(run.lm.parameters()))
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-10)


def test_gkd_on_policy_scores_every_token_of_the_student_s_own_answers():
    run = Writing(model(0), model(1, width=6))
    method = GKD(beta=1.0, on_policy=1.0, sample_temperature=0.7)
    batch = method.prepare(run, text_batch())
    assert batch is run.written
    assert run.asked == [(1, {"temperature": 0.7})]
    (update,) = method.updates(run, batch)
    assert update.players == ("student",)
    wanted = []
    for ids, prompt in (([2, 3, 2, 2], 2), ([5, 4, 4, 1], 1)):
        told = [lm.model(torch.tensor([ids])).logits[0].detach() for lm in (run.lm, run.says)]
        for k in range(prompt, len(ids)):
            q, p = (probabilities(logits[k - 1]) for logits in told)
            wanted.append(kl(q, p))
    assert update.terms.value.tolist() == pytest.approx(wanted, rel=1e-9)


def test_gkd_writes_in_the_share_of_steps_that_is_asked_for():
    run, method = Writing(None, None), GKD(on_policy=0.3)
    for run.step in range(2000):
        method.sequences(run, text_batch())
    # 3 standard deviations of a fair draw
    assert len(run.asked) / 2000 == pytest.approx(0.3, abs=3 * math.sqrt(0.21 / 2000))


# ---- rkd


def distances(points):
    apart = [[math.dist(a, b) for b in points] for a in points]
    positive = [d for row in apart for d in row if d > 0]
    return [[d / (sum(positive) / len(positive)) for d in row] for row in apart]


def cosine(a, corner, b):
    one = [x - y for x, y in zip(a, corner, strict=True)]
    two = [x - y for x, y in zip(b, corner, strict=True)]
    sizes = math.hypot(*one) * math.hypot(*two)
    return sum(x * y for x, y in zip(one, two, strict=True)) / sizes if sizes else 0.0


def huber(u):
    return u * u / 2 if abs(u) <= 1 else abs(u) - 0.5


@contract
def test_rkd_by_loops_over_pairs_and_triplets():
    s, t, logits = draw(N, 3), draw(N, 7, seed=1) ** 3, draw(N, V, seed=2)
    method = RKD(distance_weight=0.5, angle_weight=3.0, label_weight=0.2)
    student = Signals(logits=logits, features={"last": s})
    terms = method.loss(student, Signals(features={"last": t}), batch_of(), {})
    own, theirs = s.tolist(), t.tolist()
    d_s, d_t = distances(own), distances(theirs)
    pairs = itertools.product(range(N), repeat=2)
    distance = sum(huber(d_s[i][j] - d_t[i][j]) for i, j in pairs) / N**2
    angle = 0.0
    for i, j, k in itertools.product(range(N), repeat=3):
        there = cosine(theirs[i], theirs[j], theirs[k])
        angle += huber(cosine(own[i], own[j], own[k]) - there) / N**3
    label = sum(-math.log(probabilities(r)[y]) for r, y in zip(logits, LABELS, strict=True)) / N
    means = {term.name: float(term.value.mean()) for term in terms}
    note("rkd", "oracle", gap(means, {"distance": distance, "angle": angle, "label": label}), 1e-12)
    assert {term.name: term.weight for term in terms} == {
        "distance": 0.5,
        "angle": 3.0,
        "label": 0.2,
    }
    assert {t.name for t in RKD().loss(student, Signals(features={"last": t}), batch_of(), {})} == {
        "distance",
        "angle",
    }


# ---- ps-kd


class Passes:
    """A run of four passes over samples of which a batch holds some."""

    def __init__(self, logits, method, samples=9):
        self.logits = logits
        setup = Setup(Spoken(logits[:1]), {}, batch_of(), samples)
        self.players = dict(method.players(setup))
        self.epoch, self.epochs = 0, 4.0

    def student(self, batch):
        return Signals(logits=self.logits)

    def gather(self, value):
        return value


class Spoken(nn.Module):
    def __init__(self, logits):
        super().__init__()
        self.logits = logits

    def forward(self, batch):
        return Signals(logits=self.logits.detach())


def ps_kd(method, run, ids):
    batch = batch_of().add(id=torch.tensor(ids))
    with torch.no_grad():
        batch = method.prepare(run, batch)
    (update,) = method.updates(run, batch)
    method.after(run, batch)
    (slope,) = torch.autograd.grad(update.terms.value.sum(), run.logits, retain_graph=True)
    return update.terms.value, slope


IDS = [7, 2, 0, 5, 3]


def test_ps_kd_without_alpha_is_cross_entropy_bit_for_bit():
    method, logits = PSKD(alpha=0.0), draw(N, V).requires_grad_()
    run = Passes(logits, method)
    wanted = F.cross_entropy(logits, LABELS, reduction="none")
    (slope,) = torch.autograd.grad(wanted.sum(), logits)
    for run.epoch in range(3):  # whatever the table holds
        value, found = ps_kd(method, run, IDS)
        assert torch.equal(value, wanted)
        assert torch.equal(found, slope)


@contract
def test_ps_kd_mixes_the_label_with_the_prediction_of_the_pass_before():
    method = PSKD(alpha=0.8)
    first, second = draw(N, V).requires_grad_(), draw(N, V, seed=1).requires_grad_()
    run, label = Passes(first, method), F.one_hot(LABELS, V).double()
    value, slope = ps_kd(method, run, IDS)
    # a first pass has nothing to look back on: plain labels
    torch.testing.assert_close(value, F.cross_entropy(first, LABELS, reduction="none"))
    torch.testing.assert_close(slope, first.softmax(-1) - label)
    run.logits, run.epoch = second, 1
    value, slope = ps_kd(method, run, IDS)
    target = (1 - 0.8 * 2 / 4) * label + 0.8 * 2 / 4 * first.detach().softmax(-1)
    torch.testing.assert_close(target.sum(-1), torch.ones(N).double())
    note("ps_kd", "oracle", gap(value, -(target * second.log_softmax(-1)).sum(-1)), 1e-12)
    note("ps_kd", "gradient", gap(slope, second.softmax(-1) - target), 1e-12)
    run.logits, run.epoch = first, 3  # the last pass gives the whole weight
    _, slope = ps_kd(method, run, IDS)
    last = 0.2 * label + 0.8 * second.detach().softmax(-1)
    torch.testing.assert_close(slope, first.softmax(-1) - last)


def test_ps_kd_touches_only_the_samples_that_it_sees():
    method, logits = PSKD(), draw(N, V).requires_grad_()
    run = Passes(logits, method)
    ps_kd(method, run, IDS)
    before = run.players["before"]
    assert before.written.nonzero().flatten().tolist() == sorted(IDS)
    assert torch.equal(before.values[torch.tensor(IDS)], logits.detach().softmax(-1))
    unseen = [i for i in range(9) if i not in IDS]
    assert before.values[unseen].abs().sum() == 0
    assert not before.values.requires_grad
    # by id, not by place in the batch: the same samples in another order look back on their own
    run.logits, run.epoch = draw(N, V, seed=4).requires_grad_(), 3
    turned = [IDS[k] for k in (4, 0, 3, 1, 2)]
    _, slope = ps_kd(method, run, turned)
    old = logits.detach()[[4, 0, 3, 1, 2]].softmax(-1)
    target = 0.2 * F.one_hot(LABELS, V) + 0.8 * old
    torch.testing.assert_close(slope, run.logits.softmax(-1) - target)


def test_ps_kd_pays_attention_to_what_did_not_improve():
    """Wrong classes feel ``1 - a (1 - before_g) / (1 - now_g)`` of what cross-entropy does."""
    method = PSKD(alpha=0.5)
    first, second = draw(N, V).requires_grad_(), draw(N, V, seed=1).requires_grad_()
    run = Passes(first, method)
    ps_kd(method, run, IDS)
    run.logits, run.epoch = second, 3
    _, slope = ps_kd(method, run, IDS)
    place = torch.arange(N), LABELS
    before, now = first.detach().softmax(-1)[place], second.detach().softmax(-1)[place]
    factor = 1 - 0.5 * (1 - before) / (1 - now)
    wrong = slope.sum(-1) - slope[place]
    torch.testing.assert_close(wrong, factor * (1 - now))
