from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from stillroom.core import Failure, Head, Signals
from stillroom.losses import per_row as module
from stillroom.losses.divergences import forward_kl, jsd
from stillroom.losses.per_row import per_row
from stillroom.losses.policy import clipped_surrogate, entropy, label_logp

N, D, E, V = 23, 5, 4, 11
LABELS = torch.arange(N) % V


@dataclass(frozen=True)
class Watched(Head):
    """A head that notes how many rows it is asked for."""

    calls: list[int] = field(default_factory=list)

    def logits(self, hidden: Tensor) -> Tensor:
        self.calls.append(len(hidden))
        return super().logits(hidden)


class World(NamedTuple):
    student: Signals
    teacher: Signals
    leaves: dict[str, Tensor]


def world(rows: int = N, teacher_tokens: int = V) -> World:
    draw = torch.Generator().manual_seed(0)

    def leaf(*shape: int) -> Tensor:
        return torch.randn(shape, generator=draw, dtype=torch.float64).requires_grad_()

    leaves = {
        "hidden": leaf(rows, D),
        "weight": leaf(V, D),
        "bias": leaf(V),
        "theirs": leaf(rows, E),
        "their weight": leaf(teacher_tokens, E),
        "row weight": leaf(rows),
        "old": leaf(rows),
    }
    student_head = Watched(leaves["weight"], leaves["bias"], scale=0.7, soft_cap=3.0)
    teacher_head = Watched(leaves["their weight"])
    return World(
        Signals(hidden=leaves["hidden"], head=student_head),
        Signals(hidden=leaves["theirs"], head=teacher_head),
        leaves,
    )


def forward_kl_only(student, teacher, labels):
    return forward_kl(student, teacher)


def kd_and_cross_entropy(student, teacher, labels):
    return 0.3 * forward_kl(student, teacher) - label_logp(student, labels)


def weighted_jsd(student, teacher, labels, weight, unused):
    assert unused is None
    return weight * jsd(student, teacher, beta=0.3)


def policy_loss(student, teacher, labels, weight, old):
    loss = clipped_surrogate(label_logp(student, labels), old, weight, 0.2)
    return loss - 0.1 * entropy(student)


def bare_scores(student, teacher, labels):
    return (student.tanh() * teacher).sum(-1)


OBJECTIVES: dict[str, tuple[Callable, tuple[str, ...]]] = {
    "kd and cross-entropy": (kd_and_cross_entropy, ()),
    "weighted jsd": (weighted_jsd, ("weight", "unused")),
    "policy": (policy_loss, ("weight", "old")),
    "bare scores": (bare_scores, ()),
}
every_objective = pytest.mark.parametrize("name", OBJECTIVES)


def row_inputs(leaves: dict[str, Tensor], names: tuple[str, ...]) -> dict[str, Tensor | None]:
    known = {"weight": leaves["row weight"], "old": leaves["old"] - 2.4, "unused": None}
    return {name: known[name] for name in names}


def dense(student: Signals, teacher: Signals) -> tuple[Tensor, Tensor]:
    """Logits of all rows, by the formula of a head written out once more."""
    scores = 0.7 * (student.hidden @ student["head"].weight.T + student["head"].bias)
    return 3 * torch.tanh(scores / 3), teacher.hidden @ teacher["head"].weight.T


def gradients(value: Tensor, leaves: dict[str, Tensor]) -> list[Tensor | None]:
    factors = torch.linspace(-1, 2, len(value), dtype=torch.float64)
    return list(torch.autograd.grad((factors * value).sum(), leaves.values(), allow_unused=True))


@pytest.fixture(params=[1, 5, N, 256])
def block(request, monkeypatch):
    monkeypatch.setattr(module, "MOST_ROWS", request.param)
    return request.param


@every_objective
def test_equals_dense_logits_in_value_and_gradient(name, block):
    objective, names = OBJECTIVES[name]
    student, teacher, leaves = world()
    found = per_row(objective, student, teacher, LABELS, **row_inputs(leaves, names))
    wanted = objective(*dense(student, teacher), LABELS, **row_inputs(leaves, names))
    assert found.shape == (N,)
    torch.testing.assert_close(found, wanted)
    for mine, theirs in zip(gradients(found, leaves), gradients(wanted, leaves), strict=True):
        torch.testing.assert_close(mine, theirs)


@every_objective
def test_gradient_is_the_slope(name, monkeypatch):
    monkeypatch.setattr(module, "MOST_ROWS", 2)
    objective, names = OBJECTIVES[name]
    student, teacher, leaves = world(rows=3)

    def run(hidden, weight, bias, row_weight):
        mine = Signals(hidden=hidden, head=replace(student.head, weight=weight, bias=bias))
        given = row_inputs({**leaves, "row weight": row_weight}, names)
        return per_row(objective, mine, teacher, LABELS[:3], **given)

    inputs = [leaves[key] for key in ("hidden", "weight", "bias", "row weight")]
    assert torch.autograd.gradcheck(run, inputs)


def test_rows_go_through_the_heads_in_blocks_and_once_more_backward(monkeypatch):
    monkeypatch.setattr(module, "MOST_ROWS", 10)
    student, teacher, _ = world()
    value = per_row(kd_and_cross_entropy, student, teacher, LABELS)
    assert student.head.calls == teacher.head.calls == [10, 10, 3]
    value.sum().backward()
    assert sorted(student.head.calls) == sorted(teacher.head.calls) == [3, 3, 10, 10, 10, 10]


def test_nothing_of_rows_by_vocabulary_is_kept_for_the_backward_pass(monkeypatch):
    monkeypatch.setattr(module, "MOST_ROWS", 4)
    student, teacher, _ = world()
    kept: list[int] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor.numel())
        return tensor

    # seen here is what is saved outside of the blocks, whose own hooks stand nearer
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        value = per_row(kd_and_cross_entropy, student, teacher, LABELS)
        assert sum(kept) < N * V
        kd_and_cross_entropy(*dense(student, teacher), LABELS)
    assert max(kept) >= N * V  # the witness sees the dense way
    assert value.requires_grad


def test_without_gradient_each_row_is_scored_once():
    student, teacher, _ = world()
    with torch.no_grad():
        value = per_row(kd_and_cross_entropy, student, teacher, LABELS)
    assert not value.requires_grad
    assert student.head.calls == [N]
    detached = Signals(hidden=student.hidden.detach(), head=Head(torch.ones(V, D).double()))
    alone = per_row(lambda s, t, y: label_logp(s, y), detached, None, LABELS)
    assert not alone.requires_grad


@pytest.mark.parametrize(
    ("widths", "rows"),
    [((151_936, 151_936), 55), ((1000, 1000), 256), ((1000, 0), 256), ((10**9, 0), 1)],
)
def test_blocks_fit_the_budget(widths, rows):
    size = module._block_size(*widths)
    assert size == rows
    # 4 bytes, 4 tensors: 256 MiB, unless a single row is larger
    assert size == 1 or size * sum(widths) * 16 <= 256 * 2**20


@pytest.mark.parametrize("teacher", [None, Signals(), Signals(features={}, text=["a"])])
def test_a_teacher_without_scores_is_none(teacher):
    student, _, leaves = world()

    def objective(scores, targets, labels):
        assert targets is None
        return label_logp(scores, labels)

    value = per_row(objective, student, teacher, LABELS)
    wanted = label_logp(student.head.logits(leaves["hidden"]), LABELS)
    torch.testing.assert_close(value, wanted)


def test_a_teacher_may_give_logits_to_a_student_that_gives_hidden_states(block):
    student, teacher, leaves = world()
    found = per_row(forward_kl_only, student, Signals(logits=dense(student, teacher)[1]), LABELS)
    wanted = forward_kl(*dense(student, teacher))
    torch.testing.assert_close(found, wanted)
    for one, two in zip(gradients(found, leaves), gradients(wanted, leaves), strict=True):
        torch.testing.assert_close(one, two)


@pytest.mark.parametrize("teacher_tokens", [V - 3, V + 3])
@pytest.mark.parametrize("as_logits", [False, True])
def test_padding_of_the_longer_vocabulary_is_left_out(teacher_tokens, as_logits):
    student, teacher, _ = world(teacher_tokens=teacher_tokens)
    mine, theirs = dense(student, teacher)
    width = min(V, teacher_tokens)
    given = Signals(logits=theirs) if as_logits else teacher
    found = per_row(forward_kl_only, student, given, LABELS)
    torch.testing.assert_close(found, forward_kl(mine[:, :width], theirs[:, :width]))


def test_classes_go_to_the_objective_as_they_are():
    logits, targets = torch.randn(6, 3, requires_grad=True), torch.randn(6, 3)
    labels, weight = torch.arange(6) % 3, torch.arange(6.0)
    seen = []

    def objective(student, teacher, labels, weight):
        seen.append((student, teacher))
        return weight * forward_kl(student, teacher) - label_logp(student, labels)

    signals = Signals(logits=logits), Signals(logits=targets)
    value = per_row(objective, *signals, labels, weight=weight)
    assert seen[0][0] is logits
    assert seen[0][1] is targets
    assert len(seen) == 1
    torch.testing.assert_close(value, objective(logits, targets, labels, weight))


def test_other_number_of_classes_is_not_cut():
    signals = Signals(logits=torch.zeros(2, 3)), Signals(logits=torch.zeros(2, 4))
    with pytest.raises(Failure, match=r"\[2, 3\].*\[2, 4\]"):
        per_row(forward_kl_only, *signals, torch.zeros(2).long())


@every_objective
def test_no_rows_give_an_empty_value_that_goes_backward(name):
    objective, names = OBJECTIVES[name]
    student, teacher, leaves = world(rows=0)
    value = per_row(objective, student, teacher, LABELS[:0], **row_inputs(leaves, names))
    assert value.shape == (0,)
    value.sum().backward()
    assert leaves["weight"].grad is not None
    assert not leaves["weight"].grad.any()
    assert leaves["hidden"].grad.shape == (0, D)


@pytest.mark.parametrize("as_logits", [False, True])
@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("labels", {"labels": torch.zeros(7).long()}),
        ("weight", {"weight": torch.zeros(7, 2)}),
        ("weight", {"weight": torch.tensor(1.0)}),
        ("teacher", {"teacher": Signals(logits=torch.zeros(7, V))}),
    ],
)
def test_other_lengths_are_refused_by_name_and_shape(name, change, as_logits):
    student, teacher, _ = world()
    if as_logits:
        student, teacher = (Signals(logits=logits) for logits in dense(student, teacher))
    given = {"teacher": teacher, "labels": LABELS, "weight": torch.ones(N), **change}
    shape = next(iter(change.values()))
    shape = list(shape["logits"].shape if name == "teacher" else shape.shape)
    with pytest.raises(Failure) as error:
        per_row(lambda s, t, y, weight: weight, student, **given)
    assert name in str(error.value)
    assert str(shape) in str(error.value)
    assert "23" in str(error.value)


def test_a_student_without_scores_is_refused():
    with pytest.raises(Failure, match="features"):
        per_row(forward_kl_only, Signals(features={}), None, LABELS)


@pytest.mark.parametrize("reduced", [lambda s, t, y: s.mean(), lambda s, t, y: s])
@pytest.mark.parametrize("as_logits", [False, True])
def test_an_objective_must_return_one_value_a_row(reduced, as_logits):
    student, teacher, _ = world()
    if as_logits:
        student = Signals(logits=dense(student, teacher)[0])
    with pytest.raises(Failure, match="one value a row"):
        per_row(reduced, student, None, LABELS)


def test_several_numbers_a_row_stand_side_by_side(block):
    student, teacher, _ = world()

    def several(mine, theirs, labels):
        return torch.stack([forward_kl(mine, theirs), label_logp(mine, labels)], -1)

    found = per_row(several, student, teacher, LABELS)
    assert found.shape == (N, 2)
    torch.testing.assert_close(found, several(*dense(student, teacher), LABELS))


def test_what_the_objective_holds_receives_its_gradient(block):
    student, teacher, _ = world()
    temperature = torch.tensor(1.5, dtype=torch.float64, requires_grad=True)

    def objective(mine, theirs, labels):
        return forward_kl(mine / temperature, theirs / temperature)

    found = per_row(objective, student, teacher, LABELS).sum()
    wanted = objective(*dense(student, teacher), LABELS).sum()
    pairs = [torch.autograd.grad(value, temperature)[0] for value in (found, wanted)]
    torch.testing.assert_close(*pairs)
