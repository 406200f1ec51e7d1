"""What a store keeps of one sequence, and the key that it is found by."""

import torch

from stillroom.core import Signals
from stillroom.data.text import collate
from stillroom.teachers.stored import Kept, keys_of


def test_a_key_is_of_tokens_and_of_the_rows_that_count():
    pairs = [((5, 6, 7), (8, 9)), ((5, 6), (7, 8, 9)), ((5, 6, 7), (8, 9))]
    batch = collate(pairs, torch.arange(3), 0, earlier=[(), (), ((1, 2),)])
    keys = keys_of(batch)
    assert len(set(keys)) == 3
    for side in ("left", "right"):  # padding is no part of it, nor are neighbours
        longer = collate([((1,) * 9, (2,)), pairs[0]], torch.tensor([4, 7]), 0, side=side)
        assert keys_of(longer)[1] == keys[0]


def test_draws_are_of_their_own_for_each_sequence():
    said = Signals(logits=torch.zeros(3, 50))
    kept = Kept.of("sampled:20")
    one, again, other = (kept.taken(said, key) for key in (b"a" * 16, b"a" * 16, b"b" * 16))
    assert torch.equal(one["ids"], again["ids"])
    assert not torch.equal(one["ids"], other["ids"])
    rows = one["ids"].split(one["different"].tolist())
    assert not torch.equal(rows[0], rows[1])
