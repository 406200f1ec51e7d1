"""Where tokens end in the bytes of a text, and texts that do not come back."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from vocabularies import byte_fallback, byte_level, merged, unigram, word_piece

from stillroom.data.spans import ends, first_words, lost
from stillroom.data.spelling import Spare, spelled

LOSSLESS = {
    "byte-level": byte_level(300),
    "llama": byte_fallback(),
    "gemma": byte_fallback(space_first=False),
}
TEXTS = st.text(
    st.characters(codec="utf-8", exclude_characters="▁"), min_size=1, max_size=12
).filter(lambda text: "<s>" not in text and "</s>" not in text)


def read(tokenizer, text):
    ids = tokenizer(text, add_special_tokens=False).input_ids
    return ends(spelled(tokenizer), ids, text)


@pytest.mark.parametrize("kind", LOSSLESS)
@given(text=TEXTS)
def test_any_text_is_what_its_tokens_stand_for(kind, text):
    said, places = read(LOSSLESS[kind], text)
    assert said == text.encode()
    assert places == sorted(places)
    assert places[-1] == len(said)


@pytest.mark.parametrize("kind", ["byte-level", "gemma"])
@given(letters=st.lists(st.sampled_from("thecat wlo?\n"), min_size=1, max_size=16))
def test_ends_are_the_offsets_of_a_text_of_one_byte_a_character(kind, letters):
    """The tokenizer's own offsets count characters, which are bytes here."""
    text = "".join(letters)
    told = LOSSLESS[kind](text, add_special_tokens=False, return_offsets_mapping=True)
    assert read(LOSSLESS[kind], text)[1] == [end for _, end in told.offset_mapping]


@pytest.mark.parametrize(
    ("text", "merges", "places"),
    [
        ("😀", (), [1, 2, 3, 4]),
        ("😀", ("ð Ł", "ĺ Ģ"), [2, 4]),
        ("a你b", ("ä ½", "ä½ ł"), [1, 4, 5]),
        ("a你b", ("ł b",), [1, 2, 3, 5]),
        ("", (), []),
    ],
)
def test_ends_may_lie_within_a_character(text, merges, places):
    assert read(merged(*merges), text) == (text.encode(), places)


def test_ends_of_tokens_by_hand():
    words = [None, b" he", b"llo", Spare(b" "), b"l"]
    assert ends(words, [1, 2], " hello") == (b" hello", [3, 6])
    assert ends(words, [1, 2], "hello") == (b"hello", [2, 5])
    assert ends(words, [0, 1, 2, 0], "hello") == (b"hello", [0, 2, 5, 5])
    assert ends(words, [3, 4], "l") == (b"l", [0, 1])
    assert ends(words, [3, 1], " he") == (b" he", [0, 3])
    assert ends(words, [2, 9, 4], "llol") == (b"llol", [3, 3, 4])  # 9: of a padded head
    assert ends(words, [], "") == (b"", [])


@pytest.mark.parametrize(
    ("tokenizer", "text", "said"),
    [
        (
            word_piece(),
            "the Cat",
            "its normalizer changes 'the Cat', which comes back as 'the cat'",
        ),
        (
            word_piece(),
            "the cat, hat",
            "it does not give back 'the cat, hat', which comes back as 'the cat , hat'",
        ),
        (
            word_piece(),
            "the cat Q",
            "it takes parts for [UNK] in 'the cat Q', which comes back as 'the cat'",
        ),
        (
            byte_fallback(),
            "a▁b",
            "its normalizer changes 'a▁b', which comes back as 'a b'",
        ),
        (
            byte_level(300),
            "a</s>b<s>",
            "it takes parts for <s> </s> in 'a</s>b<s>', which comes back as 'ab'",
        ),
        (
            unigram(),
            "the cat sat on the mat Q",
            "it takes parts for <unk> in ' on the mat Q', which comes back as ' on the mat '",
        ),
    ],
    ids=["lower case", "spaces", "unknown", "normalizer", "special", "from before"],
)
def test_a_text_that_does_not_come_back_is_told(tokenizer, text, said):
    ids = tokenizer(text, add_special_tokens=False).input_ids
    assert lost(tokenizer, spelled(tokenizer), ids, text) == said


@pytest.mark.parametrize("kind", LOSSLESS)
def test_a_text_that_comes_back_is_not_lost(kind):
    tokenizer = LOSSLESS[kind]
    text = " naïve 你好 👩‍👩‍👧\n"
    ids = tokenizer(text, add_special_tokens=False).input_ids
    assert lost(tokenizer, spelled(tokenizer), ids, text) is None


def test_first_words_need_no_space_where_the_tokenizer_puts_one():
    llama, gemma = LOSSLESS["llama"], LOSSLESS["gemma"]
    words = spelled(llama)
    assert spelled(gemma) == words
    known = {bytes(word) for word in words if word is not None}
    assert b"weather?" not in known
    assert first_words(gemma, words) == known
    for word in (b" weather?", b"weather?"):  # as the tokenizer itself has it
        assert word in first_words(llama, words)
        assert len(llama(word.decode().strip(), add_special_tokens=False).input_ids) == 1
    assert first_words(llama, words) - known == {
        word[1:] for word in known if word[:1] == b" " and word[1:] not in known
    }
