"""Id-to-bytes maps, held against what tokenizers themselves decode, and their comparison."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, decoders, models
from transformers import AutoTokenizer, ByT5Tokenizer
from vocabularies import (
    SPECIAL,
    TEXTS,
    byte_fallback,
    byte_level,
    merged,
    unigram,
    word_piece,
    wrapped,
)

from stillroom.data.spelling import Spare, same_words, shared, spelled
from stillroom.failures import Failure

KINDS = {
    "byte-level": byte_level(300),
    "llama": byte_fallback(),
    "gemma": byte_fallback(space_first=False),
    "t5": unigram(),
    "bert": word_piece(),
}
SAID = st.lists(
    st.sampled_from([*"thecaswolrd ,?\n", "你", "好", "é", "😀", "👩‍👩‍👧"]), max_size=12
)


@pytest.mark.parametrize("kind", KINDS)
@given(letters=SAID)
def test_the_bytes_of_ids_are_what_the_tokenizer_decodes(kind, letters):
    tokenizer = KINDS[kind]
    words = spelled(tokenizer)
    ids = tokenizer("".join(letters), add_special_tokens=False).input_ids
    mine = b"".join(words[i] or b"" for i in ids).decode()
    theirs = tokenizer.backend_tokenizer.decode(ids, skip_special_tokens=True)
    if kind == "bert":  # which drops the space before a comma
        mine, theirs = mine.replace(" ", ""), theirs.replace(" ", "")
    if kind in ("llama", "t5"):  # which drop the space that they put before a text
        mine = mine.removeprefix(" ")
    assert mine == theirs


def test_a_character_may_be_split_into_its_bytes():
    tokenizer = merged("ð Ł", "ĺ Ģ")
    words = spelled(tokenizer)
    ids = tokenizer("😀é", add_special_tokens=False).input_ids
    assert [words[i] for i in ids] == [b"\xf0\x9f", b"\x98\x80", b"\xc3", b"\xa9"]


def test_tokens_of_each_kind_by_hand():
    fallback, pieces, bert = KINDS["llama"], KINDS["t5"], KINDS["bert"]
    words = spelled(fallback)
    assert words[fallback.convert_tokens_to_ids("▁cat")] == b" cat"
    assert words[fallback.convert_tokens_to_ids("<0xE4>")] == b"\xe4"
    assert spelled(pieces)[pieces.convert_tokens_to_ids("▁the")] == b" the"
    words = spelled(bert)
    assert words[bert.convert_tokens_to_ids("the")] == b" the"
    assert words[bert.convert_tokens_to_ids("##at")] == b"at"


@pytest.mark.parametrize("tokenizer", KINDS.values(), ids=KINDS)
def test_special_tokens_stand_for_no_text(tokenizer):
    words = spelled(tokenizer)
    special = [i for i, word in enumerate(words) if word is None]
    assert special == sorted(tokenizer.all_special_ids)
    assert len(words) == len(tokenizer)


def test_added_tokens_are_their_own_text_and_written_before_others():
    tokenizer = byte_level(300)
    tokenizer.add_tokens(["Ġ<go>", " the"])
    tokenizer.add_tokens(["<eot>"], special_tokens=True)
    words = spelled(tokenizer)
    added = tokenizer("the the Ġ<go><eot>", add_special_tokens=False).input_ids
    assert words[added[-2]] == "Ġ<go>".encode()
    assert words[added[-1]] is None
    first, second = (tokenizer.convert_tokens_to_ids(name) for name in ("Ġthe", " the"))
    assert words[first] == words[second] == b" the"
    assert [isinstance(words[i], Spare) for i in (first, second)] == [True, False]
    assert second in added
    assert first not in added


def test_an_added_token_that_is_a_word_of_the_model_is_spelled_as_that():
    tokenizer = byte_fallback()
    tokenizer.add_tokens(["▁cat"])
    assert spelled(tokenizer)[tokenizer.convert_tokens_to_ids("▁cat")] == b" cat"


def test_a_byte_is_spare_where_a_token_is_that_letter():
    tokenizer = KINDS["gemma"]
    words = spelled(tokenizer)
    letters = {word: i for i, word in enumerate(words) if word and not isinstance(word, Spare)}
    for i, word in enumerate(words):
        if isinstance(word, Spare):
            assert tokenizer.convert_ids_to_tokens(i) == f"<0x{word[0]:02X}>"
            written = tokenizer(word.decode(), add_special_tokens=False).input_ids
            assert written == [letters[bytes(word)]]
    assert isinstance(words[tokenizer.convert_tokens_to_ids("<0x68>")], Spare)


def test_a_vocabulary_of_bytes_alone_is_known():
    model = models.BPE(
        vocab={f"<0x{byte:02X}>": byte for byte in range(256)}, merges=[], byte_fallback=True
    )
    made = Tokenizer(model)
    made.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    words = spelled(wrapped(made, bos_token=None, eos_token=None))
    assert words == [bytes([byte]) for byte in range(256)]


def of_decoder(decoder, **told):
    made = Tokenizer(models.BPE(vocab={"<s>": 0, "</s>": 1, "ab": 2, "Ġc": 3}, merges=[], **told))
    if decoder is not None:
        made.decoder = decoder
    return wrapped(made)


@pytest.mark.parametrize(
    ("tokenizer", "said"),
    [
        (of_decoder(None), r"its decoder is none; known are ByteFallback, ByteLevel"),
        (of_decoder(decoders.BPEDecoder()), r"its decoder is BPEDecoder; .* Give a byte-level"),
        (of_decoder(decoders.CTC()), r"its decoder is CTC"),
        (
            of_decoder(decoders.Sequence([decoders.ByteLevel(), decoders.CTC()])),
            r"its decoder is ByteLevel, CTC",
        ),
        (of_decoder(decoders.Fuse()), r"its decoder is Fuse;"),
        (of_decoder(decoders.ByteLevel(), end_of_word_suffix="</w>"), r"with '</w>' at the end"),
        (
            of_decoder(
                decoders.Sequence([decoders.Replace(Regex("a|Ġ"), " "), decoders.ByteFallback()])
            ),
            r"id \d would be '.*' by the steps of its decoder, and the tokenizer writes ' ?[bc]+'",
        ),
        (ByT5Tokenizer(), r"ByT5Tokenizer is no fast tokenizer"),
    ],
)
def test_what_cannot_be_known_is_refused(tokenizer, said):
    with pytest.raises(Failure, match=said):
        spelled(tokenizer)


def written(words):
    return {
        (bytes(word), isinstance(word, Spare)): i
        for i, word in enumerate(words)
        if word is not None
    }


@pytest.mark.parametrize("a", KINDS)
@pytest.mark.parametrize("b", KINDS)
def test_shared_tokens_are_all_that_both_have(a, b):
    first, second = spelled(KINDS[a]), spelled(KINDS[b])
    mine, theirs = written(first), written(second)
    pairs = sorted((mine[key], theirs[key]) for key in mine.keys() & theirs.keys())
    found = shared(first, second)
    assert [ids.dtype for ids in found] == [torch.long, torch.long]
    assert list(zip(*(ids.tolist() for ids in found), strict=True)) == pairs


def test_shared_tokens_that_stand_twice_go_by_their_order():
    a, b = [b"x", Spare(b"x"), None, Spare(b"x")], [Spare(b"x"), b"y", b"x"]
    assert [ids.tolist() for ids in shared(a, b)] == [[0, 1], [2, 0]]
    assert [ids.tolist() for ids in shared([None], b)] == [[], []]


@pytest.mark.parametrize("tokenizer", KINDS.values(), ids=KINDS)
def test_a_tokenizer_is_the_same_as_its_copy(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    assert same_words(tokenizer, AutoTokenizer.from_pretrained(tmp_path)) is None


def test_other_words_of_the_same_number_differ():
    told = same_words(merged("c a"), merged("d o"))
    assert told is not None
    assert told.startswith("259 and 259 tokens, of which 258 have the same id")
    assert told.endswith("id 258, is 'ca' and 'do'")


def test_the_same_words_with_other_ids_differ():
    told = same_words(merged("c a"), merged("c a", turned=True))
    assert told is not None
    assert "259 and 259 tokens, of which 1 have the same id" in told  # the middle one
    assert "id 0, is '<s>' and 'ca'" in told


def test_more_words_differ_by_what_is_there_alone():
    told = same_words(merged(), merged("c a"))
    assert told is not None
    assert told.endswith("id 258, is no token and 'ca'")
    assert str(same_words(merged("c a"), merged())).endswith("id 258, is 'ca' and no token")


def test_neither_role_nor_specialness_of_a_token_makes_another_word():
    roles = merged("c a", bos_token=None, eos_token="<s>", pad_token="</s>")
    assert same_words(merged("c a"), roles) is None


def test_tokens_of_one_name_differ_where_their_bytes_do():
    own = byte_level(300)
    other = wrapped(Tokenizer.from_str(own.backend_tokenizer.to_str()))
    other.backend_tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    assert own.get_vocab() == other.get_vocab()
    # the bytes from ! to ~ are their own letters, so 33 to 126 come first and are alike
    assert str(same_words(own, other)).endswith(r"id 96, is '\xa1' and '\xc2\xa1'")


def test_other_names_of_the_same_bytes_are_no_difference():
    """``▁ab`` of one and ``Ġab`` of the other are both `` ab``."""
    first = {"<s>": 0, "</s>": 1, "ab": 2}
    a = Tokenizer(models.BPE(vocab={**first, "Ġab": 3}, merges=[]))
    b = Tokenizer(models.BPE(vocab={**first, "▁ab": 3}, merges=[]))
    a.decoder, b.decoder = decoders.ByteLevel(), decoders.Metaspace()
    assert spelled(wrapped(a)) == spelled(wrapped(b)) == [None, None, b"ab", b" ab"]
    assert same_words(wrapped(a), wrapped(b)) is None


def test_names_are_compared_where_bytes_cannot_be_known():
    slow = ByT5Tokenizer()
    assert same_words(slow, ByT5Tokenizer()) is None
    assert same_words(slow, ByT5Tokenizer(extra_ids=124)) is not None
    unknown = of_decoder(decoders.BPEDecoder())
    assert same_words(unknown, of_decoder(decoders.CTC())) is None
    assert "id 2, is 'ab' and" in str(same_words(unknown, byte_level(300)))


def test_texts_of_the_fixtures_come_back():
    """Else the tests above would compare nothing."""
    for kind in ("byte-level", "llama", "gemma"):
        words = spelled(KINDS[kind])
        for text in TEXTS:
            ids = KINDS[kind](text, add_special_tokens=False).input_ids
            assert b"".join(words[i] or b"" for i in ids).decode().lstrip(" ") == text
    assert SPECIAL == ["<s>", "</s>"]
