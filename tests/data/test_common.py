"""Classes of tokens: two models of the same texts must give them the same probabilities."""

import itertools
import random

import pytest
import torch
import vocabularies

from stillroom.data.common import common
from stillroom.data.spelling import spelled

STOPS = ([1], [1])
"""``</s>`` of the tokenizers of tests/vocabularies.py."""


def id_of(tokenizer, word):
    return tokenizer.convert_tokens_to_ids(word)


def test_equal_tokenizers_have_a_class_a_token_in_the_order_of_ids():
    for made in (vocabularies.byte_level(300), vocabularies.byte_fallback()):
        found = common(made, made, ([2], [2]))
        assert found.count == len(made)
        assert found.own.tolist() == found.other.tolist() == list(range(len(made)))


def test_a_longer_token_counts_for_what_the_other_writes_first_of_its_text():
    own = vocabularies.merged("l o", "h e", "he l")
    other = vocabularies.merged("l o", "h e", "he l", "hel lo", "c a", "ca t")
    found = common(own, other, STOPS)
    hel, hello = id_of(other, "hel"), id_of(other, "hello")
    assert found.other[hello] == found.other[hel] == found.own[id_of(own, "hel")]
    cat = found.other[[id_of(other, word) for word in ("c", "ca", "cat")]].tolist()
    assert cat == [found.own[id_of(own, "c")]] * 3
    assert found.count == len(own)


def test_it_is_what_the_tokenizer_writes_and_not_the_longest_beginning():
    own = vocabularies.merged("b c", "a b")  # of abc it makes a and bc
    assert own.tokenize("abc") == ["a", "bc"]
    other = vocabularies.merged("a b", "ab c")
    found = common(own, other, STOPS)
    assert found.other[id_of(other, "abc")] == found.own[id_of(own, "a")]


def test_ends_of_answers_are_one_class_whatever_they_are_called():
    own, other = vocabularies.byte_level(300), vocabularies.byte_level(300, eos_token="<s>")
    found = common(own, other, ([1], [0]))
    assert found.own[1] == found.other[0] >= 0
    assert found.own[0] == found.other[1] == -1  # else an end would go with a beginning
    several = common(own, own, ([1, 5], [1]))
    assert several.own[5] == several.own[1] == several.other[1]


def test_other_special_tokens_go_by_name_and_those_of_one_side_with_none():
    own = vocabularies.byte_level(300, additional_special_tokens=["<x>", "<y>"])
    other = vocabularies.byte_level(300, additional_special_tokens=["<z>", "<y>"])
    found = common(own, other, STOPS)
    assert found.own[id_of(own, "<y>")] == found.other[id_of(other, "<y>")] >= 0
    assert found.own[id_of(own, "<x>")] == found.other[id_of(other, "<z>")] == -1


def test_across_kinds_every_token_of_ascii_text_has_a_class():
    a, b = vocabularies.byte_level(400), vocabularies.byte_fallback()
    for own, other in ((a, b), (b, a)):
        found = common(own, other, ([own.eos_token_id], [other.eos_token_id]))
        for tokenizer, classes in ((own, found.own), (other, found.other)):
            words = spelled(tokenizer)
            assert all(classes[i] >= 0 for i, word in enumerate(words) if word)
            assert {*classes.tolist()} - {-1} == set(range(found.count))


def test_what_a_vocabulary_without_bytes_cannot_write_has_none():
    own, other = vocabularies.word_piece(), vocabularies.byte_level(300)
    found = common(own, other, ([own.eos_token_id], [1]))
    assert found.other[id_of(other, "Ģ")] == -1  # a byte of a Chinese character
    assert found.own[id_of(own, "##at")] >= 0


def first_classes(own, other, texts):
    """Of each text: the classes of its first token, and whether that token is the same."""
    found = common(own, other, STOPS)
    for text in texts:
        i, j = own(text).input_ids[0], other(text).input_ids[0]
        same = own.convert_ids_to_tokens(i) == other.convert_ids_to_tokens(j)
        yield int(found.own[i]), int(found.other[j]), same


def drawn(seed):
    """Merges of two letters, and of three."""
    draw = random.Random(seed)
    first = draw.sample([x + y for x in "abc" for y in "abc"], 3)
    second = draw.sample([w + x for w in first for x in "abc"], 3)
    return [f"{w[:-1]} {w[-1]}" for w in first + second]


TEXTS = ["".join(t) for t in itertools.product("abc", repeat=5)]


def test_the_first_tokens_of_a_text_are_of_one_class_though_seldom_the_same():
    told = []
    for seed in range(20):
        own, other = (vocabularies.merged(*drawn(2 * seed + k)) for k in (0, 1))
        told += first_classes(own, other, TEXTS)
    assert sum(same for *_, same in told) / len(told) < 0.6
    # merges across what the other has as one token are the exception
    assert sum(a == b != -1 for a, b, _ in told) / len(told) > 0.95


def test_they_always_are_where_one_tokenizer_only_goes_on_merging():
    for seed in range(10):
        merges = drawn(seed)
        own, other = vocabularies.merged(*merges[:3]), vocabularies.merged(*merges)
        told = list(first_classes(own, other, TEXTS))
        assert all(a == b != -1 for a, b, _ in told)
        assert not all(same for *_, same in told)


def test_pieces_tell_what_follows_within_a_token():
    own = vocabularies.merged("l o", "h e", "he l")
    other = vocabularies.merged("l o", "h e", "he l", "hel lo", "hel p", "c a")
    pieces = common(own, other, STOPS).pieces
    hel, lo, p = (id_of(own, word) for word in ("hel", "lo", "p"))
    node = pieces.after((hel,), id_of(other, "hello"))
    scores = torch.full((1, len(other)), -torch.inf, dtype=torch.float64)
    for word, chance in {"hello": 0.3, "help": 0.1, "hel": 0.1, "ca": 0.5}.items():
        scores[0, id_of(other, word)] = torch.tensor(chance).log()
    told = pieces.said(scores, torch.tensor([node]), len(own))
    by_id = dict(zip(told.ids[0].tolist(), told.logp[0].exp().tolist(), strict=True))
    assert by_id == pytest.approx({lo: 0.6, p: 0.2})
    assert float(told.tail.exp()) == pytest.approx(0.2)
    assert told.shape == (1, len(own))


def test_pieces_say_nothing_of_a_token_that_does_not_begin_so():
    own = vocabularies.merged("h e", "he l")
    other = vocabularies.merged("h e", "he l", "hel p", "c a")
    pieces = common(own, other, STOPS).pieces
    hel, c = id_of(own, "hel"), id_of(own, "c")
    assert pieces.after((c,), id_of(other, "help")) == -1
    assert pieces.after((hel,), id_of(other, "hel")) == -1  # it ends here
    assert pieces.after((hel,), len(other) + 5) == -1  # a padded head's
    first = pieces.after((hel,), id_of(other, "help"))
    assert pieces.after((hel,), id_of(other, "help")) == first >= 0
    assert pieces.after((c,), id_of(other, "ca")) == first + 1


def test_where_no_token_ends_another_piece_is_unlikely_but_not_impossible():
    own, other = vocabularies.merged("c a"), vocabularies.merged("c a", "ca t")
    pieces = common(own, other, STOPS).pieces
    ca, t = id_of(own, "ca"), id_of(own, "t")
    node = pieces.after((ca,), id_of(other, "cat"))
    scores = torch.zeros(2, len(other))
    scores[:, id_of(other, "ca")] = -torch.inf
    told = pieces.said(scores, torch.tensor([node, node]), len(own))
    assert told.ids.tolist() == [[t], [t]]
    assert (told.tail.exp() > 0).all()
    assert (told.tail.exp() < 1e-5).all()
