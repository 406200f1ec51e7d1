"""Numbers of fidelity against their formulas: CKA, barrier, learned examples."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from stillroom.core import Failure
from stillroom.data.items import ItemData
from stillroom.evaluation.similarity import linear_cka
from stillroom.evaluation.suite import SIDE_BY_SIDE, Suite
from stillroom.models.between import between
from stillroom.models.classes import Classifier
from stillroom.teachers.local import Local

N = SIDE_BY_SIDE + 6
"""So that the last batch is a short one."""
ALL = ["accuracy", "agreement", "similarity", "barrier", "fitted"]


def network(seed: int, width: int = 8) -> Any:
    torch.manual_seed(seed)
    made = nn.Sequential(nn.Linear(4, width), nn.Tanh(), nn.Linear(width, 3))
    return Classifier(made).double()


def items(seed: int, count: int = N) -> ItemData:
    draw = torch.Generator().manual_seed(seed)
    x = 3 * torch.randn(count, 4, generator=draw, dtype=torch.float64)
    return ItemData((x, torch.randint(0, 3, (count,), generator=draw)))


def measured(student: Any, teacher: Any, *metrics: str, **view: Any) -> dict[str, float]:
    told = {"train": items(1), "teachers": {"teacher": Local(teacher)}} | view
    test = told.pop("test", items(0))
    with torch.no_grad():
        return Suite(metrics, {"test": test}, **told).measure({"student": student}, "test")


def test_the_teacher_itself_agrees_in_all() -> None:
    told = measured(network(0), network(0), *ALL)
    assert (told["agreement"], told["train_agreement"], told["barrier"]) == (1.0, 1.0, 0.0)
    assert max(abs(told["kl"]), abs(told["train_kl"]), abs(told["cka"] - 1)) < 1e-12


def test_numbers_are_means_over_examples_not_over_batches() -> None:
    student, teacher = network(0), network(1)
    told = measured(student, teacher, "accuracy", "agreement", "fitted")
    for data, prefix in ((items(0), ""), (items(1), "train_")):
        batch = data.batch(range(N))
        z, w = student(batch).logits.detach(), teacher(batch).logits.detach()
        q, p = (v.exp() / v.exp().sum(-1, keepdim=True) for v in (z, w))
        each = (p * (p / q).log()).sum(-1)
        assert told[f"{prefix}kl"] == pytest.approx(each.mean().item(), rel=1e-12)
        halves = (each[:SIDE_BY_SIDE].mean() + each[SIDE_BY_SIDE:].mean()) / 2
        assert told[f"{prefix}kl"] != pytest.approx(halves.item(), rel=1e-3)
        same = (z.argmax(-1) == w.argmax(-1)).double().mean().item()
        assert told[f"{prefix}agreement"] == same
        if not prefix:
            truth = -q[torch.arange(N), batch.labels].log().mean().item()
            assert told["class_nll"] == pytest.approx(truth, rel=1e-12)


def test_the_barrier_is_the_most_that_the_loss_rises_on_the_line() -> None:
    """The same function with its hidden units in another order: equal ends, a hill between."""
    student = network(0, width=3)
    teacher = copy.deepcopy(student)
    first, last = teacher.network[0], teacher.network[2]
    turn = torch.tensor([1, 2, 0])
    with torch.no_grad():
        first.weight.copy_(first.weight[turn])
        first.bias.copy_(first.bias[turn])
        last.weight.copy_(last.weight[:, turn])
    batch = items(0).batch(range(N))
    batch["labels"] = student(batch).logits.argmax(-1)
    test = ItemData((batch.x, batch.labels))
    told = measured(student, teacher, "barrier", "agreement", test=test)
    assert told["agreement"] == 1.0
    losses = on_the_line(student, teacher, batch)
    wanted = max(losses) - max(losses[0], losses[-1])
    assert told["barrier"] == pytest.approx(wanted, rel=1e-9)
    assert wanted > 0.01


def test_the_barrier_is_measured_from_the_worse_end() -> None:
    """Downhill from the student to the teacher there is none."""
    student, teacher, batch = network(0), network(0), items(0).batch(range(N))
    with torch.no_grad():
        teacher.network[2].weight.mul_(3)
    test = ItemData((batch.x, teacher(batch).logits.argmax(-1)))
    losses = on_the_line(student, teacher, test.batch(range(N)))
    assert losses[-1] - losses[0] > 0.1
    assert measured(student, teacher, "barrier", test=test)["barrier"] == 0.0


def on_the_line(student: Any, teacher: Any, batch: Any) -> list[float]:
    """Cross-entropies from the teacher to the student, layer by layer."""
    losses = []
    for u in torch.linspace(0, 1, 11, dtype=torch.float64):
        x = batch.x
        for one, other in zip(student.network, teacher.network, strict=True):
            if isinstance(one, nn.Linear):
                weight = u * one.weight + (1 - u) * other.weight
                x = x @ weight.T + u * one.bias + (1 - u) * other.bias
            else:
                x = x.tanh()
        losses.append(nn.functional.cross_entropy(x, batch.labels).item())
    return losses


def test_between_is_exact_at_its_ends_and_whole_numbers_stay() -> None:
    pair: Any = [nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)) for _ in range(2)]
    one, other = pair
    other(torch.randn(4, 3))
    for share, end in ((0.0, one), (1.0, other)):
        made = between(one, other, share)
        assert all(
            torch.equal(made[name], value)
            for name, value in end.state_dict().items()
            if value.is_floating_point()
        )
    assert between(one, other, 1.0)["1.num_batches_tracked"] == 0
    half = between(one, other, 0.25)["0.weight"]
    torch.testing.assert_close(half, 0.75 * one[0].weight + 0.25 * other[0].weight)


def test_there_is_no_line_between_different_shapes() -> None:
    with pytest.raises(Failure, match=r"different shapes: of 'network\.0\.weight' one is \(8, 4\)"):
        measured(network(0), network(0, width=6), "barrier")


def sides(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(20, 5, generator=draw, dtype=torch.float64)
    y = torch.randn(20, 3, generator=draw, dtype=torch.float64)
    return x, y + 0.5 * x[:, :3] + 2


def test_cka_by_its_kernels() -> None:
    """The same number from centred Gram matrices: ``<K, L> / (||K|| ||L||)``."""
    x, y = sides()
    centre = torch.eye(20, dtype=torch.float64) - 1 / 20
    k, l = (centre @ side @ side.T @ centre for side in (x, y))  # noqa: E741
    wanted = (k * l).sum() / (k.square().sum() * l.square().sum()).sqrt()
    torch.testing.assert_close(linear_cka(x, y), wanted)
    assert 0.05 < wanted < 0.9


def test_cka_stays_where_a_side_is_rotated_moved_or_scaled() -> None:
    x, y = sides()
    rotation = torch.linalg.qr(torch.randn(5, 5, dtype=torch.float64))[0]
    torch.testing.assert_close(linear_cka(3 * x @ rotation + 7, y), linear_cka(x, y))
    torch.testing.assert_close(linear_cka(x @ rotation, x), torch.ones((), dtype=torch.float64))
    uneven = x * torch.tensor([1.0, 1, 1, 1, 9], dtype=torch.float64)
    assert abs(linear_cka(uneven, y) - linear_cka(x, y)) > 1e-3
    assert linear_cka(torch.ones(20, 2), y) == 0


def test_what_is_compared_must_be_there() -> None:
    with pytest.raises(Failure, match="training split"):
        measured(network(0), network(1), "fitted", train=None)
    with pytest.raises(Failure, match="barrier needs a teacher"):
        measured(network(0), network(1), "barrier", teachers={})
    with pytest.raises(Failure, match="similarity compares classifiers"):
        measured(network(0), network(1), "similarity", teachers={})
