"""Class attention transfer against loops over classes and places, and what must not move it."""

from dataclasses import replace

import pytest
import torch
import worlds
from torch import nn

from stillroom.core import Batch, Failure, Head, Setup, Signals
from stillroom.losses.maps import class_maps
from stillroom.methods.cat_kd import CATKD
from stillroom.methods.kd import KD
from stillroom.models.classes import Classifier
from stillroom.models.networks import CNN, Shape, ViT, build
from stillroom.teachers.local import Local

B, C, H, W = 4, 3, 5, 4
SHAPE = Shape(inputs=(1, 8, 8), classes=C)
WORLD = worlds.World(kind="classes", exact=True, maps=True)


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    made = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=made, dtype=torch.float64)


def said(features: torch.Tensor, weight: torch.Tensor) -> Signals:
    logits = features.mean((2, 3)) @ weight.T
    return Signals(logits=logits, features={"map": features}, head=Head(weight))


def two(seed: int = 0) -> tuple[Signals, Signals]:
    """Of a student of 2 channels and 5 by 4 places, and a teacher of 3 channels and 6 by 6."""
    own = said(draw(B, 2, H, W, seed=seed).requires_grad_(), draw(C, 2, seed=1).requires_grad_())
    return own, said(draw(B, 3, 6, 6, seed=2), draw(C, 3, seed=3))


def batch() -> Batch:
    labels = torch.tensor([0, 2, 1, 2])
    return Batch(id=torch.arange(B), labels=labels, mask=torch.ones(B))


def pooled_by_hand(plane: list[list[float]], r: int) -> list[float]:
    """Means over windows from floor(i n / r) to ceil((i + 1) n / r)."""
    rows, columns = len(plane), len(plane[0])
    cells = []
    for i in range(r):
        for j in range(r):
            high = range(i * rows // r, -(-(i + 1) * rows // r))
            wide = range(j * columns // r, -(-(j + 1) * columns // r))
            window = [plane[a][b] for a in high for b in wide]
            cells.append(sum(window) / len(window))
    return cells


def map_by_hand(signals: Signals, n: int, c: int) -> list[list[float]]:
    features, weight = signals.features["map"][n].tolist(), signals.head.weight[c].tolist()
    rows, columns = len(features[0]), len(features[0][0])
    told = range(len(weight))
    return [
        [sum(weight[d] * features[d][a][b] for d in told) for b in range(columns)]
        for a in range(rows)
    ]


def by_hand(method: CATKD, own: Signals, other: Signals) -> list[float]:
    values = []
    for n in range(B):
        ranking = sorted(range(C), key=lambda c: float(other.logits[n, c]))
        kept = ranking if method.classes is None else ranking[: method.classes]
        if method.classes is not None and method.ranked == "highest":
            kept = ranking[-method.classes :]
        squares = []
        for c in kept:
            plane = map_by_hand(other, n, c)
            if method.binary:
                flat = [abs(v) for row in plane for v in row]
                plane = [[float(v > sum(flat) / len(flat)) for v in row] for row in plane]
            seen = [pooled_by_hand(p, method.resolution) for p in (map_by_hand(own, n, c), plane)]
            if method.normalised:
                lengths = [sum(v * v for v in cells) ** 0.5 for cells in seen]
                seen = [[v / k for v in cells] for cells, k in zip(seen, lengths, strict=True)]
            squares += [(a - b) ** 2 for a, b in zip(*seen, strict=True)]
        values.append(sum(squares) / len(squares))
    return values


METHODS = {
    "defaults": CATKD(),
    "as they are": CATKD(normalised=False, resolution=3),
    "one place": CATKD(normalised=False, resolution=1),
    "binary": CATKD(binary=True),
    "highest": CATKD(classes=2),
    "lowest": CATKD(classes=1, ranked="lowest", normalised=False),
}
each = pytest.mark.parametrize("name", METHODS)


@each
def test_the_maps_loss_equals_plain_loops(name):
    method, (own, other) = METHODS[name], two()
    maps, label = method.loss(own, other, batch(), {})
    assert (maps.name, maps.weight, label.name, label.weight) == ("maps", 15.0, "label", 1.0)
    wanted = torch.tensor(by_hand(method, own, other), dtype=torch.float64)
    torch.testing.assert_close(maps.value, wanted, rtol=1e-12, atol=1e-14)
    ce = -own.logits.log_softmax(-1)[range(B), batch().labels]
    torch.testing.assert_close(label.value, ce)


@each
def test_the_slope_equals_differences_of_the_loops(name):
    method, (own, other) = METHODS[name], two()
    value = method.loss(own, other, batch(), {})[0].value.sum()
    slopes = torch.autograd.grad(value, [own.features["map"], own.head.weight])
    for at, slope in zip((own.features["map"], own.head.weight), slopes, strict=True):
        way = draw(*at.shape, seed=9)
        ends = []
        for step in (1e-6, -1e-6):
            with torch.no_grad():
                at += step * way
            ends.append(sum(by_hand(method, own, other)))
            with torch.no_grad():
                at -= step * way
        assert float((slope * way).sum()) == pytest.approx((ends[0] - ends[1]) / 2e-6, rel=1e-6)


def test_the_mean_of_a_class_activation_map_is_the_logit():
    torch.manual_seed(0)
    net = Classifier(build(CNN(channels=[4, 6], head_bias=False), SHAPE), ["map"]).double()
    one = Batch(id=torch.arange(5), x=draw(5, 1, 8, 8))
    told = net(one)
    found = class_maps(told.features["map"], told.head.weight)
    assert found.shape == (5, C, 4, 4)
    torch.testing.assert_close(found.mean((2, 3)), told.logits, rtol=1e-14, atol=1e-15)


def test_one_place_without_length_compares_logits():
    own, other = two()
    found = METHODS["one place"].loss(own, other, batch(), {})[0].value
    torch.testing.assert_close(found, (own.logits - other.logits).square().mean(1))


def test_a_student_equal_to_its_teacher_has_no_loss_and_no_gradient():
    own = said(draw(B, 3, H, W).requires_grad_(), draw(C, 3, seed=1).requires_grad_())
    value = CATKD().loss(own, own, batch(), {})[0].value
    assert value.abs().max() == 0
    slopes = torch.autograd.grad(value.sum(), [own.features["map"], own.head.weight])
    assert max(float(s.abs().max()) for s in slopes) == 0


def test_only_the_direction_of_each_class_map_counts():
    own, other = two()
    larger = said(own.features["map"] * 3, own.head.weight * torch.tensor([[1.0], [2.0], [0.5]]))
    plain, scaled = (CATKD().loss(s, other, batch(), {})[0].value for s in (own, larger))
    torch.testing.assert_close(plain, scaled)
    moved = said(own.features["map"] + 1, own.head.weight)
    assert (CATKD().loss(moved, other, batch(), {})[0].value - plain).abs().min() > 1e-4


def test_a_map_of_zeros_has_a_finite_gradient():
    features = draw(B, 2, H, W)
    features[1] = 0
    own = said(features.requires_grad_(), draw(C, 2, seed=1))
    value = CATKD().loss(own, two()[1], batch(), {})[0].value
    assert value[1].item() == pytest.approx(1 / 4)  # four places of a map of length 1
    (slope,) = torch.autograd.grad(value.sum(), own.features["map"])
    assert slope.isfinite().all()
    assert slope.abs().max() < 100


def test_nothing_flows_to_the_teacher():
    own, other = two()
    other = said(other.features["map"].requires_grad_(), other.head.weight.requires_grad_())
    value = CATKD().loss(own, other, batch(), {})[0].value.sum()
    given = [other.features["map"], other.head.weight]
    assert torch.autograd.grad(value, given, allow_unused=True) == (None, None)


def test_without_weight_on_the_maps_it_is_plain_training():
    changes = {"steps": 3, "batch": 4}
    method = CATKD(beta=0.0)
    mine = worlds.steps(worlds.job(method, WORLD, **changes)).final["student"]
    ce = worlds.steps(worlds.job(KD(label_weight=1.0), WORLD, **changes)).final["student"]
    assert worlds.gap(mine, ce) < 1e-14
    alone = worlds.steps(worlds.job(CATKD(label_weight=0.0), WORLD, **changes)).logs[-1]
    assert "loss/student/label" not in alone


def test_the_maps_alone_teach_the_teacher_s_classes():
    """CAT: no label is read, and the student tells what the teacher does."""
    net = replace(WORLD, exact=False)
    given = worlds.job(CATKD(label_weight=0.0), net, steps=150, batch=8, lr=0.02)
    worlds.steps(given)
    seen = net.data().batch(range(8))
    own, other = given.student.eval(), given.teachers["teacher"]
    assert (own(seen).logits.argmax(-1) == other(seen).logits.argmax(-1)).double().mean() > 0.8


def setup_of(student: nn.Module, teacher: nn.Module) -> Setup:
    one = Batch(id=torch.arange(2), x=draw(2, 1, 8, 8).float())
    return Setup(
        Classifier(student, ["map"]), {"teacher": Local(Classifier(teacher, ["map"]))}, one, 2
    )


@pytest.mark.parametrize(
    ("student", "teacher", "words"),
    [
        (CNN(), CNN(head_bias=False), "student must end in a linear classifier without a bias"),
        (CNN(head_bias=False), CNN(), "teacher must end in a linear classifier without a bias"),
        (CNN(head_bias=False, subclasses=2), CNN(head_bias=False), "student's class activation"),
        (CNN(head_bias=False), ViT(), "teacher must end in"),
    ],
)
def test_what_does_not_explain_its_logits_is_refused_before_the_first_step(student, teacher, words):
    given = setup_of(build(student, SHAPE), build(teacher, SHAPE))
    with pytest.raises(Failure, match=words):
        CATKD().players(given)


def test_a_network_that_pools_by_the_largest_is_refused():
    convs = [nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveMaxPool2d(1), nn.Flatten()]
    pooled = nn.Sequential(*convs, nn.Linear(4, C, bias=False))
    given = setup_of(build(CNN(head_bias=False), SHAPE), pooled)
    with pytest.raises(Failure, match="teacher's class activation maps is not its logit"):
        CATKD().players(given)
    assert (
        CATKD().players(
            setup_of(build(CNN(head_bias=False), SHAPE), build(CNN(head_bias=False), SHAPE))
        )
        == {}
    )
