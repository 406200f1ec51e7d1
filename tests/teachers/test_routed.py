"""Several teachers, each for its own examples: as if each had been asked alone."""

import pytest
import torch
import worlds

from stillroom.core import Failure, Signals
from stillroom.engine.checks import check_needs
from stillroom.losses.sparse import top_k
from stillroom.methods.gkd import GKD
from stillroom.methods.kd import KD
from stillroom.teachers.local import Local
from stillroom.teachers.recorded import Recorded
from stillroom.teachers.routed import Routed

WORLD = worlds.World(kind="text", exact=True)
ROUTE = [0, 1, 1, 0, 2, 1, 0, 2]


def network(seed, vocabulary=worlds.VOCABULARY):
    return Local(WORLD._network(seed=seed, width=12, vocabulary=vocabulary))


class Few:
    """The K largest of another teacher."""

    signals, fresh = frozenset({"topk", "text"}), True

    def __init__(self, teacher, k):
        self.teacher, self.k = teacher, k

    def __call__(self, batch, *, grad=False):
        return Signals(sparse=top_k(self.teacher(batch).logits, self.k))


def batch(route=ROUTE):
    return WORLD.data().batch(range(8)).add(route=torch.tensor(route))


def alone(teachers, given, say):
    """Row by row: what the teacher of its example says when it reads that example by itself."""
    told = []
    for i in range(given.size):
        part = given.part(i, i + 1)
        told.append(say(teachers[int(given.route[i])](part)))
    return told


@pytest.mark.parametrize("route", [ROUTE, [1] * 8, [2, 1, 0, 2, 1, 0, 2, 1]])
def test_each_row_has_the_scores_of_its_own_teacher(route):
    teachers = [network(seed) for seed in (2, 3, 4)]
    routed = Routed(dict(zip("abc", teachers, strict=True)))
    given = batch(route)
    wanted = torch.cat(alone(teachers, given, lambda s: s.head.logits(s.hidden)))
    torch.testing.assert_close(routed(given).logits, wanted, rtol=1e-12, atol=1e-12)
    assert {"logits", "topk", "text"} <= routed.signals
    assert "hidden" not in routed.signals


def test_padded_heads_are_cut_to_the_tokens_that_all_have():
    routed = Routed({"a": network(2), "b": network(3, 16)})
    said = routed(batch([0, 1] * 4)).logits
    assert said.shape[-1] == worlds.VOCABULARY


def test_the_largest_tokens_alone():
    teachers = [Few(network(seed), 4) for seed in (2, 3)]
    routed = Routed({"a": teachers[0], "b": teachers[1]})
    given = batch([1, 0, 0, 1, 1, 0, 1, 0])
    said = routed(given).sparse
    for name in ("ids", "logp", "tail"):
        wanted = torch.cat(alone(teachers, given, lambda s, n=name: s.sparse[n]))
        torch.testing.assert_close(said[name], wanted, rtol=1e-12, atol=1e-12)
    check_needs(GKD(), WORLD.student(), {"teacher": routed})
    uneven = Routed({"a": teachers[0], "b": Few(network(3), 5)})
    with pytest.raises(Failure, match=r"\[4, 5\] tokens a place"):
        uneven(given)


def test_what_does_not_fit_together_is_refused_at_once():
    with pytest.raises(Failure, match="nothing that fits together"):
        Routed({"a": worlds.World(kind="classes").teacher(KD()), "b": Recorded()})
    mixed = Routed({"a": network(2), "b": Few(network(3), 4)})
    assert mixed.signals == {"text"}
    with pytest.raises(Failure, match="KD needs"):
        check_needs(KD(), WORLD.student(), {"teacher": mixed})
    assert not Routed({"a": network(2), "b": Recorded()}).fresh
    with pytest.raises(Failure, match=r"data\.route"):
        Routed({"a": network(2)})(WORLD.data().batch([0]))


def test_a_part_of_a_batch_is_the_batch_of_its_examples():
    given = batch()
    for examples in ([0], [1, 4, 7], list(range(8))):
        part = given.only(torch.tensor(examples))
        wanted = WORLD.data().batch(examples)
        for name, value in wanted.items():
            assert torch.equal(part[name], value), name
        assert part.row_fields == wanted.row_fields
