"""OFA-KD: both forms class by class, what they come to at their limits, and its exits."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import worlds
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from stillroom.core import Batch, Failure, Setup, Signals
from stillroom.methods.kd import KD
from stillroom.methods.ofa_kd import OFAKD
from stillroom.models.classes import Classifier
from stillroom.models.networks import CNN, MLP, Shape, ViT
from stillroom.models.networks import build as network

N, C = 5, 4
LABELS = torch.tensor([0, 3, 1, 2, 3])
FORMS: list[Any] = ["code", "paper"]


def scores(seed: int = 0, n: int = N) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    own, theirs = (2 * torch.randn(n, C, generator=draw, dtype=torch.float64) for _ in "st")
    return own.requires_grad_(), theirs


def probabilities(row: list[float], temperature: float) -> list[float]:
    weight = [math.exp(z / temperature) for z in row]
    return [w / sum(weight) for w in weight]


def weights(form: Any, p: list[float], label: int, gamma: float) -> list[float]:
    """What ``-log q_j`` counts, class by class."""
    if form == "paper":
        return [(1 + x) ** gamma if j == label else x for j, x in enumerate(p)]
    return [(x + 1) ** gamma - 1 if j == label else x**gamma for j, x in enumerate(p)]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("gamma", "temperature"), [(1.5, 1.0), (1.0, 3.0), (0.5, 2.0)])
def test_value_and_gradient_class_by_class(form: Any, gamma: float, temperature: float) -> None:
    own, theirs = scores()
    method = OFAKD(form=form, gamma=gamma, temperature=temperature)
    found = method.objective(own, theirs.requires_grad_(), LABELS)
    slope, none = torch.autograd.grad(found.sum(), (own, theirs), allow_unused=True)
    assert none is None
    for i, label in enumerate(LABELS.tolist()):
        q, p = (probabilities(z[i].tolist(), temperature) for z in (own, theirs))
        w = weights(form, p, label, gamma)
        wanted = -sum(a * math.log(b) for a, b in zip(w, q, strict=True))
        assert found[i].item() == pytest.approx(wanted, rel=1e-12)
        on_paper = [(sum(w) * b - a) / temperature for a, b in zip(w, q, strict=True)]
        assert slope[i].tolist() == pytest.approx(on_paper, rel=1e-10, abs=1e-12)


def told(method: OFAKD, own: Tensor, theirs: Tensor) -> Tensor:
    """The mean of all that it says without exits."""
    batch = Batch(id=torch.arange(len(own)), labels=LABELS[: len(own)], mask=torch.ones(len(own)))
    terms = method.loss(Signals(logits=own), Signals(logits=theirs), batch, {})
    return torch.stack([term.weight * term.value.mean() for term in terms]).sum()


def test_at_gamma_1_without_exits_it_is_hard_and_soft_cross_entropy() -> None:
    own, theirs = scores()
    wanted = F.cross_entropy(own, LABELS) + F.cross_entropy(own, theirs.softmax(-1))
    plain: dict[str, Any] = {"gamma": 1.0, "exit_weight": 0.0}
    torch.testing.assert_close(told(OFAKD(**plain), own, theirs), wanted)
    # the paper's form has the label's own cross-entropy within
    paper = OFAKD(form="paper", label_weight=0.0, **plain)
    torch.testing.assert_close(told(paper, own, theirs), wanted)


def test_at_gamma_1_without_exits_it_learns_as_kd_does() -> None:
    own, theirs = scores()
    method = OFAKD(gamma=1.0, exit_weight=0.0)
    (slope,) = torch.autograd.grad(told(method, own, theirs), own)
    kd = 2 * KD(temperature=1.0, label_weight=0.5).objective(own, theirs, LABELS).mean()
    (wanted,) = torch.autograd.grad(kd, own)
    torch.testing.assert_close(slope, wanted, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("form", FORMS)
def test_it_is_linear_in_the_logs_of_the_student(form: Any) -> None:
    """One set of weights, found from some students, tells the value of all others."""
    _, theirs = scores(n=1)
    many = torch.randn(12, C, dtype=torch.float64, generator=torch.Generator().manual_seed(9))
    method, label = OFAKD(form=form, gamma=1.7), LABELS[1:2]
    values = method.objective(many, theirs.expand(12, C), label.expand(12))
    logs = many.log_softmax(-1)
    found = torch.linalg.solve(logs[:C], values[:C])
    torch.testing.assert_close(logs[C:] @ found, values[C:])
    p = probabilities(theirs[0].tolist(), 1.0)
    wanted = [-w for w in weights(form, p, int(label), 1.7)]
    assert found.tolist() == pytest.approx(wanted, rel=1e-6)


def test_a_larger_gamma_is_more_label_and_in_the_code_s_form_less_of_the_others() -> None:
    own, theirs = scores()
    slopes: dict[Any, Tensor] = {}
    for form in FORMS:
        for gamma in (1.0, 2.0):
            value = OFAKD(form=form, gamma=gamma).objective(own, theirs, LABELS)
            (slope,) = torch.autograd.grad(value.sum(), own)
            total = slope / own.softmax(-1)  # the sum of weights, less w / q
            slopes[form, gamma] = (total - total.amax(-1, keepdim=True)).detach()
    place = torch.arange(N), LABELS
    for form in FORMS:
        assert (slopes[form, 2.0][place] < slopes[form, 1.0][place]).all()


def test_certain_teachers_leave_finite_numbers() -> None:
    own, theirs = (1e4 * z.float() for z in scores())
    for form in FORMS:
        for gamma in (0.5, 1.0, 2.0):
            value = OFAKD(form=form, gamma=gamma).objective(own.detach(), theirs, LABELS)
            assert torch.isfinite(value).all()


# ---- exits

SHAPE = Shape(inputs=(1, 8, 8), classes=C)
NETWORKS = {
    "cnn": CNN(channels=[4, 8]),
    "vit": ViT(width=8, depth=2, heads=2, patch=4),
    "mlp": MLP(widths=[8, 6]),
}


def student(kind: str) -> Classifier:
    torch.manual_seed(0)
    return Classifier(network(NETWORKS[kind], SHAPE))


def images(n: int = N) -> Batch:
    x = torch.randn(n, 1, 8, 8, generator=torch.Generator().manual_seed(3))
    return Batch(x=x, id=torch.arange(n), labels=LABELS[:n], mask=torch.ones(n))


@pytest.mark.parametrize("kind", NETWORKS)
def test_an_exit_teaches_what_stands_before_it_alone(kind: str) -> None:
    layers = ("parts.0", "parts.1")
    method = OFAKD(exit_layers=layers, label_weight=0.0, head_weight=0.0)
    net, batch = student(kind), images()
    net.taps = tuple(method.layers()["student"])
    players: Any = method.players(Setup(net, {}, batch, N))
    assert set(players) == {"exits"}
    said, theirs = net(batch), torch.randn(N, C)
    terms = method.loss(said, Signals(logits=theirs), batch, players)
    assert [(term.name, term.weight) for term in terms] == [
        ("exit/parts.0", 1.0),
        ("exit/parts.1", 1.0),
    ]
    first = torch.autograd.grad(
        terms[0].value.sum(), list(net.parameters()), allow_unused=True, retain_graph=True
    )
    names = [name for name, _ in net.named_parameters()]
    reached = {n for n, slope in zip(names, first, strict=True) if slope is not None}
    before = {n for n in names if n.startswith(("network.stem", "network.parts.0"))}
    assert reached == before
    torch.stack([term.value.sum() for term in terms]).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in players["exits"].parameters())


def test_an_exit_has_as_many_blocks_as_exits_come_after_it() -> None:
    net, method = student("cnn"), OFAKD(exit_layers=("stem", "parts.0", "parts.1"))
    net.taps = tuple(method.layers()["student"])
    exits: Any = method.players(Setup(net, {}, images(), N))["exits"]
    assert [len(branch.blocks) for branch in exits] == [2, 1, 0]


def test_an_exit_s_value_is_that_of_its_own_logits_by_its_own_gamma() -> None:
    layers = ("parts.0", "parts.1")
    method = OFAKD(exit_layers=layers, exit_gammas=(1.0, 2.0), exit_weight=0.3, temperature=2.0)
    net, batch = student("mlp").double(), images().add(x=images().x.double())
    net.taps = layers
    players: Any = method.players(Setup(net, {}, batch, N))
    _, theirs = scores()
    terms = {t.name: t for t in method.loss(net(batch), Signals(logits=theirs), batch, players)}
    for k, (layer, gamma) in enumerate(zip(layers, (1.0, 2.0), strict=True)):
        with torch.no_grad():
            logits = players["exits"][k](net(batch).features[layer])
        term = terms[f"exit/{layer}"]
        assert term.weight == 0.3
        for i, label in enumerate(LABELS.tolist()):
            q, p = (probabilities(z[i].tolist(), 2.0) for z in (logits, theirs))
            w = weights("code", p, label, gamma)
            wanted = -sum(a * math.log(b) for a, b in zip(w, q, strict=True))
            assert term.value[i].item() == pytest.approx(wanted, rel=1e-9)


def test_exits_are_trained_and_are_not_part_of_the_student_that_is_shipped(tmp_path: Path) -> None:
    world = worlds.World(kind="classes")
    run = worlds.steps(worlds.job(OFAKD(), world, keep=9, every=1), folder=tmp_path)
    before, after = (run.states[k]["networks"]["exits"] for k in (0, 3))
    assert worlds.gap(before, after) > 0
    shipped = load_file(tmp_path / "student" / "model.safetensors")
    assert shipped.keys() == world.student().network.state_dict().keys()


def test_without_exits_there_are_no_players_and_no_layers_to_read() -> None:
    method = OFAKD(exit_weight=0.0)
    assert method.layers() == {}
    assert method.players(Setup(nn.Identity(), {}, images(), N)) == {}


def test_a_gamma_for_each_exit_or_for_none() -> None:
    with pytest.raises(Failure, match="exit_gammas: there are 1 for 2 exit layers"):
        OFAKD(exit_layers=("parts.0", "last"), exit_gammas=(1.0,))
