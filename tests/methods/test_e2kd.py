"""Explanations against formulas on paper, and their second derivatives against differences."""

from dataclasses import replace

import pytest
import torch
import worlds
from torch import Tensor, nn
from torch.nn import functional as F

from stillroom.core import Batch, Failure
from stillroom.methods.e2kd import E2KD
from stillroom.methods.kd import KD
from stillroom.models.classes import Classifier
from stillroom.models.networks import CNN, MLP, Shape, ViT, build
from stillroom.teachers.local import Local

B, C, D, K, SIZE = 5, 3, 4, 6, 6
WORLD = worlds.World(kind="classes", exact=True, maps=True)
FORMS = ("grad_cam", "input_gradient")
each_form = pytest.mark.parametrize("form", FORMS)


def draw(*shape: int, seed: int = 0) -> Tensor:
    made = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=made, dtype=torch.float64)


class Curved(nn.Module):
    """conv, tanh, mean, linear, tanh, linear: how much a channel counts depends on the image."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.conv, self.act = nn.Conv2d(1, D, 3, padding=1), nn.Tanh()
        self.up, self.out = nn.Linear(D, K), nn.Linear(K, C)
        with torch.no_grad():
            for i, p in enumerate(self.parameters()):
                p.copy_(draw(*p.shape, seed=10 * seed + i))
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.act(self.up(self.act(self.conv(x)).mean((2, 3)))))


class Run:
    """What ``updates`` touches of a run."""

    def __init__(self, student: nn.Module, teacher: nn.Module, taps=("map",)) -> None:
        self.student = Classifier(student, taps)
        self.says = Local(Classifier(teacher, taps))
        self.step, self.logged = 0, {}

    def teacher(self, batch, *, grad=False):
        return self.says(batch, grad=grad)

    def log(self, **values):
        self.logged |= values


def batch_of(x: Tensor) -> Batch:
    return Batch(id=torch.arange(len(x)), x=x, labels=torch.zeros(len(x), dtype=torch.long))


def terms(method: E2KD, run: Run, x: Tensor) -> dict[str, Tensor]:
    (update,) = method.updates(run, batch_of(x))
    return {term.name: term.value for term in update.terms}


def cam_on_paper(net: Curved, x: Tensor, chosen: Tensor) -> Tensor:
    """relu(sum_d a_d F_d), with a_d = 1 / (hw) sum_k V_ck (1 - t_k^2) U_kd."""
    maps = torch.tanh(F.conv2d(x, net.conv.weight, net.conv.bias, padding=1))
    bent = torch.tanh(maps.mean((2, 3)) @ net.up.weight.T + net.up.bias)
    slope = ((1 - bent**2) * net.out.weight[chosen]) @ net.up.weight / SIZE**2
    seen = torch.zeros(B, SIZE, SIZE, dtype=torch.float64)
    for d in range(D):
        seen = seen + slope[:, d, None, None] * maps[:, d]
    return seen.clamp(min=0)


def slope_on_paper(net: Curved, x: Tensor, chosen: Tensor) -> Tensor:
    """dz_c / dx: the slope at each channel, through tanh, spread by the transposed convolution."""
    maps = torch.tanh(F.conv2d(x, net.conv.weight, net.conv.bias, padding=1))
    bent = torch.tanh(maps.mean((2, 3)) @ net.up.weight.T + net.up.bias)
    slope = ((1 - bent**2) * net.out.weight[chosen]) @ net.up.weight / SIZE**2
    inner = slope[:, :, None, None] * (1 - maps**2)
    return F.conv_transpose2d(inner, net.conv.weight, padding=1)


PAPER = {"grad_cam": cam_on_paper, "input_gradient": slope_on_paper}


def on_paper(form: str, student: Curved, teacher: Curved, x: Tensor) -> list[float]:
    with torch.no_grad():
        chosen = teacher(x).argmax(1)
        pairs = [PAPER[form](net, x, chosen).flatten(1).tolist() for net in (student, teacher)]
    values = []
    for a, b in zip(*pairs, strict=True):
        dot = sum(u * v for u, v in zip(a, b, strict=True))
        lengths = [sum(v * v for v in m) ** 0.5 for m in (a, b)]
        values.append(1 - dot / lengths[0] / lengths[1])
    return values


@each_form
def test_explanations_equal_the_formulas_on_paper(form):
    student, teacher, x = Curved(1), Curved(2), draw(B, 1, SIZE, SIZE)
    found = terms(E2KD(explanation=form), Run(student, teacher), x)["explanation"]
    wanted = torch.tensor(on_paper(form, student, teacher, x), dtype=torch.float64)
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-12)
    assert wanted.std() > 0.01


@each_form
def test_second_derivatives_equal_differences_of_the_formulas(form):
    student, teacher, x = Curved(1), Curved(2), draw(B, 1, SIZE, SIZE)
    value = terms(E2KD(explanation=form), Run(student, teacher), x)["explanation"].sum()
    given = dict(student.named_parameters())
    slopes = torch.autograd.grad(value, [*given.values()], allow_unused=True)
    for (name, at), slope in zip(given.items(), slopes, strict=True):
        slope = torch.zeros_like(at) if slope is None else slope
        way, ends = draw(*at.shape, seed=9), []
        for step in (1e-5, -1e-5):
            with torch.no_grad():
                at += step * way
            ends.append(sum(on_paper(form, student, teacher, x)))
            with torch.no_grad():
                at -= step * way
        wanted = (ends[0] - ends[1]) / 2e-5
        assert (slope * way).sum().item() == pytest.approx(wanted, rel=1e-5, abs=1e-8), name
        assert abs(wanted) > 1e-3 or name == "out.bias"


def test_before_the_mean_and_a_linear_classifier_grad_cam_is_the_class_map():
    torch.manual_seed(0)
    nets = [build(CNN(channels=[5], pool=0), Shape(inputs=(1, 8, 8), classes=C)) for _ in "st"]
    run, x = Run(*(n.double() for n in nets)), draw(B, 1, 8, 8)
    found = terms(E2KD(), run, x)["explanation"]
    chosen, maps = run.says(batch_of(x)).logits.argmax(1), []
    for speaker in (run.student, run.says):
        said = speaker(batch_of(x))
        maps.append(torch.einsum("bdhw,bd->bhw", said.features["map"], said.head.weight[chosen]))
    wanted = 1 - F.cosine_similarity(*(m.clamp(min=0).flatten(1) for m in maps))
    torch.testing.assert_close(found, wanted)


def test_a_channel_counts_by_its_mean_slope_over_places():
    nets = []
    for seed in (1, 2):
        conv, out = nn.Conv2d(1, D, 3, padding=1), nn.Linear(D * SIZE**2, C)
        with torch.no_grad():
            for i, p in enumerate((conv.weight, conv.bias, out.weight, out.bias)):
                p.copy_(draw(*p.shape, seed=10 * seed + i))
        nets.append(nn.Sequential(conv, nn.Tanh(), nn.Flatten(), out).double())
    x, maps = draw(B, 1, SIZE, SIZE), []
    found = terms(E2KD(), Run(*nets), x)["explanation"]
    chosen = nets[1](x).argmax(1)
    for net in nets:
        slope = net[3].weight.view(C, D, SIZE, SIZE)[chosen]
        seen = (slope.mean((2, 3))[:, :, None, None] * net[1](net[0](x))).sum(1)
        maps.append(seen.clamp(min=0).flatten(1))
    torch.testing.assert_close(found, 1 - F.cosine_similarity(*maps))


def test_maps_of_two_sizes_are_compared_at_the_size_of_the_image():
    torch.manual_seed(0)
    shape = Shape(inputs=(1, 8, 8), classes=C)
    nets = [build(CNN(channels=[5], pool=p, norm=False), shape).double() for p in (1, 0)]
    x = draw(B, 1, 8, 8)
    found = terms(E2KD(), Run(*nets), x)["explanation"]
    assert found.shape == (B,)
    assert found.isfinite().all()
    small = F.interpolate(torch.tensor([[[[1.0, 3.0]]]]), size=(1, 4), mode="bilinear")
    assert small.flatten().tolist() == [1.0, 1.5, 2.5, 3.0]  # centres of cells, by hand


@each_form
def test_two_equal_networks_explain_alike(form):
    x = draw(B, 1, SIZE, SIZE)
    net = Curved(1)
    run = Run(net, Curved(1))
    told = terms(E2KD(explanation=form), run, x)
    assert told["explanation"].abs().max() < 1e-12
    assert told["answers"].abs().max() < 1e-14
    slopes = torch.autograd.grad(told["explanation"].sum(), [*net.parameters()], allow_unused=True)
    assert max(float(s.abs().max()) for s in slopes if s is not None) < 1e-10


@each_form
@pytest.mark.parametrize("who", ["student", "teacher"])
def test_scores_times_a_positive_number_explain_alike(form, who):
    student, teacher, x = Curved(1), Curved(2), draw(B, 1, SIZE, SIZE)
    plain = terms(E2KD(explanation=form), Run(student, teacher), x)["explanation"]
    net = student if who == "student" else teacher
    with torch.no_grad():
        net.out.weight *= 7
        net.out.bias *= 7
    larger = terms(E2KD(explanation=form), Run(student, teacher), x)["explanation"]
    torch.testing.assert_close(plain, larger)
    with torch.no_grad():
        net.out.weight *= -1
    assert (
        terms(E2KD(explanation=form), Run(student, teacher), x)["explanation"] - plain
    ).abs().max() > 0.1


@each_form
def test_an_example_s_value_does_not_depend_on_its_company(form):
    student, teacher, x = Curved(1), Curved(2), draw(B, 1, SIZE, SIZE)
    together = terms(E2KD(explanation=form), Run(student, teacher), x)["explanation"]
    alone = [
        terms(E2KD(explanation=form), Run(student, teacher), i[None])["explanation"] for i in x
    ]
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-12, atol=1e-14)


def test_a_map_of_zeros_adds_nothing_and_is_counted():
    student, teacher, x = Curved(1), Curved(2), draw(B, 1, SIZE, SIZE)
    with torch.no_grad():  # all channels speak against every class where their maps are positive
        student.out.weight.fill_(-1.0)
        student.up.weight.fill_(0.2)
        student.conv.weight.zero_()
        student.conv.bias.fill_(0.5)
    run = Run(student, teacher)
    told = terms(E2KD(), run, x)
    assert told["explanation"].tolist() == [0.0] * B
    assert run.logged["zero_maps"].tolist() == [1.0] * B
    sum(v.sum() for v in told.values()).backward()
    assert all(p.grad.isfinite().all() for p in student.parameters())
    run = Run(Curved(1), teacher)
    terms(E2KD(), run, x)
    assert run.logged["zero_maps"].sum() == 0


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_without_weight_it_is_kd(temperature):
    runs = [
        worlds.steps(worlds.job(method, WORLD, steps=4, batch=4))
        for method in (
            E2KD(explanation_weight=0.0, temperature=temperature),
            KD(temperature=temperature),
            E2KD(temperature=temperature),
        )
    ]
    students = [run.final["student"] for run in runs]
    assert worlds.gap(students[0], students[1]) < 1e-14
    assert worlds.gap(students[1], students[2]) > 1e-4


def test_explanations_may_be_compared_every_few_steps():
    logs = worlds.steps(worlds.job(E2KD(every=2), WORLD, steps=4, batch=4)).logs
    assert ["loss/student/explanation" in log for log in logs] == [True, False, True, False]
    assert "zero_maps" in logs[0]


@each_form
def test_no_gradient_reaches_the_teacher_or_stays_behind(form):
    world = replace(WORLD, exact=False)
    given = worlds.job(E2KD(explanation=form, label_weight=0.5), world, steps=2, batch=4)
    network = given.teachers["teacher"].network
    before = {k: v.clone() for k, v in network.state_dict().items()}
    logs = worlds.steps(given).logs
    assert worlds.gap(before, dict(network.state_dict())) == 0
    assert all(p.grad is None for p in network.parameters())
    assert {"loss/student/answers", "loss/student/label", "loss/student/explanation"} <= set(
        logs[0]
    )


def test_attention_has_a_second_derivative():
    torch.manual_seed(0)
    shape = Shape(inputs=(1, 8, 8), classes=C)
    student = build(ViT(width=8, depth=1, heads=2, patch=4), shape)
    run = Run(student, build(CNN(channels=[4]), shape), taps=())
    told = terms(E2KD(explanation="input_gradient"), run, draw(B, 1, 8, 8).float())
    told["explanation"].sum().backward()
    assert student.parts[0].read.weight.grad.abs().max() > 0


def test_a_layer_without_a_map_is_refused():
    shape = Shape(inputs=(1, 8, 8), classes=C)
    vit, flat = build(ViT(width=8, depth=1, heads=2), shape), build(MLP(), shape)
    for net, says in ((vit, r"says \[5, 16, 8\]"), (flat, "says nothing")):
        with pytest.raises(Failure, match=says):
            terms(E2KD(), Run(net, build(CNN(), shape)), draw(B, 1, 8, 8).float())


@each_form
def test_micro_batches_equal_one_batch_where_there_is_something_to_explain(form):
    method = E2KD(explanation=form, explanation_weight=3.0)
    exact = replace(WORLD, change=lambda batch: batch.add(mask=1.0 / (1 + batch.id.double())))

    def told(**changes):
        given = worlds.plain_sgd(method, exact, lr=0.1, **changes)
        return worlds.steps(replace(given, student=Classifier(Curved(3))))

    whole = told()
    assert all(log["loss/student/explanation"] > 0.01 for log in whole.logs)
    for budget in (5, 1):
        split = told(tokens_per_micro=budget)
        assert max(worlds.gap(whole.logs, split.logs), worlds.gap(whole.final, split.final)) < 1e-12
