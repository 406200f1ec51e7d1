from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from stillroom.core import Failure, Head, Signals
from stillroom.losses import _one_pass as module
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


def world(rows: int = N, teacher_tokens: int = V, teacher_learns: bool = True) -> World:
    draw = torch.Generator().manual_seed(0)

    def leaf(*shape: int, learns: bool = True) -> Tensor:
        return torch.randn(shape, generator=draw, dtype=torch.float64).requires_grad_(learns)

    leaves = {
        "hidden": leaf(rows, D),
        "weight": leaf(V, D),
        "bias": leaf(V),
        "theirs": leaf(rows, E, learns=teacher_learns),
        "their weight": leaf(teacher_tokens, E, learns=teacher_learns),
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


def gradients(value: Tensor, leaves: dict[str, Tensor], factor=None) -> list[Tensor | None]:
    factors = torch.linspace(-1, 2, len(value), dtype=torch.float64) if factor is None else factor
    learning = [leaf for leaf in leaves.values() if leaf.requires_grad]
    return list(torch.autograd.grad((factors * value).sum(), learning, allow_unused=True))


@pytest.fixture(params=[(1, 2048, 1), (5, 4, 30), (N, 3, 1000), (256, 2048, 2**18)], ids=str)
def block(request, monkeypatch):
    """Rows of a block, tokens of a tile, logits of a slice."""
    for name, size in zip(("MOST_ROWS", "TILE", "SLICE"), request.param, strict=True):
        monkeypatch.setattr(module, name, size)
    return request.param


@pytest.mark.parametrize("factor", [None, 1.0, -0.25], ids=["by row", "sum", "the same"])
@pytest.mark.parametrize("teacher_learns", [False, True])
@every_objective
def test_equals_dense_logits_in_value_and_gradient(name, block, teacher_learns, factor):
    objective, names = OBJECTIVES[name]
    student, teacher, leaves = world(teacher_learns=teacher_learns)
    found = per_row(objective, student, teacher, LABELS, **row_inputs(leaves, names))
    wanted = objective(*dense(student, teacher), LABELS, **row_inputs(leaves, names))
    assert found.shape == (N,)
    torch.testing.assert_close(found, wanted)
    pairs = zip(gradients(found, leaves, factor), gradients(wanted, leaves, factor), strict=True)
    for mine, theirs in pairs:
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("teacher_learns", [False, True])
@every_objective
def test_gradient_is_the_slope(name, monkeypatch, teacher_learns):
    monkeypatch.setattr(module, "MOST_ROWS", 2)
    objective, names = OBJECTIVES[name]
    student, teacher, leaves = world(rows=3, teacher_learns=teacher_learns)

    def run(hidden, weight, bias, row_weight):
        mine = Signals(hidden=hidden, head=replace(student.head, weight=weight, bias=bias))
        given = row_inputs({**leaves, "row weight": row_weight}, names)
        return per_row(objective, mine, teacher, LABELS[:3], **given)

    inputs = [leaves[key] for key in ("hidden", "weight", "bias", "row weight")]
    assert torch.autograd.gradcheck(run, inputs)


def test_a_learning_teacher_is_scored_in_blocks_and_once_more_backward(monkeypatch):
    monkeypatch.setattr(module, "MOST_ROWS", 10)
    student, teacher, _ = world()
    value = per_row(kd_and_cross_entropy, student, teacher, LABELS)
    assert student.head.calls == teacher.head.calls == [10, 10, 3]
    value.sum().backward()
    assert sorted(student.head.calls) == sorted(teacher.head.calls) == [3, 3, 10, 10, 10, 10]


@pytest.fixture
def products(monkeypatch) -> list[int]:
    """Multiplications of each matrix product that is made, beside the heads' own calls."""
    made: list[int] = []

    def counted(out: Tensor, a: Tensor, b: Tensor, *rest, **options) -> None:
        made.append(a.shape[0] * a.shape[1] * b.shape[1])
        add(out, a, b, *rest, **options)

    add = module._add
    monkeypatch.setattr(module, "_add", counted)
    return made


OWN, THEIRS = N * V * D, N * V * E
"""Multiplications of the product of all states with a head."""


@pytest.mark.parametrize(
    ("still", "forward"),
    [((), 3 * OWN), (("weight",), 2 * OWN), (("hidden",), 2 * OWN), (("weight", "hidden"), OWN)],
)
def test_four_matrix_products_and_fewer_where_less_learns(products, block, still, forward):
    student, teacher, leaves = world(teacher_learns=False)
    for name in still:
        leaves[name].requires_grad_(False)
    (0.5 * per_row(kd_and_cross_entropy, student, teacher, LABELS)).sum().backward()
    assert sum(products) == forward + THEIRS
    assert student.head.calls == teacher.head.calls == []


@pytest.mark.parametrize(
    ("most_rows", "in_vain"), [(N, 0), (10, OWN + THEIRS + 20 * V * 2 * D)], ids=str
)
def test_gradients_that_differ_by_row_cost_products_again_where_there_are_blocks(
    products, monkeypatch, most_rows, in_vain
):
    monkeypatch.setattr(module, "MOST_ROWS", most_rows)
    student, teacher, leaves = world(teacher_learns=False)
    gradients(per_row(kd_and_cross_entropy, student, teacher, LABELS), leaves)
    assert sum(products) == 3 * OWN + THEIRS + in_vain


def test_without_gradient_two_products_and_nothing_else(products, block):
    student, teacher, _ = world()
    with torch.no_grad():
        value = per_row(kd_and_cross_entropy, student, teacher, LABELS)
    assert not value.requires_grad
    assert sum(products) == OWN + THEIRS
    wanted = kd_and_cross_entropy(*dense(student, teacher), LABELS)
    torch.testing.assert_close(value, wanted.detach())


def test_what_does_not_learn_gives_a_value_without_gradient():
    student, _, _ = world()
    still = Signals(hidden=student.hidden.detach(), head=Head(torch.ones(V, D).double()))
    assert not per_row(lambda s, t, y: label_logp(s, y), still, None, LABELS).requires_grad


@pytest.mark.parametrize("teacher_learns", [False, True])
def test_one_block_by_vocabulary_at_most_is_kept_for_the_backward_pass(monkeypatch, teacher_learns):
    monkeypatch.setattr(module, "MOST_ROWS", 4)
    student, teacher, _ = world(teacher_learns=teacher_learns)
    kept: list[int] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor.numel())
        return tensor

    # seen here is what is saved outside of the blocks, whose own hooks stand nearer
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        if teacher_learns:  # else the graphs of slices are seen as well, which are dropped at once
            value = per_row(kd_and_cross_entropy, student, teacher, LABELS)
            assert sum(kept) < N * V
        kd_and_cross_entropy(*dense(student, teacher), LABELS)
    assert max(kept) >= N * V  # the witness sees the dense way
    if not teacher_learns:
        value = per_row(kd_and_cross_entropy, student, teacher, LABELS)
        walk = value.grad_fn.walk
        assert {place: len(made) for place, made in walk.gradients.items()} == {0: N, 1: V, 2: V}
        assert walk.last.untyped_storage().nbytes() == 4 * V * walk.last.element_size()
        assert walk.values.numel() == 0
    assert value.requires_grad


def test_a_second_backward_pass_and_second_derivatives_are_those_of_dense_logits():
    student, teacher, leaves = world(teacher_learns=False)
    learning = [leaves["hidden"], leaves["weight"], leaves["row weight"]]
    given = {"weight": leaves["row weight"], "unused": None}
    found, again = [], []
    for value in (
        per_row(weighted_jsd, student, teacher, LABELS, **given),
        weighted_jsd(*dense(student, teacher), LABELS, **given),
    ):
        first = torch.autograd.grad(value.sum(), learning, create_graph=True)
        total = torch.stack([(gradient**2).sum() for gradient in first]).sum()
        second = torch.autograd.grad(total, learning, retain_graph=True)
        found.append([*first, *second])
        again.append([torch.autograd.grad(value.sum(), learning, retain_graph=True) for _ in "12"])
    torch.testing.assert_close(*found)
    torch.testing.assert_close(*again)


def test_a_head_that_changed_before_the_backward_pass_is_not_used_unseen():
    student, teacher, leaves = world(teacher_learns=False)
    value = per_row(forward_kl_only, student, teacher, LABELS)
    with torch.no_grad():
        leaves["weight"].mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        gradients(value, leaves)


def test_the_heads_gradient_is_handed_over_without_a_copy(monkeypatch):
    monkeypatch.setattr(module, "MOST_ROWS", 10)
    student, teacher, leaves = world(teacher_learns=False)
    value = per_row(forward_kl_only, student, teacher, LABELS)
    place = value.grad_fn.walk.gradients[1].data_ptr()
    value.mean().backward()
    assert leaves["weight"].grad.data_ptr() == place


def test_half_precision_is_multiplied_in_float32():
    _, _, leaves = world(teacher_learns=False)
    halves = {name: leaf.detach().bfloat16() for name, leaf in leaves.items()}

    def said(kind: torch.dtype) -> tuple[Signals, Signals, list[Tensor]]:
        hidden, weight, bias = (
            halves[name].to(kind).requires_grad_() for name in ("hidden", "weight", "bias")
        )
        mine = Signals(hidden=hidden, head=Head(weight, bias, scale=0.7, soft_cap=3.0))
        its = Signals(hidden=halves["theirs"].to(kind), head=Head(halves["their weight"].to(kind)))
        return mine, its, [hidden, weight, bias]

    exact, mixed = said(torch.float64), said(torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        value = per_row(kd_and_cross_entropy, *mixed[:2], LABELS)
    wanted = per_row(kd_and_cross_entropy, *exact[:2], LABELS)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value.double(), wanted, rtol=1e-5, atol=1e-5)
    value.mean().backward()
    wanted.mean().backward()
    for mine, theirs in zip(mixed[2], exact[2], strict=True):
        assert mine.grad.dtype == torch.bfloat16
        torch.testing.assert_close(mine.grad.double(), theirs.grad, rtol=2**-8, atol=1e-6)


@pytest.mark.parametrize("fast", [torch.float64, torch.float32])
def test_products_may_be_made_in_another_dtype_than_sums(monkeypatch, fast):
    """As on a GPU, which multiplies in the dtype of the states."""
    monkeypatch.setattr(module, "_fast", lambda rows, out: fast)
    monkeypatch.setattr(module, "MOST_ROWS", 10)
    student, teacher, leaves = world(teacher_learns=False)
    found = per_row(kd_and_cross_entropy, student, teacher, LABELS)
    wanted = kd_and_cross_entropy(*dense(student, teacher), LABELS)
    close = {"rtol": 1e-4, "atol": 1e-5}
    torch.testing.assert_close(found, wanted, **close)
    pairs = zip(gradients(found, leaves, 0.1), gradients(wanted, leaves, 0.1), strict=True)
    for mine, theirs in pairs:
        torch.testing.assert_close(mine, theirs, **close)


def test_an_objective_may_leave_the_student_out():
    student, teacher, leaves = world(teacher_learns=False)
    value = per_row(lambda s, t, y, weight: weight**2, student, teacher, LABELS,
                    weight=leaves["row weight"])  # fmt: skip
    value.sum().backward()
    assert not leaves["weight"].grad.any()
    assert not leaves["hidden"].grad.any()
    torch.testing.assert_close(leaves["row weight"].grad, 2 * leaves["row weight"].detach())


@pytest.mark.parametrize(
    ("widths", "rows"),
    [((151_936, 151_936), 220), ((262_144, 262_144), 128), ((1000, 1000), 256), ((1000, 0), 256),
     ((10**9, 0), 1)],
)  # fmt: skip
def test_blocks_fit_the_budget(widths, rows):
    mine, theirs = (torch.empty(width, 1, device="meta") for width in widths)
    states = torch.empty(1000, 1, device="meta")
    teacher = (states, Head(theirs)) if widths[1] else (None, None)
    task = module.Task(forward_kl_only, states, Head(mine), *teacher, None, {})
    assert task.block_size == rows
    # 4 bytes a logit: 256 MiB, unless a single row is larger
    assert rows == 1 or rows * sum(widths) * 4 <= 256 * 2**20


def weighed_kl(student, teacher, labels, weight, third, fourth):
    """Four networks: KL to the teacher's logits, moved by what two further ones have apart."""
    return weight * forward_kl(student, teacher + 0.3 * (third - fourth)) - label_logp(
        third, labels
    )


def four(tokens: int = V, *, learns: bool = False) -> tuple[dict[str, Signals], list[Tensor]]:
    """Two further networks, one with a soft-capped head and one that gives logits."""
    draw = torch.Generator().manual_seed(5)
    shapes = [(N, 3), (tokens, 3), (tokens,), (N, tokens)]
    third, weight, bias, fourth = (
        torch.randn(shape, generator=draw, dtype=torch.float64) for shape in shapes
    )
    third.requires_grad_(learns)
    head = Head(weight, bias, scale=1.3, soft_cap=2.0)
    said = {"third": Signals(hidden=third, head=head), "fourth": Signals(logits=fourth)}
    return said, [2 * torch.tanh(1.3 * (third @ weight.T + bias) / 2), fourth]


@pytest.mark.parametrize("tokens", [V, V - 3, V + 3])
@pytest.mark.parametrize("learns", [False, True])
@pytest.mark.parametrize("factor", [None, 1.0], ids=["by row", "sum"])
def test_what_further_networks_said_comes_as_logits(block, tokens, learns, factor):
    """Of the columns that all have, value and gradient as with dense logits."""
    student, teacher, leaves = world(teacher_learns=False)
    said, (third, fourth) = four(tokens, learns=learns)
    weight, labels, width = leaves["row weight"], LABELS % 8, min(V, tokens)
    found = per_row(weighed_kl, student, teacher, labels, weight=weight, **said)
    columns = [x[:, :width] for x in (*dense(student, teacher), third, fourth)]
    wanted = weighed_kl(*columns[:2], labels, weight, *columns[2:])
    torch.testing.assert_close(found, wanted)
    if learns:
        leaves["third"] = said["third"].hidden
    for one, two in zip(
        gradients(found, leaves, factor), gradients(wanted, leaves, factor), strict=True
    ):
        torch.testing.assert_close(one, two)
    with torch.no_grad():
        measured = per_row(weighed_kl, student, teacher, labels, weight=weight, **said)
    torch.testing.assert_close(measured, wanted.detach())


def test_further_networks_cost_one_product_each_and_no_logits_of_all_rows(products, monkeypatch):
    monkeypatch.setattr(module, "MOST_ROWS", 10)
    student, teacher, leaves = world(teacher_learns=False)
    said, _ = four()
    value = per_row(weighed_kl, student, teacher, LABELS, weight=leaves["row weight"], **said)
    walk = value.grad_fn.walk
    assert walk.last.untyped_storage().nbytes() == 10 * V * walk.last.element_size()
    assert not [x for x in vars(walk).values() if isinstance(x, dict) and "third" in x]
    value.sum().backward()
    assert sum(products) == 3 * OWN + THEIRS + N * V * 3


def test_further_classes_go_to_the_objective_as_they_are():
    student, teacher, leaves = world()
    said, (third, fourth) = four()
    mine, theirs = dense(student, teacher)
    signals = Signals(logits=mine), Signals(logits=theirs)
    found = per_row(weighed_kl, *signals, LABELS, weight=leaves["row weight"], **said)
    wanted = weighed_kl(mine, theirs, LABELS, leaves["row weight"], third, fourth)
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize(
    ("third", "says"),
    [
        (Signals(features={}), "of third; it has"),
        (Signals(logits=torch.zeros(7, V)), r"third of shape \[7, 11\]"),
        (
            Signals(hidden=torch.zeros(N, 3), head=Head(torch.zeros(V, 3), ids=torch.arange(V))),
            "not the same ones",
        ),
    ],
)
def test_further_networks_that_do_not_fit_are_refused(third, says):
    student, teacher, _ = world()
    with pytest.raises(Failure, match=says):
        per_row(weighed_kl, student, teacher, LABELS, third=third)


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
