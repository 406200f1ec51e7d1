"""Multi-label distillation against loops over images and labels, and what must not move it."""

import math
from types import SimpleNamespace

import pytest
import torch
import worlds
from torch import Tensor

from stillroom.core import Batch, Failure, Head, Setup, Signals
from stillroom.losses.binary import binary_kl
from stillroom.losses.policy import label_logp
from stillroom.methods.kd import KD
from stillroom.methods.l2d import L2D
from stillroom.models.classes import Classifier
from stillroom.models.networks import CNN, Queries, Shape, build
from stillroom.teachers.local import Local

B, C, D, E = 5, 4, 3, 6
LABELS = torch.tensor([[1, 1, 1, 0], [1, 0, 1, 1], [1, 1, 0, 0], [1, 1, 1, 1], [0, 0, 1, 0]])
WORLD = worlds.World(kind="classes", exact=True, many=True)


def draw(*shape: int, seed: int = 0) -> Tensor:
    made = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=made, dtype=torch.float64)


def batch(mask: Tensor | None = None, labels: Tensor = LABELS) -> Batch:
    ones = torch.ones(len(labels), dtype=torch.float64)
    return Batch(id=torch.arange(len(labels)), labels=labels, mask=ones if mask is None else mask)


def said(seed: int = 0, width: int = D) -> Signals:
    embeddings = draw(B, C, width, seed=seed).requires_grad_()
    return Signals(
        logits=draw(B, C, seed=seed + 50).requires_grad_(), features={"last": embeddings}
    )


def terms(own: Signals, other: Signals, told: Batch | None = None, **fields: float):
    method = L2D(**fields)
    return {t.name: t for t in method.loss(own, other, batch() if told is None else told, {})}


def sigmoid(z: float) -> float:
    return 1 / (1 + math.exp(-z))


def group(own: list[list[float]], other: list[list[float]]) -> float:
    """H of one group, by loops."""
    m, tables = len(own), []
    for points in (own, other):
        table = [[math.dist(a, b) for b in points] for a in points]
        positive = [d for row in table for d in row if d > 0]
        mean = sum(positive) / len(positive) if positive else 1.0
        tables.append([[d / mean for d in row] for row in table])
    gaps = [abs(tables[0][i][j] - tables[1][i][j]) for i in range(m) for j in range(m)]
    return sum(u * u / 2 if u <= 1 else u - 0.5 for u in gaps) / m


def by_hand(own: Signals, other: Signals) -> dict[str, float]:
    z, t = own.logits.tolist(), other.logits.tolist()
    e, f = own.features["last"].tolist(), other.features["last"].tolist()
    y = LABELS.tolist()
    bce = mld = 0.0
    for n in range(B):
        for c in range(C):
            p, q = sigmoid(t[n][c]), sigmoid(z[n][c])
            mld += p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))
            bce -= math.log(q if y[n][c] else 1 - q)
    shared = [[n for n in range(B) if y[n][c]] for c in range(C)]
    whole = [[c for c in range(C) if y[n][c]] for n in range(B)]
    cd = sum(group([e[n][c] for n in who], [f[n][c] for n in who]) for c, who in enumerate(shared))
    many = sum(group([e[n][c] for c in who], [f[n][c] for c in who]) for n, who in enumerate(whole))
    return {"label": bce / B, "logits": mld / B, "class": cd / B, "instance": many / B}


def test_all_four_parts_equal_plain_loops():
    own, other = said(0), said(1, E)
    found, wanted = terms(own, other), by_hand(own, other)
    assert {name: t.weight for name, t in found.items()} == {
        "label": 1.0,
        "logits": 10.0,
        "class": 100.0,
        "instance": 1000.0,
    }
    for name, value in wanted.items():
        assert found[name].value.shape == (B,)
        assert found[name].value.mean().item() == pytest.approx(value, rel=1e-12), name


def test_the_slope_equals_differences_of_the_loops():
    own, other = said(0), said(1, E)
    given = {"logits": own.logits, "last": own.features["last"]}
    total = sum(t.value.mean() for t in terms(own, other).values())
    slopes = torch.autograd.grad(total, [*given.values()])
    for at, slope in zip(given.values(), slopes, strict=True):
        way, ends = draw(*at.shape, seed=9), []
        for step in (1e-6, -1e-6):
            with torch.no_grad():
                at += step * way
            ends.append(sum(by_hand(own, other).values()))
            with torch.no_grad():
                at -= step * way
        wanted = (ends[0] - ends[1]) / 2e-6
        assert (slope * way).sum().item() == pytest.approx(wanted, rel=1e-6)


def test_a_student_equal_to_its_teacher_has_no_loss_and_no_gradient():
    own = said(0)
    found = terms(own, own, label_weight=0.0)
    assert set(found) == {"logits", "class", "instance"}
    total = sum(t.value.abs().sum() for t in found.values())
    assert total.item() == 0
    slopes = torch.autograd.grad(total, [own.logits, own.features["last"]])
    assert max(float(s.abs().max()) for s in slopes) < 1e-15


@pytest.mark.parametrize("who", ["student", "teacher"])
def test_embeddings_may_be_turned_scaled_and_moved(who):
    own, other = said(0), said(1)
    plain = terms(own, other)
    turn = torch.linalg.qr(draw(D, D, seed=7)).Q
    moved = said(0 if who == "student" else 1)
    moved.features["last"] = 3 * moved.features["last"] @ turn + 2
    pair = (moved, other) if who == "student" else (own, moved)
    for name in ("class", "instance"):
        torch.testing.assert_close(terms(*pair)[name].value, plain[name].value)
    bent = said(0 if who == "student" else 1)
    bent.features["last"] = bent.features["last"] * torch.tensor([1.0, 2.0, 5.0])
    pair = (bent, other) if who == "student" else (own, bent)
    assert (terms(*pair)["class"].value - plain["class"].value).abs().max() > 1e-3


def test_labels_are_found_by_the_label_and_not_by_the_embedding():
    """A true embedding of zeros counts, and one of a label that is not there does not."""
    own, other = said(0), said(1)
    with torch.no_grad():
        own.features["last"][0, 1] = 0
    wanted, found = by_hand(own, other), terms(own, other)
    for name in ("class", "instance"):
        assert found[name].value.mean().item() == pytest.approx(wanted[name], rel=1e-12)
    with torch.no_grad():
        own.features["last"][LABELS == 0] = 1e3
    again = terms(own, other)
    for name in ("class", "instance"):
        assert torch.equal(again[name].value, found[name].value)
    slope = torch.autograd.grad(again["class"].value.sum(), own.features["last"])[0]
    assert slope[LABELS == 0].abs().max() == 0


def test_embeddings_that_coincide_give_no_nan():
    own, other = said(0), said(1)
    with torch.no_grad():
        own.features["last"][:] = own.features["last"][0, 0]
    total = sum(t.value.sum() for t in terms(own, other).values())
    slopes = torch.autograd.grad(total, [own.logits, own.features["last"]])
    assert all(s.isfinite().all() for s in slopes)


def test_an_example_that_does_not_count_is_in_no_group():
    own, other = said(0), said(1)
    mask = torch.tensor([1.0, 1.0, 0.0, 1.0, 1.0])
    stay = mask > 0
    less = [
        Signals(logits=s.logits[stay], features={"last": s.features["last"][stay]})
        for s in (own, other)
    ]
    alone = terms(*less, batch(labels=LABELS[stay]))
    for name, term in terms(own, other, batch(mask)).items():
        torch.testing.assert_close(term.value[stay], alone[name].value)


def test_one_label_and_no_embeddings_is_plain_binary_distillation():
    z, t, y = draw(B, 1), draw(B, 1, seed=1), LABELS[:, :1]
    weights = {"class_weight": 0.0, "instance_weight": 0.0, "logit_weight": 1.0}
    found = terms(Signals(logits=z), Signals(logits=t), batch(labels=y), **weights)
    assert set(found) == {"label", "logits"}
    two = [torch.cat([s, torch.zeros_like(s)], 1).log_softmax(-1) for s in (z, t)]
    kl = (two[1].exp() * (two[1] - two[0])).sum(-1)
    torch.testing.assert_close(found["logits"].value, kl)
    torch.testing.assert_close(found["label"].value, -two[0][range(B), 1 - y[:, 0]])


def test_several_labels_have_the_likelihood_of_all_of_them():
    z = draw(B, C)
    wanted = -torch.nn.functional.binary_cross_entropy_with_logits(
        z, LABELS.double(), reduction="none"
    ).sum(-1)
    torch.testing.assert_close(label_logp(z, LABELS), wanted)
    large = torch.tensor([[1e4, -1e4]])
    assert label_logp(large, torch.tensor([[1, 0]])).item() == 0
    assert label_logp(large, torch.tensor([[0, 1]])).item() == -2e4


def test_binary_kl_is_finite_and_in_float32_at_least():
    z = torch.tensor([[1e4, -1e4, 0.0]])
    assert binary_kl(z, z).item() == 0
    assert binary_kl(-z, z).item() == pytest.approx(2e4)
    assert binary_kl(z.bfloat16(), z.bfloat16()).dtype == torch.float32


def test_with_its_weights_at_0_it_is_plain_training_without_features():
    weights = {"logit_weight": 0.0, "class_weight": 0.0, "instance_weight": 0.0}
    assert L2D(**weights).layers() == {}
    runs = [
        worlds.steps(worlds.job(m, WORLD, steps=3)).final["student"]
        for m in (L2D(**weights), KD(label_weight=1.0), L2D())
    ]
    assert worlds.gap(runs[0], runs[1]) < 1e-14
    assert worlds.gap(runs[0], runs[2]) > 1e-4


def test_how_much_there_is_to_compare_is_recorded():
    logged = {}
    run = SimpleNamespace(gather=lambda x: x, log=lambda **values: logged.update(values))
    L2D().prepare(run, batch())
    assert logged["shared_labels"].tolist() == [True, True, True, False]
    assert logged["many_label_images"].tolist() == [True, True, False, True, False]


def test_of_one_vector_an_image_a_label_s_embedding_is_its_share_of_the_logit():
    weight, f, g = draw(C, D, seed=3), draw(B, D), draw(B, E, seed=4)
    own = Signals(logits=f @ weight.T, features={"last": f}, head=Head(weight))
    other = Signals(
        logits=draw(B, C), features={"last": g}, head=Head(draw(C, E, seed=5).requires_grad_())
    )
    named = [
        Signals(
            logits=s.logits, features={"last": s.features["last"][:, None] * s.head.weight[None]}
        )
        for s in (own, other)
    ]
    torch.testing.assert_close(named[0].features["last"].sum(-1), own.logits)
    for name, term in terms(own, other).items():
        torch.testing.assert_close(term.value, terms(*named)[name].value)
        assert not term.value.requires_grad


SHAPE = Shape(inputs=(1, 8, 8), classes=C)


def setup_of(labels: Tensor, student: Classifier, teacher: Classifier) -> Setup:
    one = Batch(id=torch.arange(2), x=torch.randn(2, 1, 8, 8), labels=labels, mask=torch.ones(2))
    return Setup(student, {"teacher": Local(teacher)}, one, 2)


def test_what_has_no_embedding_of_each_label_is_refused_before_the_first_step():
    nets = [Classifier(build(kind, SHAPE), ["last"]) for kind in (Queries(), CNN())]
    assert L2D().players(setup_of(LABELS[:2], *nets)) == {}
    with pytest.raises(Failure, match="one class each"):
        L2D().players(setup_of(torch.tensor([0, 1]), *nets))
    maps = Classifier(build(CNN(), SHAPE), ["map"])
    with pytest.raises(Failure, match=r"layer 'map' says \[1, 32, 4, 4\], which is neither"):
        L2D(student_layer="map").players(setup_of(LABELS[:2], maps, nets[1]))
