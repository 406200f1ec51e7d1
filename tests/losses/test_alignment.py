"""Chunks by common byte boundaries, against brute force; log-probabilities of chunks."""

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from vocabularies import byte_fallback, byte_level, merged

from stillroom.core import Failure
from stillroom.data.spans import ends
from stillroom.data.spelling import spelled
from stillroom.losses.alignment import chunk_logp, chunks

BYTE_LEVEL, FALLBACK = byte_level(320), byte_fallback()


def stops(a, b):
    return [found.tolist() for found in chunks(torch.tensor(a).long(), torch.tensor(b).long())]


@st.composite
def tokenisations(draw):
    """Byte ends of one text twice, tokens of no bytes among them."""
    size = draw(st.integers(1, 8))
    places = st.lists(st.integers(0, size), max_size=8)
    return [sorted([*draw(places), size]) for _ in "ab"]


def brute(a, b):
    """Chunks by going along both sides at once, as the docstring tells it.

    A boundary is a byte, and how many tokens that end there went before. A chunk is closed by the
    first boundary of one side that the other has as well.
    """

    def boundaries(ends):
        return [(end, sum(other == end for other in ends[:i])) for i, end in enumerate(ends)]

    mine, theirs = boundaries(a), boundaries(b)
    found = [
        (i + 1, j + 1)
        for i, one in enumerate(mine)
        for j, other in enumerate(theirs)
        if one == other
    ]
    found[-1] = (len(a), len(b))
    return [list(side) for side in zip(*found, strict=True)]


@settings(max_examples=300)
@given(tokenisations())
def test_chunks_are_those_of_brute_force(pair):
    assert stops(*pair) == brute(*pair)
    assert stops(*reversed(pair)) == brute(*pair)[::-1]


@settings(max_examples=300)
@given(tokenisations())
def test_each_token_is_in_one_chunk_and_chunks_have_the_same_bytes(pair):
    found = stops(*pair)
    for ends_, own in zip(pair, found, strict=True):
        assert own == sorted(set(own))
        assert own[0] > 0
        assert own[-1] == len(ends_)
    for i, j in zip(*found, strict=True):
        assert pair[0][i - 1] == pair[1][j - 1]


@settings(max_examples=300)
@given(tokenisations())
def test_chunks_are_the_finest_where_all_tokens_have_bytes(pair):
    pair = [sorted({end for end in ends_ if end}) for ends_ in pair]
    common = set(pair[0]) & set(pair[1])
    assert [pair[0][i - 1] for i in stops(*pair)[0]] == sorted(common)


@given(tokenisations())
def test_equal_tokenisations_have_a_chunk_for_each_token(pair):
    each = list(range(1, len(pair[0]) + 1))
    assert stops(pair[0], pair[0]) == [each, each]


@pytest.mark.parametrize(
    ("a", "b", "found"),
    [
        ([2, 3], [1, 2, 3], [[1, 2], [2, 3]]),
        ([1, 3], [2, 3], [[2], [2]]),
        ([0, 2, 3], [2, 3], [[2, 3], [1, 2]]),  # BOS of one side
        ([0, 2, 3], [0, 1, 2, 3], [[1, 2, 3], [1, 3, 4]]),  # of both
        ([0, 0, 2], [0, 2], [[1, 3], [1, 2]]),
        ([2, 3, 3], [2, 3], [[1, 3], [1, 2]]),  # EOS of one side
        ([2, 3, 3], [3, 3], [[2, 3], [1, 2]]),  # of both
        ([2, 2, 3], [2, 3], [[1, 3], [1, 2]]),  # in the middle
        ([0, 0], [0], [[2], [1]]),
        ([0], [], [[], []]),
        ([], [], [[], []]),
    ],
)
def test_chunks_by_hand(a, b, found):
    assert stops(a, b) == found
    assert stops(b, a) == found[::-1]


WHOLE = ("ð Ł", "ĺ Ģ", "ðŁ ĺĢ")
"""Merges that make 😀 one token."""


@pytest.mark.parametrize(
    ("text", "merges", "found"),
    [
        ("😀", ((), WHOLE), [[4], [1]]),
        ("a😀b", (WHOLE[:1], WHOLE), [[1, 4, 5], [1, 2, 3]]),
        ("😀", (WHOLE[:1], WHOLE[1:2]), [[1, 3], [2, 3]]),
        ("你", (("ä ½",), ("½ ł",)), [[2], [2]]),  # 2 + 1 bytes and 1 + 2
        ("好你", ((), ("½ ł",)), [[1, 2, 3, 4, 6], [1, 2, 3, 4, 5]]),
    ],
)
def test_a_character_may_be_split_on_one_side_alone(text, merges, found):
    sides = []
    for tokenizer in (merged(*own) for own in merges):
        ids = tokenizer(text, add_special_tokens=False).input_ids
        sides.append(ends(spelled(tokenizer), ids, text)[1])
    assert stops(*sides) == found


@given(st.text(st.sampled_from("the catsword你好😀é\n"), min_size=1, max_size=30))
def test_chunks_of_real_tokenizers_spell_the_same_bytes(text):
    sides = []
    for tokenizer in (BYTE_LEVEL, FALLBACK):
        ids = tokenizer(text, add_special_tokens=False).input_ids
        sides.append(ends(spelled(tokenizer), ids, text))
    parts = []
    for (said, places), own in zip(sides, stops(sides[0][1], sides[1][1]), strict=True):
        cuts = [0, *(places[i - 1] for i in own)]
        parts.append([said[m:n] for m, n in pairwise(cuts)])
    assert parts[0] == parts[1]
    assert b"".join(parts[0]) == text.encode()


def test_tokenisations_of_other_texts_are_refused():
    with pytest.raises(Failure, match=r"covers 3 bytes and the other 2; .*show tokenizers"):
        stops([1, 3], [2])
    with pytest.raises(Failure, match=r"covers 3 bytes and the other 0"):
        stops([3], [])


def test_the_log_probability_of_a_chunk_is_that_of_its_tokens():
    p = [0.5, 0.25, 0.125, 0.5]
    logp = torch.tensor(p, dtype=torch.float64).log()
    found = chunk_logp(logp, torch.tensor([1, 3, 4]))
    wanted = [math.log(0.5), math.log(0.25 * 0.125), math.log(0.5)]
    assert found.tolist() == pytest.approx(wanted, rel=1e-15)
    assert found.dtype == torch.float64


@given(tokenisations())
def test_chunks_of_both_sides_add_up_to_the_text(pair):
    for ends_, own in zip(pair, chunks(*map(torch.tensor, pair)), strict=True):
        logp = -torch.rand(len(ends_), dtype=torch.float64)
        starts = [0, *own.tolist()]
        wanted = [math.fsum(logp.tolist()[m:n]) for m, n in zip(starts, own.tolist(), strict=False)]
        assert chunk_logp(logp, own).tolist() == pytest.approx(wanted)


def test_the_log_probability_of_chunks_has_a_gradient_and_is_float32_at_least():
    logp = -torch.rand(6, dtype=torch.float64, requires_grad=True)
    own = torch.tensor([2, 3, 6])
    assert torch.autograd.gradcheck(lambda x: chunk_logp(x, own), logp)
    halves = -torch.ones(300, dtype=torch.bfloat16)
    assert chunk_logp(halves, torch.tensor([300])).tolist() == [-300.0]  # bfloat16 stops at 256
    assert chunk_logp(halves, torch.tensor([300])).dtype == torch.float32


@pytest.mark.parametrize("tokens", [0, 2])
def test_no_chunk_has_no_log_probability(tokens):
    logp = torch.zeros(tokens, requires_grad=True)
    nothing = chunk_logp(logp, torch.zeros(0, dtype=torch.long))
    nothing.sum().backward()
    assert nothing.shape == (0,)
    assert logp.grad is not None
    assert logp.grad.tolist() == [0.0] * tokens
