"""DHO against formulas on paper: who moves which head, how heads are mixed, what is shipped."""

import math
from types import SimpleNamespace

import pytest
import torch
from numerics import contract, note
from torch import nn
from torch.nn import functional as F
from worlds import World, gap, job, steps

from stillroom.api import distill
from stillroom.core import Batch, Failure, Setup
from stillroom.evaluation.suite import Suite
from stillroom.methods.dho import DHO
from stillroom.models import classes, networks
from stillroom.models.classes import Classifier
from stillroom.models.taps import HEADS, LAST
from stillroom.models.two_heads import best_mixture, grown, mixed, two_heads

B, U, D, C = 5, 7, 6, 3
LABELS = torch.tensor([0, 2, 1, 1, 2])
EXACT = World(kind="classes", exact=True)


def draw(*shape, seed=0):
    made = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=made, dtype=torch.float64)


def network(seed, width=D):
    torch.manual_seed(seed)
    return Classifier(nn.Sequential(nn.Linear(4, width), nn.Tanh(), nn.Linear(width, C))).double()


def batch_of(count, labels, seed=0):
    return Batch(x=draw(count, 4, seed=seed), labels=labels, mask=torch.ones(count), id=labels)


def world(method):
    """A student that was made ready, a teacher, and a batch with unlabelled examples."""
    student, teacher = network(0), network(9, 7)
    student.taps = tuple(method.layers()["student"])
    batch = batch_of(B, LABELS)
    method.players(Setup(student, {}, batch, B))
    return student, teacher, batch.add(unlabelled=batch_of(U, torch.zeros(U).long(), seed=1))


def terms_of(method, student, teacher, batch):
    run = SimpleNamespace(student=student, teacher=teacher, log=lambda **_: None)
    (update,) = method.updates(run, batch)
    assert [term.over for term in update.terms] == ["mask", "mask", "unlabelled.mask"]
    return {term.name: term.weight * term.value.mean() for term in update.terms}


def kl(p, q):
    return sum(a * math.log(a / b) for a, b in zip(p.tolist(), q.tolist(), strict=True))


# ---- the loss


@contract
@pytest.mark.parametrize("heads", [1, 2])
def test_value_and_gradients_of_trunk_and_heads(heads):
    T, w, u = 3.0, 0.3, 0.6
    method = DHO(heads=heads, temperature=T, label_weight=w, unlabelled_weight=u)
    student, teacher, batch = world(method)
    terms = terms_of(method, student, teacher, batch)
    trunk = student.network[0]
    if heads == 2:
        both = student.network[2].both
        first, second = both.first, both.second
    else:
        first = second = student.network[2]
    x, xu = batch.x, batch.unlabelled.x
    g, gu = (F.linear(v, trunk.weight, trunk.bias).tanh().detach() for v in (x, xu))
    t, tu = teacher(batch).logits.detach(), teacher(batch.unlabelled).logits.detach()
    z1, z2, zu = first(g).detach(), second(g).detach(), second(gu).detach()

    p, soft, soft_u = z1.softmax(-1), (z2 / T).softmax(-1), (zu / T).softmax(-1)
    goal, goal_u = (t / T).softmax(-1), (tu / T).softmax(-1)
    wanted = {
        "label": w / B * sum(-math.log(p[i, LABELS[i]]) for i in range(B)),
        "teacher": (1 - w) * T**2 / B * sum(map(kl, goal, soft)),
        "unlabelled": (1 - w) * u * T**2 / U * sum(map(kl, goal_u, soft_u)),
    }
    note("dho", "oracle", max(abs(terms[k].item() - v) for k, v in wanted.items()), 1e-12)

    sum(terms.values()).backward()
    d1 = w / B * (p - F.one_hot(LABELS, C))
    d2, du = (1 - w) * T / B * (soft - goal), (1 - w) * u * T / U * (soft_u - goal_u)
    of_first, of_second = d1.T @ g, d2.T @ g + du.T @ gu
    if heads == 2:
        note("dho", "gradient", gap(first.weight.grad, of_first), 1e-12)
        note("dho", "gradient", gap(second.weight.grad, of_second), 1e-12)
    else:
        note("dho", "gradient", gap(first.weight.grad, of_first + of_second), 1e-12)
    to_g = d1 @ first.weight.detach() + d2 @ second.weight.detach()
    to_gu = du @ second.weight.detach()
    of_trunk = (to_g * (1 - g**2)).T @ x + (to_gu * (1 - gu**2)).T @ xu
    note("dho", "gradient", gap(trunk.weight.grad, of_trunk), 1e-12)


def test_each_head_is_moved_by_its_own_loss_alone_and_the_trunk_by_the_sum():
    method = DHO()
    student, teacher, batch = world(method)
    both, trunk = student.network[2].both, student.network[0].weight
    terms = terms_of(method, student, teacher, batch)
    label, soft = terms["label"], terms["teacher"] + terms["unlabelled"]

    def slopes(loss, parameters):
        return torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)

    # both heads are made in one tensor, so what does not reach a head is a zero, to the bit
    assert all(s is None or not s.any() for s in slopes(soft, [*both.first.parameters()]))
    assert all(s is None or not s.any() for s in slopes(label, [*both.second.parameters()]))
    assert slopes(label, [both.first.weight])[0].abs().max() > 1e-3
    assert slopes(soft, [both.second.weight])[0].abs().max() > 1e-3
    (one,), (other,), (sum_,) = (slopes(v, [trunk]) for v in (label, soft, label + soft))
    assert gap(one + other, sum_) < 1e-15
    assert one.abs().max() > 1e-3
    assert other.abs().max() > 1e-3


def test_labels_of_unlabelled_examples_change_nothing():
    method = DHO()
    student, teacher, batch = world(method)
    before = terms_of(method, student, teacher, batch)
    other = batch.unlabelled.add(labels=batch.unlabelled.labels + 1)
    assert terms_of(method, student, teacher, batch.add(unlabelled=other)) == before


def test_without_weight_the_stream_of_unlabelled_examples_is_not_asked_for():
    told = job(DHO(unlabelled_weight=0.0), EXACT)
    assert set(told.streams) == {"train"}
    assert all("loss/student/unlabelled" not in log for log in steps(told).logs)


def test_the_logged_cosine_is_that_of_both_gradients_of_the_trunk_s_state():
    for heads in (1, 2):
        method = DHO(heads=heads, unlabelled_weight=0.0)
        student, teacher, batch = world(method)
        seen = {}
        run = SimpleNamespace(student=student, teacher=teacher, log=seen.update)
        batch = batch.add(mask=torch.tensor([1.0, 0.0, 1.0, 1.0, 1.0]))
        list(method.updates(run, batch))
        both = two_heads(student).both if heads == 2 else None
        first, second = (both.first, both.second) if both else [student.network[2]] * 2
        g = student.network[:2](batch.x)
        T, t = method.temperature, teacher(batch).logits
        d1 = (first(g).softmax(-1) - F.one_hot(LABELS, C)) @ first.weight
        d2 = ((second(g) / T).softmax(-1) - (t / T).softmax(-1)) @ second.weight
        cosine = (d1 * d2).sum(-1) / (d1.norm(dim=-1) * d2.norm(dim=-1))
        assert gap(seen["cosine"], cosine[batch.mask > 0]) < 1e-12


# ---- the mixture


def test_at_weight_one_the_first_head_speaks_and_at_none_the_second():
    both = draw(4, 2, C) * 3
    assert gap(mixed(both, 1.0, 2.0), both[:, 0].log_softmax(-1)) < 1e-15
    assert gap(mixed(both, 0.0, 2.0), (both[:, 1] / 2.0).log_softmax(-1)) < 1e-15
    half = (both[:, 0].softmax(-1) + (both[:, 1] / 0.5).softmax(-1)) / 2
    assert gap(mixed(both, 0.5, 0.5).exp(), half) < 1e-15
    between = mixed(both, 0.5, 1.0)
    logits = both.mean(1).log_softmax(-1)
    assert gap(between, logits) > 0.1  # probabilities are mixed, not logits


def test_far_logits_mix_to_finite_log_probabilities_and_slopes():
    both = torch.tensor([[[1e4, -1e4, 0.0], [-1e4, 1e4, 0.0]]], requires_grad=True)
    for a in (0.0, 0.5, 1.0):
        said = mixed(both, a, 1.0)
        (slope,) = torch.autograd.grad(said[:, 0].sum(), both)
        assert said.isfinite().all()
        assert slope.isfinite().all()


def test_the_best_mixture_is_found_by_brute_force():
    for seed in range(3):
        both, labels = draw(40, 2, C, seed=seed), torch.randint(0, C, (40,))
        both[torch.arange(20), 0, labels[:20]] += 2  # each head knows a half
        both[torch.arange(20, 40), 1, labels[20:]] += 2
        found = {}
        for a in [k * 0.05 for k in range(21)]:
            for b in (0.5, 0.75, 1, 1.25, 1.5, 2, 4):
                p = a * both[:, 0].softmax(-1) + (1 - a) * (both[:, 1] / b).softmax(-1)
                right = int((p.argmax(-1) == labels).sum())
                likely = float(p[torch.arange(40), labels].log().mean())
                found[round(a, 2), float(b)] = (right, round(likely, 9))
        a, b, accuracy = best_mixture(both, labels)
        assert found[a, b] == max(found.values())
        assert accuracy == pytest.approx(found[a, b][0] / 40)
        assert 0 < a < 1


def test_the_mixture_is_chosen_by_the_validation_split_and_never_by_the_test(tmp_path):
    """Labels of the test split, all of them changed, leave the student as it was."""
    found = []
    for shift in (0, 1):
        told = job(DHO(), EXACT, steps=3, every=1, metrics=True)
        assert told.suite is not None
        test = told.suite.splits["test"].data
        test.items = (test.items[0], (test.items[1] + shift) % C)
        run = steps(told, folder=tmp_path / str(shift))
        found.append(run.final["student"])
    assert gap(*found) == 0
    assert "two_heads" in told.suite.evaluators
    assert not {"mix_weight", "mixed_accuracy"} & set(told.suite.columns("test"))


def test_the_student_carries_the_mixture_of_the_last_validation():
    told = job(DHO(), EXACT, steps=6, every=2, metrics=True)
    chosen = []
    measure = Suite.measure

    def watched(suite, players, split, **more):
        values = measure(suite, players, split, **more)
        if split == "validation":
            chosen.append((values["mix_weight"], values["mix_temperature"]))
        return values

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Suite, "measure", watched)
        run = steps(told)
    (held,) = [v.tolist() for k, v in run.final["student"].items() if k.endswith("head_mixture")]
    assert held == pytest.approx(chosen[-1])
    assert len(chosen) == 4


def test_what_the_mixture_is_told_to_be_is_what_the_evaluator_measures():
    told = job(DHO(), EXACT, metrics=True)
    steps(told)
    assert told.suite is not None
    for column, mixture in (
        ("mixed_accuracy", two_heads(told.student).head_mixture.tolist()),
        ("first_accuracy", [1.0, 4.0]),
        ("second_accuracy", [0.0, 4.0]),
    ):
        two_heads(told.student).head_mixture.copy_(torch.tensor(mixture))
        with torch.no_grad():
            said = told.suite.measure({"student": told.student}, "validation")
        assert said["accuracy"] == pytest.approx(said[column])


# ---- the second head of a network


def test_a_second_head_is_grown_once_beside_the_last_linear_layer():
    student = network(0)
    first = student.network[2]
    made = grown(student)
    assert grown(student) is made
    assert student.network[2] is made
    assert made.both.first is first
    assert sum(isinstance(m, nn.Linear) for m in student.modules()) == 3
    batch = batch_of(B, LABELS)
    student.taps = (LAST, HEADS)
    said = student(batch)
    assert gap(said.features[HEADS][:, 0], said.head.logits(said.features[LAST])) < 1e-15


def test_a_network_without_a_linear_layer_is_refused_and_one_with_more_after_it():
    batch = Batch(x=draw(2, 1, 3, 3), labels=LABELS[:2], mask=torch.ones(2), id=LABELS[:2])
    bare = Classifier(nn.Sequential(nn.Conv2d(1, C, 3), nn.Flatten())).double()
    with pytest.raises(Failure, match=r"last nn\.Linear"):
        DHO().players(Setup(bare, {}, batch, 2))
    told = networks.MLP(widths=[4], subclasses=2)
    summed = Classifier(networks.build(told, networks.Shape(inputs=(1, 3, 3), classes=C))).double()
    with pytest.raises(Failure, match="6 numbers and the student 3 logits"):
        DHO().players(Setup(summed, {}, batch, 2))


class Own(nn.Module):
    """Somebody's network, which knows its classifier by a name."""

    def __init__(self):
        super().__init__()
        self.body, self.fc = nn.Linear(4, 8), nn.Linear(8, C)

    def forward(self, x):
        return self.fc(self.body(x).relu())


def test_somebody_s_own_module_is_distilled_saved_and_taken_up(tmp_path):
    torch.manual_seed(0)
    x, y = torch.randn(60, 4), torch.randint(0, C, (60,))
    splits = {"train": slice(20), "unlabelled": slice(20, 40), "validation": slice(40, 50)}
    data = {name: (x[s], y[s]) for name, s in splits.items()} | {"test": (x[50:], y[50:])}
    told = {"data": data, "steps": 4, "out": tmp_path, "train": {"batch": 5}}
    told["eval"] = {"every": 2, "metrics": ["accuracy", "two_heads"], "samples": 0}
    teacher, probe = Own(), Batch(x=x)
    done = distill("dho", student=Own(), teacher=teacher, **told)
    said = done.student(probe).logits
    assert gap(said.exp().sum(-1), torch.ones(60)) < 1e-6
    # by hand, into a fresh network
    again = Classifier(Own())
    again.load(tmp_path / "student")
    assert gap(again(probe).logits, said) == 0
    # a finished run is found again by a student that has one head yet
    found = distill("dho", student=Own(), teacher=teacher, **told)
    assert gap(found.student(probe).logits, said) == 0
    # and one without the data that it needs is refused in time
    few = {k: v for k, v in data.items() if k != "unlabelled"}
    with pytest.raises(Failure, match="unlabelled"):
        distill("dho", student=Own(), teacher=teacher, **{**told, "data": few})


def test_a_network_that_is_told_by_words_is_made_again_with_both_heads(tmp_path):
    shape = networks.Shape(inputs=(4,), classes=C)
    made = Classifier(networks.build(networks.MLP(widths=[5]), shape))
    grown(made).head_mixture.copy_(torch.tensor([0.25, 4.0]))
    made.save(tmp_path)
    again, probe = classes.load(tmp_path), Batch(x=torch.randn(3, 4))
    assert gap(made(probe).logits, again(probe).logits) == 0
    again.save(tmp_path / "twice")
    assert gap(classes.load(tmp_path / "twice")(probe).logits, again(probe).logits) == 0


def test_both_heads_of_a_student_with_one_loss_each_are_moved_in_a_run():
    run = steps(job(DHO(), EXACT, every=1, keep=5))
    before, after = run.states[0]["networks"]["student"], run.final["student"]
    for head in ("first", "second"):
        names = [k for k in after if f"both.{head}" in k]
        assert len(names) == 2
        assert all(gap(before[k], after[k]) > 0 for k in names)
