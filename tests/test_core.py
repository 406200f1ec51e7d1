"""Batches cut and trimmed, heads, signals, and what a method does by default."""

import math
from dataclasses import dataclass
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from stillroom.core import Batch, Failure, Head, Method, Needs, Paper, Signals, Term, signals
from stillroom.data.text import collate

tokens = st.lists(st.integers(1, 30), min_size=1, max_size=4)
pairs = st.lists(st.tuples(tokens, tokens), min_size=1, max_size=6)
sides = st.sampled_from(["left", "right"])


def told(batch):
    """What a batch says, free of how it is padded: for each example its tokens and its rows."""
    length = batch.ids.shape[1]
    found = []
    for i in range(batch.size):
        real = batch.real[i].nonzero().flatten().tolist()
        own = {place: k for k, place in enumerate(real)}
        rows = [
            (own[int(row) % length], int(label), float(weight), float(mask))
            for row, label, weight, mask in zip(
                batch.rows, batch.labels, batch.weight, batch.mask, strict=True
            )
            if int(row) // length == i
        ]
        found.append(
            {
                "id": int(batch.id[i]),
                "name": batch.name[i],
                "tokens": batch.ids[i, real].tolist(),
                "positions": batch.positions[i, real].tolist(),
                "last": own[int(batch.last[i])],
                "rows": rows,
            }
        )
    return found


def text_batch(pairs, side="right"):
    batch = collate(pairs, torch.arange(len(pairs)) + 7, 0, side=side)
    batch = batch.add(name=[f"example {i}" for i in range(len(pairs))], constant=3.5)
    return batch.add_rows(weight=torch.randn(len(batch.rows)))


# ---- parts


@given(pairs, sides, st.data())
def test_parts_together_are_the_whole(pairs, side, data):
    batch = text_batch(pairs, side)
    cuts = data.draw(st.sets(st.integers(1, len(pairs)), max_size=3))
    places = sorted({0, len(pairs)} | cuts)
    parts = [batch.part(a, b) for a, b in pairwise(places)]
    assert [row for part in parts for row in told(part)] == told(batch)
    for part in parts:
        assert part.constant == 3.5
        assert part.row_fields == batch.row_fields
        # what is padding in all examples of a part is gone (a whole batch keeps what it has)
        assert part.real.any(0).all()
        assert part.rows.tolist() == sorted(part.rows.tolist())
        assert torch.equal(part.ids.flatten()[part.rows + 1], part.labels)


@given(st.integers(1, 4), st.integers(1, 3), st.integers(1, 4), st.data())
def test_children_go_with_their_parents(groups, per_parent, parts, data):
    """Samples of a group, more than there are parents."""
    children = [([1 + i // per_parent], [20 + i]) for i in range(groups * per_parent)]
    batch = text_batch([([1 + i], [9]) for i in range(groups)]).add(samples=text_batch(children))
    places = sorted({0, groups, *(data.draw(st.integers(0, groups)) for _ in range(parts))})
    seen = []
    for a, b in pairwise(places):
        part = batch.part(a, b)
        assert part.samples.size == part.size * per_parent
        prompts = part.samples.ids[:, 0].view(-1, per_parent)
        assert torch.equal(prompts, part.ids[:, :1].expand(-1, per_parent))
        seen += part.samples.labels.tolist()
    assert seen == batch.samples.labels.tolist()


@given(st.integers(1, 7), st.integers(1, 7), st.integers(1, 40))
def test_every_micro_batch_has_some_of_fewer_children(parents, children, budget):
    """Another stream with a size of its own: nobody is lost, and no part goes without."""
    children = min(children, parents)
    batch = text_batch([([1], [i + 2]) for i in range(parents)])
    batch = batch.add(corpus=text_batch([([1], [i + 2]) for i in range(children)]))
    parts = batch.split(budget)
    assert [i for p in parts for i in p.id.tolist()] == batch.id.tolist()
    assert [i for p in parts for i in p.corpus.id.tolist()] == batch.corpus.id.tolist()
    assert all(p.size and p.corpus.size for p in parts)


@given(pairs, st.integers(0, 3), st.integers(1, 60))
def test_micro_batches_keep_to_the_budget(pairs, group, budget):
    batch = text_batch(pairs)
    if group:
        batch = batch.add(samples=text_batch([pair for pair in pairs for _ in range(group)]))
    parts = batch.split(budget)
    assert all(part.cost <= budget or part.size == 1 for part in parts)
    assert [row for part in parts for row in told(part)] == told(batch)
    if batch.cost <= budget:
        assert len(parts) == 1


def test_the_cost_is_tokens_with_padding_and_nested_ones():
    batch = text_batch([([1], [2]), ([1, 2, 3], [4, 5])])
    assert batch.cost == 2 * 5
    assert batch.add(more=text_batch([([1], [2])])).cost == 2 * 5 + 2
    assert Batch(id=torch.arange(3), x=torch.zeros(3, 100)).cost == 3


def test_as_many_rows_as_examples_are_not_confused():
    """Two rows of the first example, none of the second: fields are told apart by name."""
    batch = Batch.text(
        rows=torch.tensor([0, 1]),
        labels=torch.tensor([4, 5]),
        mask=torch.tensor([1.0, 0.0]),
        ids=torch.tensor([[3, 4, 5], [6, 7, 0]]),
        positions=torch.tensor([[0, 1, 2], [0, 1, 0]]),
        real=torch.tensor([[True, True, True], [True, True, False]]),
        last=torch.tensor([2, 1]),
        id=torch.tensor([8, 9]),
        examples=torch.tensor([1.0, 2.0]),
    )
    batch = batch.add(per_example=torch.tensor([10, 11])).add_rows(per_row=torch.tensor([20, 21]))
    first, second = batch.part(0, 1), batch.part(1, 2)
    assert first.labels.tolist() == [4, 5]
    assert first.per_row.tolist() == [20, 21]
    assert (first.per_example.tolist(), first.examples.tolist()) == ([10], [1.0])
    assert second.labels.tolist() == second.per_row.tolist() == second.mask.tolist() == []
    assert (second.per_example.tolist(), second.id.tolist()) == ([11], [9])
    assert second.ids.tolist() == [[6, 7]]
    assert batch.owner.tolist() == [0, 0]


def test_classes_are_cut_by_example():
    batch = Batch(id=torch.arange(4), x=torch.arange(8.0).view(4, 2), labels=torch.arange(4))
    part = batch.part(1, 3)
    assert part.x.tolist() == [[2, 3], [4, 5]]
    assert part.labels.tolist() == part.id.tolist() == [1, 2]
    assert batch.owner.tolist() == [0, 1, 2, 3]
    assert [p.size for p in batch.split(3)] == [3, 1]


def test_fields_are_found_by_path_and_missing_ones_named():
    batch = text_batch([([1], [2])]).add(duel=text_batch([([1], [2, 3])]))
    assert batch.find("duel.mask") is batch.duel.mask
    with pytest.raises(AttributeError, match=r"this Batch has no 'duels', only \['constant'"):
        batch.find("duels.mask")


def test_a_batch_moves_with_what_is_nested():
    batch = text_batch([([1], [2])]).add(duel=text_batch([([1], [2, 3])])).to("meta")
    assert batch.ids.device.type == batch.duel.mask.device.type == "meta"
    assert batch.row_fields == {"rows", "labels", "mask", "weight"}
    assert batch.constant == 3.5


# ---- heads and signals


def test_a_head_by_hand():
    hidden, weight = torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, -1.0], [0.5, 1.0]])
    assert Head(weight).logits(hidden).tolist() == [[1.0, 2.5]]
    whole = Head(weight, torch.tensor([1.0, -0.5]), scale=2.0, soft_cap=5.0)
    wanted = [5 * math.tanh(2 * 2.0 / 5), 5 * math.tanh(2 * 2.0 / 5)]
    assert whole.logits(hidden)[0].tolist() == pytest.approx(wanted)
    assert Head(weight, soft_cap=5.0).logits(hidden * 1e4).abs().max() <= 5
    assert Head(weight.double()).logits(hidden).dtype == torch.float32


def test_logits_are_made_of_hidden_states_while_they_are_small(monkeypatch):
    said = Signals(hidden=torch.randn(4, 2), head=Head(torch.randn(3, 2)))
    assert torch.equal(said.logits, said["head"].logits(said.hidden))
    monkeypatch.setattr(signals, "SMALL_LOGITS", 12)
    assert said.logits.shape == (4, 3)
    monkeypatch.setattr(signals, "SMALL_LOGITS", 11)
    with pytest.raises(Failure, match=r"4 rows by 3 tokens are too large.*per_row\(objective"):
        _ = said.logits
    with pytest.raises(AttributeError, match="this Signals has no 'attention'"):
        _ = said.attention


# ---- methods


@dataclass(frozen=True, kw_only=True)
class Plain(Method):
    needs = Needs(teacher={"logits"})

    def loss(self, student, teacher, batch, nets):
        return Term(student.logits - teacher.logits + batch.labels)


@dataclass(frozen=True, kw_only=True)
class Whole(Plain):
    needs = Needs(teacher={"logits"}, whole=True)


class Doubling:
    """A run of two processes that say the same."""

    def __init__(self):
        frozen = nn.Linear(1, 1).requires_grad_(False)
        self.players = {"student": nn.Linear(1, 1), "projector": nn.Linear(1, 1), "old": frozen}

    def student(self, batch):
        return Signals(logits=torch.tensor([3.0]))

    def teacher(self, batch):
        return Signals(logits=torch.tensor([1.0]))

    def gather(self, batch):
        return Batch(labels=torch.cat([batch.labels, batch.labels]))


def test_one_update_of_the_student_and_of_further_players_that_learn():
    (update,) = Plain().updates(Doubling(), Batch(labels=torch.tensor([5.0])))
    assert update.players == ("student", "projector")
    assert update.terms.value.tolist() == [7.0]
    (update,) = Whole().updates(Doubling(), Batch(labels=torch.tensor([5.0])))
    assert update.terms.value.tolist() == [7.0, 7.0]


def test_a_method_without_a_loss_says_so():
    with pytest.raises(NotImplementedError, match=r"Method must define loss\(\) or updates\(\)"):
        list(Method().updates(Doubling(), Batch()))
    assert Method().players(SimpleNamespace()) == {}
    assert Method().layers() == {}


def test_papers_have_an_address():
    assert Paper("1503.02531", "Hinton").url == "https://arxiv.org/abs/1503.02531"
    assert Paper("10.1145/3", "Somebody").url == "https://doi.org/10.1145/3"
