"""FitNets against sums in Python; which layers move in which stage; where its schedule ends."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from worlds import World, broken_off, gap, job, plain_sgd, steps

from stillroom.core import Batch, Failure, Signals
from stillroom.engine.settings import Optimizer
from stillroom.methods.fitnets import FitNets, hint
from stillroom.models.classes import Classifier
from stillroom.models.networks import CNN, MLP, Shape, build
from stillroom.teachers.local import Local

POINTS, MAPS = World(kind="classes"), World(kind="classes", maps=True)
GUIDED = {"student_layer": "parts.1", "teacher_layer": "parts.0"}


def draw(*shape, seed=0):
    made = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=made, dtype=torch.float64)


def deep(method, **changes):
    """A run with a student of four layers, whose guided layer is the second."""
    given = job(method, POINTS, **{"steps": 6, "every": 1, "keep": 7, **changes})
    torch.manual_seed(0)
    shape = Shape(inputs=(4,), classes=3)
    student = Classifier(build(MLP(widths=[6, 6, 6]), shape))
    teacher = Classifier(build(MLP(widths=[10, 10]), shape))
    return replace(given, student=student, teachers={"teacher": Local(teacher)})


def moved(run, start, stop, player="student"):
    before, after = (run.states[at]["networks"][player] for at in (start, stop))
    return {name for name in before if gap(before[name], after[name]) > 0}


@pytest.mark.parametrize("shape", [(3,), (4, 3), (3, 2, 2)])
def test_the_hint_s_loss_and_gradient_by_hand(shape):
    guess, wanted = draw(2, *shape).requires_grad_(), draw(2, *shape, seed=1)
    found, places = hint(guess, wanted), {1: 1, 2: shape[0], 3: 4}[len(shape)]
    for i in range(2):
        pairs = zip(guess[i].flatten().tolist(), wanted[i].flatten().tolist(), strict=True)
        assert found[i].item() == pytest.approx(sum((a - b) ** 2 for a, b in pairs) / 2 / places)
    (slope,) = torch.autograd.grad(found.sum(), guess)
    torch.testing.assert_close(slope, (guess.detach() - wanted) / places)


def test_stage_1_moves_what_stands_before_the_guided_layer_and_stage_2_drops_the_regressor():
    decay = Optimizer(weight_decay=0.1)  # that would move what has a gradient of 0
    run = steps(deep(FitNets(hint_share=0.5, **GUIDED), optimizer=decay))
    below = {f"network.parts.{i}.0.{w}" for i in (0, 1) for w in ("weight", "bias")}
    every = set(run.final["student"])
    assert moved(run, 0, 3) == below
    assert moved(run, 0, 3, "regressor") == {"map.weight", "map.bias"}
    assert len(every) == 8
    assert moved(run, 3, 4) == every
    assert moved(run, 3, 6, "regressor") == set()
    losses = [{k.split("/")[-1] for k in log if k.startswith("loss/")} for log in run.logs]
    assert losses == [{"hint"}] * 3 + [{"label", "soft"}] * 3


def test_the_student_s_optimiser_begins_afresh_in_stage_2():
    run = steps(deep(FitNets(hint_share=0.5, **GUIDED)))
    counts = [
        {float(moments["step"]) for moments in state["state"].values()}
        for state in (run.states[at]["optimizers"]["student"] for at in range(1, 7))
    ]
    assert counts == [{1.0}, {2.0}, {3.0}, {1.0}, {2.0}, {3.0}]


@pytest.mark.parametrize("at", [2, 3, 4])
def test_a_run_broken_off_at_the_turn_of_the_stages_goes_on_as_it_was(at, tmp_path):
    method = FitNets(hint_share=0.5, **GUIDED)
    whole, again = broken_off(lambda: deep(method), at, tmp_path)
    assert again.logs == whole.logs
    assert gap(again.states, whole.states) == 0


def hinted(method, student, teacher, regressor, **more):
    """The updates of a first step, by as much of a run as the method touches."""
    batch = Batch(id=torch.arange(2), labels=torch.tensor([0, 1]), mask=torch.ones(2))
    run = SimpleNamespace(
        student=lambda batch: student, teacher=lambda batch: teacher, step=0, steps=10,
        players={"student": nn.Identity(), "regressor": regressor}, **more,
    )  # fmt: skip
    return list(method.updates(run, batch))


@pytest.mark.parametrize("nonlinearity", ["none", "relu"])
def test_a_student_that_is_its_teacher_has_no_loss_with_the_identity_as_regressor(nonlinearity):
    features = draw(2, 5).relu()
    said = Signals(logits=draw(2, 3), features={"last": features})
    identity = nn.Linear(5, 5).double()
    nn.init.eye_(identity.weight)
    nn.init.zeros_(identity.bias)
    method = FitNets(hint_share=0.5, nonlinearity=nonlinearity)
    (update,) = hinted(method, said, said, identity)
    assert update.terms.value.tolist() == [0, 0]
    with torch.no_grad():
        identity.bias += 1
    (update,) = hinted(method, said, said, identity)
    assert update.terms.value.tolist() == pytest.approx([2.5, 2.5])


def test_the_hint_gets_no_gradient_and_is_met_after_the_nonlinearity():
    u, v = draw(2, 5, seed=1).requires_grad_(), draw(2, 5).requires_grad_()
    own, other = (Signals(logits=draw(2, 3), features={"last": x}) for x in (v, u))
    method = FitNets(hint_share=0.5, nonlinearity="tanh")
    (update,) = hinted(method, own, other, nn.Identity())
    wanted = (v.detach().tanh() - u.detach()).square().sum(1) / 2
    torch.testing.assert_close(update.terms.value, wanted, check_dtype=False)
    update.terms.value.sum().backward()
    assert u.grad is None
    assert v.grad is not None


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize(("share", "steps"), [(0.0, 5), (0.3, 10), (0.5, 6), (0.9, 10)])
def test_lambda_falls_on_a_line_between_its_ends(scaled, share, steps):
    method = FitNets(
        hint_share=share, soft_weight=4.0, soft_weight_end=1.0, temperature=2.0, scaled=scaled
    )
    logits, scores = draw(2, 3), draw(2, 3, seed=1)
    own, other = (Signals(logits=x, features={"last": torch.zeros(2, 5)}) for x in (logits, scores))
    batch = Batch(id=torch.arange(2), labels=torch.tensor([0, 1]), mask=torch.ones(2))
    weights = []
    for step in range(steps):
        run = SimpleNamespace(
            student=lambda batch: own, teacher=lambda batch: other, step=step, steps=steps,
            players={"regressor": nn.Identity()},
        )  # fmt: skip
        (update,) = method.updates(run, batch)
        if isinstance(update.terms, list):
            label, soft = update.terms
            weights.append(soft.weight)
    assert len(weights) == steps - int(share * steps)
    line = [4 - 3 * i / max(1, len(weights) - 1) for i in range(len(weights))]
    assert weights == pytest.approx(line)
    p, q = (scores / 2).softmax(1), (logits / 2).softmax(1)
    wanted = (p * (p / q).log()).sum(1) * (4 if scaled else 1)
    torch.testing.assert_close(soft.value, wanted)
    assert label.weight == 1
    ce = -logits.softmax(1)[torch.arange(2), batch.labels].log()
    torch.testing.assert_close(label.value, ce)


@pytest.mark.parametrize(
    ("guided", "hinting", "kernel"), [("0", "map", 3), ("map", "map", 1), ("0", "0", 1)]
)
def test_maps_are_joined_by_a_convolution_that_fits(guided, hinting, kernel):
    method = FitNets(hint_share=0.5, student_layer=guided, teacher_layer=hinting)
    run = steps(job(method, MAPS, steps=8, lr=0.02))
    assert run.final["regressor"]["map.weight"].shape == (12, 8, kernel, kernel)
    losses = [log["loss/student+regressor/hint"] for log in run.logs[:4]]
    assert losses[-1] < 0.8 * losses[0]


def test_maps_in_micro_batches_are_as_in_one():
    world, method = replace(MAPS, exact=True), FitNets(hint_share=0.5, student_layer="0",
                                                       teacher_layer="map")  # fmt: skip
    whole, split = (steps(plain_sgd(method, world, tokens_per_micro=n)) for n in (100, 3))
    assert max(gap(whole.logs, split.logs), gap(whole.final, split.final)) < 1e-9


def test_a_student_s_map_that_is_too_small_is_refused():
    method = FitNets(student_layer="map", teacher_layer="0")
    with pytest.raises(Failure, match=r"\[8, 2, 2\] to the teacher's \[12, 4, 4\]"):
        steps(job(method, MAPS))


def test_networks_of_recipes_have_middles_to_name():
    shape = Shape(inputs=(1, 8, 8), classes=3)
    for spec in (MLP(widths=[5, 5, 5]), CNN(channels=[4, 4, 4])):
        names = dict(build(spec, shape).named_modules())
        assert {"parts.0", "parts.1", "parts.2"} <= set(names)


def test_a_share_of_0_is_stage_2_alone():
    run = steps(deep(FitNets(hint_share=0.0, **GUIDED)))
    assert set(run.final) == {"student"}
    assert moved(run, 0, 1) == set(run.final["student"])
