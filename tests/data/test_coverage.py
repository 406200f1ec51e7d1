"""Shares and chunks of two tokenizers on texts, counted by hand; what tokenizers add."""

import math

import pytest
from tokenizers import processors
from vocabularies import byte_level, merged, word_piece

from stillroom.data.coverage import Chunk, coverage, texts_of
from stillroom.data.habits import habits
from stillroom.failures import Failure

CAT = ("c a", "ca t")


def compared(a, b, *texts):
    return coverage(["a", "b"], [a, b], [(f"text {i}", text) for i, text in enumerate(texts)])


def test_shares_by_hand():
    """``cat`` is c a t and one token; the space and ``s`` are one token of both."""
    told = compared(merged(), merged(*CAT), "cat cats", "")
    a, b = told.sides
    assert (told.texts, told.aligned, told.chunks) == (2, 2, 4)
    assert (a.vocabulary, b.vocabulary, a.common, b.common) == (256, 258, 256, 256)
    assert (a.tokens, b.tokens) == (8, 4)
    assert (a.covered, b.covered) == (1.0, 2 / 4)
    assert (a.single, b.single) == (2 / 8, 2 / 4)
    assert (a.bytes_a_token, b.bytes_a_token) == (1.0, 2.0)
    assert (a.tokens_a_chunk, b.tokens_a_chunk) == (2.0, 1.0)
    assert a.lost == b.lost == []
    assert told.worst == [Chunk("text 0", ((b"c", b"a", b"t"), (b"cat",)))]
    assert str(told.difference).endswith("id 258, is no token and 'ca'")


def test_equal_tokenizers_have_chunks_of_one_token():
    told = compared(byte_level(300), byte_level(300), "the cat 你好 😀", "Hello world")
    assert told.difference is None
    assert told.worst == []
    for side in told.sides:
        assert (side.covered, side.single, side.tokens_a_chunk) == (1.0, 1.0, 1.0)
        assert side.tokens == told.chunks


def test_the_longest_chunks_come_first_and_once():
    heart = ("ð Ł", "ĺ Ģ", "ðŁ ĺĢ")
    told = compared(merged(*CAT), merged(*heart), "cat", "cat 😀", "a😀 cat")
    assert [chunk.words for chunk in told.worst] == [
        ((b"\xf0", b"\x9f", b"\x98", b"\x80"), (b"\xf0\x9f\x98\x80",)),
        ((b"cat",), (b"c", b"a", b"t")),
    ]
    assert [chunk.where for chunk in told.worst] == ["text 1", "text 0"]


def test_texts_that_are_spelled_otherwise_have_no_chunks():
    told = compared(byte_level(300), word_piece(), "the cat", "The Cat Q")
    assert (told.texts, told.aligned, told.chunks) == (2, 1, 2)
    assert told.sides[0].lost == []
    (how,) = told.sides[1].lost
    assert how.startswith("text 1: it takes parts for [UNK] in 'The Cat Q'")
    none = compared(byte_level(300), word_piece(), "Q")
    assert none.chunks == none.sides[1].tokens == 0
    assert math.isnan(none.sides[1].covered)
    assert math.isnan(none.sides[0].tokens_a_chunk)


def test_special_tokens_in_a_text_are_not_counted():
    told = compared(merged(), merged(*CAT), "<s>cat</s>")
    assert (told.sides[0].tokens, told.sides[1].tokens, told.aligned) == (3, 1, 1)
    assert told.chunks == 3  # each special token is one of its own
    assert [side.lost[0][:24] for side in told.sides] == ["text 0: it takes parts f"] * 2


def test_texts_of_rows():
    rows = [
        ("line 1", {"prompt": "a", "completion": "b"}),
        ("line 2", {"prompt": [{"role": "user", "content": "no text"}]}),
        ("line 3", {"messages": [{"role": "user", "content": "c"}, {"tool_calls": []}]}),
    ]
    assert texts_of(rows) == [("line 1", "a"), ("line 1", "b"), ("line 3", "c")]


def test_what_is_no_text_is_refused():
    with pytest.raises(Failure, match="text 1: half of a surrogate pair is no text"):
        compared(merged(), merged(), "a", "b\ud83d")
    with pytest.raises(Failure, match="no row has a text in prompt"):
        compared(merged(), merged())


def test_habits_tell_what_is_added_by_one_side():
    own, other = merged(pad_token="</s>"), merged(bos_token=None)
    backend = own.backend_tokenizer
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    own.chat_template = "<{{ messages[0].content }}>{{ add_generation_prompt }}"
    other.chat_template = "{{ raise_exception('never') }}"
    assert habits(own, other) == {
        "BOS": ("<s> (0)", "none"),
        "EOS": ("</s> (1)", "</s> (1)"),
        "padding": ("</s> (1)", "none"),
        "added before a text": ("<s> (0)", "none"),
        "added after a text": ("</s> (1)", "none"),
        "a user's 'Hello', rendered": ("<Hello>True", "refused: never"),
    }
    assert habits(merged(), merged())["a user's 'Hello', rendered"] == ("no chat template",) * 2
