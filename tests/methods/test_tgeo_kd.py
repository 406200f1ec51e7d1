"""The ratio of teacher and label, and the gradient it learns by, of a student known on paper."""

import math

import pytest
import torch
from numerics import contract, note
from torch import nn
from torch.nn import functional as F
from worlds import World, gap, job, steps

from stillroom.core import Batch, Setup, Signals
from stillroom.methods.kd import KD
from stillroom.methods.tgeo_kd import TGeoKD
from stillroom.models.classes import Classifier

B, H, D, C = 5, 4, 2, 3
LABELS, HELD_LABELS = torch.tensor([0, 2, 1, 2, 0]), torch.tensor([1, 1, 0, 2])
MASK, HELD_MASK = torch.tensor([1.0, 1.0, 1.0, 0.0, 1.0]), torch.tensor([1.0, 0.0, 1.0, 1.0])
TAU, ETA = 1.5, 0.7


def draw(*shape, seed=0):
    made = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=made, dtype=torch.float64)


class Beside:
    """A run whose student is one linear layer, and whose teacher knows five samples by id."""

    def __init__(self, method, teacher=None):
        torch.manual_seed(0)
        student = Classifier(nn.Sequential(nn.Linear(D, C))).double()
        self.says = 2 * draw(B, C, seed=3) if teacher is None else teacher
        self.batch = Batch(x=draw(B, D), labels=LABELS, mask=MASK.double(), id=torch.arange(B))
        setup = Setup(student, {}, self.batch, B)
        self.players = {"student": student, **method.players(setup)}
        self.logged, self.step = {}, 0

    def next(self, stream):
        assert stream == "held"
        x = draw(H, D, seed=1)
        return Batch(x=x, labels=HELD_LABELS, mask=HELD_MASK.double(), id=torch.arange(H))

    def everything(self, stream):
        assert stream == "train"
        yield self.batch

    def teacher(self, batch):
        return Signals(logits=self.says[batch.id])

    def student(self, batch):
        return self.players["student"](batch)

    def functional(self, player, weights, batch):
        return torch.func.functional_call(self.players[player], dict(weights), (batch,))

    def gather(self, value):
        return value

    def log(self, **values):
        self.logged |= values

    def updates(self, method):
        with torch.no_grad():
            batch = method.prepare(self, self.batch)
        return method.updates(self, batch)


def mean(term, mask):
    return (term.value * mask).sum() / mask.sum()


def softmax(row):
    weight = [math.exp(z) for z in row]
    return [w / sum(weight) for w in weight]


def geometry_by_hand(run):
    """[B] rows of 9 C numbers, from lists."""
    said = [softmax(row) for row in run.student(run.batch).logits.tolist()]
    told = [softmax(row) for row in run.says.tolist()]
    counted = [i for i in range(B) if MASK[i]]
    rows = []
    for s, t, label in zip(said, told, LABELS.tolist(), strict=True):
        g = [float(c == label) for c in range(C)]
        alike = [i for i in counted if LABELS[i] == label] or counted
        m = [sum(told[i][c] for i in alike) / len(alike) for c in range(C)]
        edges = []
        for a, b in ((m, s), (g, s), (t, s), (t, g), (m, g)):
            edges += [(x - y) ** 2 for x, y in zip(a, b, strict=True)]
        rows.append(edges + s + t + g + m)
    return rows


def ratio_by_hand(run):
    linear = [m for m in run.players["controller"].modules() if isinstance(m, nn.Linear)]
    ratios = []
    for told in geometry_by_hand(run):
        row = told
        for i, layer in enumerate(linear):
            pairs = zip(layer.weight.tolist(), layer.bias.tolist(), strict=True)
            row = [sum(w * x for w, x in zip(ws, row, strict=True)) + b for ws, b in pairs]
            row = [x if x > 0 or i == len(linear) - 1 else 0.01 * x for x in row]
        ratios.append(1 / (1 + math.exp(-row[0])))
    return ratios


def ahead_by_hand(run):
    """J_out after the inner step, whose gradient is written down for one linear layer."""
    layer = run.players["student"].network[0]
    x, z, ratio = run.batch.x, run.student(run.batch).logits, ratio_by_hand(run)
    ratio = torch.tensor(ratio, dtype=torch.float64).unsqueeze(1)
    soft = TAU * ((z / TAU).softmax(-1) - (run.says / TAU).softmax(-1))
    hard = z.softmax(-1) - F.one_hot(LABELS, C)
    slope = (ratio * soft + (1 - ratio) * hard) * MASK.unsqueeze(1) / MASK.sum()
    weight, bias = layer.weight - ETA * slope.T @ x, layer.bias - ETA * slope.sum(0)
    held = run.next("held")
    told = F.cross_entropy(held.x @ weight.T + bias, HELD_LABELS, reduction="none")
    return float((told * HELD_MASK).sum().detach() / HELD_MASK.sum())


def test_the_ratio_comes_from_the_geometry_of_the_sample():
    method = TGeoKD(width=4)
    run = Beside(method)
    *_, update = run.updates(method)
    wanted = [r for r, m in zip(ratio_by_hand(run), MASK, strict=True) if m]
    assert run.logged["ratio"].tolist() == pytest.approx(wanted, rel=1e-9)
    right = [int(run.says[i].argmax()) == int(LABELS[i]) for i in range(B) if MASK[i]]
    assert any(right)
    assert not all(right)
    for name, which in (("ratio_right", True), ("ratio_wrong", False)):
        some = [r for r, is_right in zip(wanted, right, strict=True) if is_right is which]
        assert run.logged[name].tolist() == pytest.approx(some, rel=1e-9)
    assert update.players == ("student",)


@contract
def test_the_hypergradient_is_the_slope_of_what_is_reached_by_one_step():
    method = TGeoKD(temperature=TAU, inner_rate=ETA, width=4)
    run = Beside(method)
    update = next(run.updates(method))
    assert update.players == ("controller",)
    assert update.terms.over == "held.mask"
    found = mean(update.terms, HELD_MASK)
    note("tgeo_kd", "oracle", abs(found.item() - ahead_by_hand(run)), 1e-12)
    weights = list(run.players["controller"].parameters())
    slopes = torch.autograd.grad(found, weights)
    assert max(float(s.abs().max()) for s in slopes) > 1e-4
    worst, width = 0.0, 1e-5
    with torch.no_grad():
        for weight, slope in zip(weights, slopes, strict=True):
            flat = weight.view(-1)
            for i in range(len(flat)):
                was, ends = float(flat[i]), []
                for moved in (was + width, was - width):
                    flat[i] = moved
                    ends.append(ahead_by_hand(run))
                flat[i] = was
                by_differences = (ends[0] - ends[1]) / (2 * width)
                worst = max(worst, abs(by_differences - float(slope.view(-1)[i])))
    note("tgeo_kd", "gradient", worst, 1e-9)


@pytest.mark.parametrize("constant", [0.0, 0.3, 1.0])
def test_a_ratio_that_is_constant_is_plain_distillation(constant):
    method = TGeoKD(temperature=TAU)
    run = Beside(method)
    last = run.players["controller"].layers[-1]
    nn.init.zeros_(last.weight)
    nn.init.constant_(last.bias, {0.0: -800.0, 1.0: 800.0}.get(constant, math.log(3 / 7)))
    *_, update = run.updates(method)
    kd = KD(temperature=TAU, label_weight=1 - constant)
    own = run.student(run.batch)
    wanted = kd.loss(own, run.teacher(run.batch), run.batch, {})
    torch.testing.assert_close(update.terms.value, wanted.value)
    weights = list(run.players["student"].parameters())
    slopes = [torch.autograd.grad(mean(t, MASK), weights) for t in (update.terms, wanted)]
    for a, b in zip(*slopes, strict=True):
        torch.testing.assert_close(a, b)


def test_nothing_is_learned_of_a_teacher_that_says_what_the_label_says():
    certain = 1000.0 * F.one_hot(LABELS, C).double()
    method = TGeoKD(temperature=1.0)  # then both losses have the gradient p - onehot
    run = Beside(method, teacher=certain)
    update = next(run.updates(method))
    slopes = torch.autograd.grad(
        mean(update.terms, HELD_MASK), list(run.players["controller"].parameters())
    )
    assert max(float(s.abs().max()) for s in slopes) < 1e-15


def test_the_student_s_update_leaves_the_controller_alone():
    method = TGeoKD()
    run = Beside(method)
    *_, update = run.updates(method)
    weights = list(run.players["controller"].parameters())
    with pytest.raises(RuntimeError, match="not have been used"):
        torch.autograd.grad(update.terms.value.sum(), weights)


WORLD = World(kind="classes", exact=True)


@pytest.mark.parametrize("batch", [3, 4, 5])
def test_class_means_are_those_of_the_whole_training_stream_from_the_first_step(batch):
    given = job(TGeoKD(), WORLD, steps=1, batch=batch, every=1)
    found = steps(given)
    x, labels = WORLD.data("train").items
    with torch.no_grad():
        chances = WORLD.teacher(TGeoKD()).network.network(x).softmax(-1)
    wanted = torch.stack([chances[labels == c].mean(0) for c in range(3)])
    assert labels.bincount(minlength=3).min() > 0
    kept = found.final["means"]
    torch.testing.assert_close(kept["sums"] / kept["counts"][:, None], wanted)
    later = steps(job(TGeoKD(), WORLD, steps=4, batch=batch))
    assert gap(later.final["means"], kept) == 0


def test_without_learning_the_held_rows_are_not_read_and_the_ratios_stay():
    method = TGeoKD(learned=False)
    assert method.streams() == {"train"}
    run = steps(job(method, WORLD, steps=3, every=1, keep=4))
    assert gap(run.states[0]["networks"]["controller"], run.final["controller"]) == 0
    assert gap(run.states[0]["networks"]["student"], run.final["student"]) > 0
    assert not any("held" in name for log in run.logs for name in log)


def test_looking_ahead_leaves_no_trace_in_what_a_batch_norm_counts():
    """It reads thrice, twice with weights and statistics that are thrown away."""
    rough = World(kind="classes")
    run = steps(job(TGeoKD(), rough, steps=3))
    (tracked,) = [v for k, v in run.final["student"].items() if "num_batches" in k]
    assert int(tracked) == 3
