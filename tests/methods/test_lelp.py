"""LELP: its joint target by loops, KD at its limits, and directions that are fitted once."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import launch
import numpy as np
import pytest
import torch
import worlds
from torch import Tensor, nn

from stillroom.core import Failure, Setup
from stillroom.engine import checkpoint
from stillroom.engine.training import train
from stillroom.losses.divergences import forward_kl
from stillroom.methods.kd import KD
from stillroom.methods.lelp import LELP
from stillroom.models.classes import Classifier
from stillroom.models.pieces import Summed
from stillroom.teachers.local import Local

N, C, S = 5, 3, 4
LABELS = torch.tensor([0, 2, 1, 2, 0])
WORLD = worlds.World(kind="classes", exact=True)


def draw(*shape: int, seed: int = 0) -> Tensor:
    made = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=made, dtype=torch.float64) * 2


def probabilities(row: Tensor, temperature: float = 1.0) -> list[float]:
    weight = [math.exp(z / temperature) for z in row.tolist()]
    return [w / sum(weight) for w in weight]


def given() -> tuple[Tensor, Tensor, Tensor]:
    """Outputs of a student, logits of a teacher, log shares of subclasses, one of which is not."""
    scores = draw(N, C, S, seed=2)
    scores[:, 1, 3] = -torch.inf
    return draw(N, C * S).requires_grad_(), draw(N, C, seed=1), scores.log_softmax(-1)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
@pytest.mark.parametrize("weight", [0.0, 0.3])
def test_value_and_gradient_by_loops(temperature: float, weight: float) -> None:
    z, t, within = given()
    method = LELP(temperature=temperature, label_weight=weight)
    found = method.objective(z, t, LABELS, within)
    (slope,) = torch.autograd.grad(found.sum(), z)
    for i, label in enumerate(LABELS.tolist()):
        p, r = probabilities(t[i], temperature), within[i].exp().tolist()
        joint = [p[c] * r[c][s] for c in range(C) for s in range(S)]
        assert sum(joint) == pytest.approx(1)
        q, plain = probabilities(z[i], temperature), probabilities(z[i])
        soft = sum(a * math.log(a / b) for a, b in zip(joint, q, strict=True) if a)
        own = sum(plain[label * S : (label + 1) * S])
        wanted = (1 - weight) * temperature**2 * soft - weight * math.log(own)
        assert found[i].item() == pytest.approx(wanted, rel=1e-10)
        for k in range(C * S):
            hard = plain[k] - (plain[k] / own if k // S == label else 0)
            pull = (1 - weight) * temperature * (q[k] - joint[k]) + weight * hard
            assert slope[i, k].item() == pytest.approx(pull, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("weight", [0.0, 0.3])
def test_one_subclass_is_kd_to_the_bit(weight: float) -> None:
    z, t = draw(N, C), draw(N, C, seed=1)
    one = LELP(temperature=3.0, label_weight=weight).objective(
        z, t, LABELS, torch.zeros(N, C, 1, dtype=z.dtype)
    )
    assert torch.equal(one, KD(temperature=3.0, label_weight=weight).objective(z, t, LABELS))


def test_a_run_with_one_subclass_is_a_run_of_kd() -> None:
    lelp, kd = (worlds.steps(worlds.job(m, WORLD, steps=5)) for m in (LELP(), KD()))
    assert worlds.gap(lelp.final["student"], kd.final["student"]) == 0


def test_at_large_beta_classes_learn_as_with_kd_and_the_value_differs_by_a_constant() -> None:
    _, t, _ = given()
    alike = torch.full((N, C, S), -math.log(S), dtype=torch.float64)
    classes = draw(N, C, seed=5).requires_grad_()
    outputs = classes.repeat_interleave(S, -1) - math.log(S)  # one way to say these classes
    for temperature in (1.0, 2.0):
        method = LELP(temperature=temperature)
        value = method.objective(outputs, t, LABELS, alike)
        kd = KD(temperature=temperature).objective(classes, t, LABELS)
        torch.testing.assert_close(value, kd, rtol=1e-10, atol=1e-12)
        one, other = (torch.autograd.grad(x.sum(), classes, retain_graph=True) for x in (value, kd))
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


def test_the_pull_on_a_class_is_that_of_kd_however_its_subclasses_are_parted() -> None:
    z, t, within = given()
    (slope,) = torch.autograd.grad(LELP(temperature=1.0).objective(z, t, LABELS, within).sum(), z)
    classes = z.detach().unflatten(-1, (C, S)).logsumexp(-1).requires_grad_()
    (wanted,) = torch.autograd.grad(forward_kl(classes, t).sum(), classes)
    torch.testing.assert_close(slope.unflatten(-1, (C, S)).sum(-1), wanted, rtol=1e-9, atol=1e-12)


# ---- directions


def student(each: int = 2, seed: int = 1) -> Classifier:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layers = nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3 * each), Summed(each)
        return Classifier(nn.Sequential(*layers)).double()


def job(method: LELP, world: worlds.World = WORLD, each: int = 2, **changes: Any) -> Any:
    return worlds.plain_sgd(method, world, **{"student": student(each), "batch": 3, **changes})


def everything(given: Any, world: worlds.World = WORLD) -> tuple[np.ndarray, Any, np.ndarray]:
    """All training embeddings of the teacher, its head, and the labels."""
    batch = world.data().batch(range(worlds.EXAMPLES))
    network = given.teachers["teacher"].network
    with torch.no_grad():
        h = network.network[:-1](batch.x)
    return h.numpy(), network.network[-1].weight.numpy(), batch.labels.numpy()


def fitted(given: Any) -> Any:
    return worlds.steps(given).final["subclasses"]


@pytest.mark.parametrize("size", [3, 8])
@pytest.mark.parametrize("turn", [False, True])
def test_directions_are_those_of_all_training_examples_each_counted_once(
    size: int, turn: bool
) -> None:
    """Batches of 3 of 8 examples: the third one is filled up with what does not count."""
    run = job(LELP(rotate=turn), batch=size)
    h, weight, labels = everything(run)
    told = fitted(run)
    free = np.eye(h.shape[1]) - np.linalg.pinv(weight) @ weight
    squares, count = 0.0, 0
    for c in range(3):
        own = h[labels == c] @ free
        most = min(2, len(own) - 1)
        centre = own.mean(0)
        _, _, rows = np.linalg.svd(own - centre)
        found = told["directions"][c].numpy()
        plane = rows[:most].T @ rows[:most]
        np.testing.assert_allclose(found @ found.T, plane, atol=1e-8)
        if not turn:
            for s in range(most):
                assert abs(found[:, s] @ rows[s]) == pytest.approx(1, abs=1e-8)
        assert told["there"][c].tolist() == [s < max(most, 1) for s in range(2)]
        np.testing.assert_allclose(told["centres"][c].numpy(), centre @ found, atol=1e-9)
        squares += float((((own - centre) @ found) ** 2).sum())
        count += len(own) * most
    assert float(told["scale"]) == pytest.approx(math.sqrt(squares / count), rel=1e-9)


def test_rotation_is_of_the_seed_and_spreads_the_variance() -> None:
    plain, turned, other = (
        fitted(job(LELP(rotate=rotate), seed=seed))["directions"]
        for rotate, seed in ((False, 0), (True, 0), (True, 1))
    )
    again = fitted(job(LELP(), seed=0))["directions"]
    assert torch.equal(again, turned)
    assert worlds.gap(plain, turned) > 1e-3
    assert worlds.gap(other, turned) > 1e-3


def test_what_the_last_layer_reads_is_left_out_unless_it_is_asked_for() -> None:
    told: list[Any] = [(True, "principal"), (True, "random"), (False, "principal")]
    for null, kind in told:
        run = job(LELP(null_space=null, directions=kind))
        _, weight, _ = everything(run)
        read = torch.tensor(weight) @ fitted(run)["directions"]
        assert (read.abs().max() < 1e-9) == null


def test_random_directions_are_a_control_of_their_own() -> None:
    runs = [job(LELP()), job(LELP(directions="random"))]
    _, _, labels = everything(runs[0])
    sizes = [min(2, int((labels == c).sum()) - 1) for c in range(3)]
    assert max(sizes) == 2
    planes = [x @ x.transpose(1, 2) for x in (fitted(run)["directions"] for run in runs)]
    assert worlds.gap(*planes) > 0.1
    for plane in planes:  # a projection's trace is its rank
        assert plane.diagonal(0, 1, 2).sum(-1).tolist() == pytest.approx(sizes)


def narrow() -> Local:
    """A teacher whose embedding has fewer dimensions than there are classes."""
    torch.manual_seed(4)
    return Local(Classifier(nn.Sequential(nn.Linear(4, 2), nn.Tanh(), nn.Linear(2, 3))).double())


def test_more_classes_than_dimensions_leave_the_embedding_as_it_is() -> None:
    run = job(LELP(), teachers={"teacher": narrow()})
    told, same = fitted(run), fitted(job(LELP(null_space=False), teachers={"teacher": narrow()}))
    assert worlds.gap(told, same) == 0
    assert told["directions"].abs().sum() > 0


def test_a_class_of_few_examples_has_fewer_subclasses() -> None:
    def few(batch: Any) -> Any:
        return batch.add(labels=(batch.id >= 2).long() + (batch.id == 7).long())

    told = fitted(job(LELP(), replace(WORLD, change=few), each=4))
    # two examples give a direction, five give four, one gives none and is one subclass
    assert told["there"].sum(-1).tolist() == [1, 4, 1]
    assert told["directions"][2].abs().sum() == 0


def test_members_may_be_those_of_the_teacher() -> None:
    def said(batch: Any) -> Any:
        return batch.add(labels=teacher(batch).logits.argmax(-1))

    teacher = WORLD.teacher(LELP())
    by_teacher = fitted(job(LELP(members="teacher")))
    by_label = fitted(job(LELP()))
    same = fitted(job(LELP(), replace(WORLD, change=said)))
    assert worlds.gap(by_teacher["directions"], by_label["directions"]) > 1e-3
    assert worlds.gap(by_teacher, same) < 1e-12


def test_examples_that_a_mask_leaves_out_are_no_members() -> None:
    def masked(shift: int) -> worlds.World:
        def change(batch: Any) -> Any:
            out = batch.id == 4
            labels = torch.where(out, (batch.labels + shift) % 3, batch.labels)
            x = torch.where(out[:, None], batch.x + shift, batch.x)
            return batch.add(mask=(~out).double(), labels=labels, x=x)

        return replace(WORLD, change=change)

    one, other = (fitted(job(LELP(), masked(shift))) for shift in (0, 1))
    assert worlds.gap(one, other) == 0
    assert worlds.gap(one, fitted(job(LELP()))) > 1e-3


def test_micro_batches_are_one_batch_and_a_broken_run_goes_on(tmp_path: Path) -> None:
    whole = worlds.steps(job(LELP(label_weight=0.2), batch=8))
    parts = worlds.steps(job(LELP(label_weight=0.2), batch=8, tokens_per_micro=3))
    assert worlds.gap(whole.final, parts.final) < 1e-12
    assert worlds.gap(whole.states[0]["networks"]["student"], whole.final["student"]) > 0.01
    unbroken, again = worlds.broken_off(lambda: job(LELP(), steps=4), 2, tmp_path)
    assert worlds.gap(unbroken.states, again.states) == 0
    assert unbroken.states[4]["networks"]["subclasses"]["fitted"]


def exactly(out: Path) -> None:
    train(job(LELP(), batch=4), out)


@pytest.mark.slow
def test_two_processes_fit_and_train_as_one(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    children = [
        launch.alone(tmp_path / "log", exactly, one),
        *launch.together(2, tmp_path / "logs", exactly, two),
    ]
    assert [child.wait(120) for child in children] == [0, 0, 0], [c.said() for c in children]
    states = [
        checkpoint.load(checkpoint.saved(folder / "checkpoints")[-1])["players"]["networks"]
        for folder in (one, two)
    ]
    assert worlds.gap(*states) < 1e-10


def test_a_student_that_does_not_fit_the_teacher_is_refused() -> None:
    net, batch = student(), WORLD.data().batch(range(4))
    net.taps, teacher = ("scores",), narrow()
    teacher.network.taps = ("last",)  # type: ignore[assignment]
    net.network[-1] = nn.Identity()  # type: ignore[index, operator]
    with pytest.raises(Failure, match="6 outputs and 6 classes, and the teacher 3 classes"):
        LELP().players(Setup(net, {"teacher": teacher}, batch, 8))
