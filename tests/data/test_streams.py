"""Endless batches: every pass whole, an order of seed and pass alone, one number as cursor."""

import pytest
import torch

from stillroom.core import Batch, Failure
from stillroom.data.streams import Stream


class Numbers:
    def __init__(self, length):
        self.length = length

    def __len__(self):
        return self.length

    def batch(self, indices):
        return Batch(id=torch.tensor(list(indices)))


def ids(stream, batches):
    return [stream.next().id.tolist() for _ in range(batches)]


def flat(batches):
    return [k for batch in batches for k in batch]


@pytest.mark.parametrize(("length", "size"), [(7, 3), (6, 3), (2, 5), (1, 1)])
def test_every_pass_holds_every_sample_once(length, size):
    stream = Stream(Numbers(length), size, seed=0)
    drawn = ids(stream, 2 * length)
    assert {len(batch) for batch in drawn} == {size}
    seen = flat(drawn)
    for start in range(0, 2 * size * length, length):
        assert sorted(seen[start : start + length]) == list(range(length))


def test_passes_differ_and_so_do_seeds():
    def passes(seed):
        seen = flat(ids(Stream(Numbers(20), 5, seed), 8))
        return seen[:20], seen[20:]

    one, two = passes(0)
    assert one != two
    assert (one, two) == passes(0)
    assert one != passes(1)[0]
    assert one != sorted(one)


def test_the_cursor_is_the_whole_state():
    stream = Stream(Numbers(7), 3, seed=4)
    drawn = ids(stream, 9)
    other = Stream(Numbers(7), 3, seed=4)
    other.cursor = 12
    assert ids(other, 5) == drawn[4:]
    assert other.cursor == stream.cursor == 27


def test_the_epoch_counts_passes_that_are_complete():
    stream = Stream(Numbers(4), 3, seed=0)
    epochs = []
    for _ in range(5):
        epochs.append(stream.epoch)
        stream.next()
    assert epochs == [0, 0, 1, 2, 3]  # after 0, 3, 6, 9, 12 samples of 4


@pytest.mark.parametrize("world", [2, 3])
def test_processes_share_one_batch(world):
    alone = ids(Stream(Numbers(11), 6, seed=2), 5)
    shares = [ids(Stream(Numbers(11), 6, seed=2, rank=r, world=world), 5) for r in range(world)]
    for whole, *parts in zip(alone, *shares, strict=True):
        assert sorted(flat(parts)) == sorted(whole)
        assert {len(part) for part in parts} == {6 // world}


def test_a_batch_that_cannot_be_shared_is_refused():
    with pytest.raises(Failure, match=r"train\.batch is 5: .* multiple of the 2 processes"):
        Stream(Numbers(11), 5, seed=0, world=2)


class Masked(Numbers):
    def batch(self, indices):
        made = super().batch(indices)
        return made.add(mask=torch.full((made.size,), 0.5))


@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize(("length", "size"), [(7, 4), (6, 2), (2, 8), (1, 4)])
def test_everything_is_read_once_and_the_cursor_stays(length, size, world):
    counted = {}
    for rank in range(world):
        stream = Stream(Masked(length), size, seed=0, rank=rank, world=world)
        stream.next()
        for batch in stream.everything():
            assert batch.size == size // world
            for k, mask in zip(batch.id.tolist(), batch.mask.tolist(), strict=True):
                counted[k] = counted.get(k, 0) + mask
        assert stream.cursor == size
    assert counted == dict.fromkeys(range(length), 0.5)
