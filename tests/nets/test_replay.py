"""A buffer of sequences: first in, first out, the same however many processes fill and read it."""

import copy
from collections import Counter

import pytest
import torch

from stillroom.core import Batch
from stillroom.data.text import collate
from stillroom.nets.replay import ReplayBuffer
from stillroom.rollouts.sampling import uniform

LONGEST = 9


class Step:
    """What the buffer touches of a run: ``others`` are the shares that the other processes give."""

    def __init__(self, step, others=()):
        self.step, self.others = step, list(others)

    def uniform(self, tag=0):
        return float(uniform(0, self.step, tag + 1))

    def gather(self, share):
        if not self.others:
            return share
        shares = [share, *self.others]
        return type(share)({k: torch.cat([s[k] for s in shares]) for k in share})


def pair(i):
    """A prompt and an answer that tell whose they are: no two alike in tokens or lengths."""
    return [i + 1] * (1 + i % 3), [i + 2] * (1 + i % 4)


def some(*ids, side="right"):
    return collate([pair(i) for i in ids], torch.tensor(ids), 7, side=side)


def made(capacity):
    return ReplayBuffer(capacity, LONGEST, collate)


def held(buffer, step, staleness=None):
    places = buffer.places(Step(step), staleness)
    return sorted(buffer.id[places].tolist())


def same(one, other):
    assert one.keys() == other.keys()
    assert one.row_fields == other.row_fields
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("side", ["left", "right"])
def test_what_is_read_is_what_collate_makes_of_what_was_written(side):
    buffer = made(8)
    buffer.write(Step(0), some(3, 5, 11, side=side))
    asking = some(0, 1, 2, 4)
    again = buffer.read(Step(1), asking)
    assert set(again.id.tolist()) <= {3, 5, 11}
    same(again, collate([pair(i) for i in again.id.tolist()], again.id, 0))
    first = again.id[0].item()
    prompt, answer = pair(first)
    assert again.labels[again.owner == 0].tolist() == answer  # the prompt counts for nothing
    assert again.prompt[0] == len(prompt)


def test_the_oldest_go_first():
    buffer = made(5)
    assert held(buffer, 0) == []
    buffer.write(Step(0), some(2, 0, 1))
    assert held(buffer, 1) == [0, 1, 2]
    buffer.write(Step(1), some(4, 3))
    assert held(buffer, 2) == [0, 1, 2, 3, 4]
    buffer.write(Step(2), some(9, 8))
    assert held(buffer, 3) == [2, 3, 4, 8, 9]
    buffer.write(Step(3), some(*range(20, 27)))  # more than there is room for
    assert held(buffer, 4) == list(range(22, 27))
    buffer.write(Step(4), some(30))
    assert held(buffer, 5) == [23, 24, 25, 26, 30]


def test_entries_that_are_too_old_count_as_absent():
    buffer = made(6)
    for step in range(3):
        buffer.write(Step(step), some(2 * step, 2 * step + 1))
    assert held(buffer, 3) == [0, 1, 2, 3, 4, 5]
    assert held(buffer, 3, staleness=2) == [2, 3, 4, 5]
    assert held(buffer, 3, staleness=1) == [4, 5]
    assert held(buffer, 9, staleness=1) == []
    asking = some(*range(40))
    assert set(buffer.read(Step(3), asking, 1).id.tolist()) == {4, 5}
    assert set(buffer.read(Step(3), asking).id.tolist()) == {0, 1, 2, 3, 4, 5}


def test_two_processes_hold_and_read_what_one_does():
    one, two = made(7), made(7)
    for step in range(4):
        ids = [(5 * step + k) % 17 for k in (3, 0, 4, 1)]
        one.write(Step(step), some(*ids))
        shares = [some(*ids[rank::2]) for rank in range(2)]
        other = two._entries(shares[1])
        two.write(Step(step, [other]), shares[0])
    assert all(torch.equal(a, two.state_dict()[k]) for k, a in one.state_dict().items())
    ids = [6, 0, 12, 5]
    whole = one.read(Step(9), some(*ids)).id.tolist()
    for rank in range(2):
        assert two.read(Step(9), some(*ids[rank::2])).id.tolist() == whole[rank::2]


def test_every_entry_is_read_as_often_and_others_in_each_step():
    buffer = made(5)
    buffer.write(Step(0), some(*range(5)))
    asking = some(*range(50))
    reads = [buffer.read(Step(step), asking).id.tolist() for step in range(1, 41)]
    counts = Counter(i for read in reads for i in read)
    # 2000 draws of 1/5: a deviation of 18
    assert sorted(counts) == [0, 1, 2, 3, 4]
    assert all(abs(n - 400) < 72 for n in counts.values())
    assert len({tuple(read) for read in reads}) == len(reads)


def test_the_teacher_of_a_row_comes_back_with_it():
    buffer = made(4)
    buffer.write(Step(0), some(1, 2).add(route=torch.tensor([5, 6])))
    again = buffer.read(Step(1), some(*range(9)).add(route=torch.zeros(9, dtype=torch.long)))
    assert again.route.tolist() == [{1: 5, 2: 6}[i] for i in again.id.tolist()]
    assert "route" not in buffer.read(Step(1), some(0))


def test_a_buffer_is_saved_whole_and_learns_nothing():
    buffer, other = made(3), made(3)
    buffer.write(Step(0), some(4, 2))
    assert not list(buffer.parameters())
    other.load_state_dict(copy.deepcopy(buffer.state_dict()))
    same(other.read(Step(1), some(0, 1)), buffer.read(Step(1), some(0, 1)))
    shapes = {k: v.shape for k, v in made(3).state_dict().items()}
    assert {k: v.shape for k, v in other.state_dict().items()} == shapes


def test_what_stands_at_padded_positions_is_not_kept():
    one, two = made(3), made(3)
    batch: Batch = some(1, 2, 3)
    one.write(Step(0), batch)
    two.write(Step(0), batch.add(ids=torch.where(batch.real, batch.ids, 99)))
    assert torch.equal(one.ids, two.ids)


def test_a_sequence_that_has_no_room_is_refused():
    with pytest.raises(RuntimeError, match="a sequence has 4 tokens, there is room for 3"):
        ReplayBuffer(2, 3, collate).write(
            Step(0), collate([([1, 2], [3, 4])], torch.tensor([0]), 0)
        )
