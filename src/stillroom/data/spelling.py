"""What bytes each token id stands for: tokenizers compared by what they write, never by size.

Reads fast tokenizers of ``transformers``: byte-level BPE, SentencePiece (metaspace and byte
fallback) and WordPiece. Offsets are not used: they count characters, and a token may be a part of
one.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.convert_slow_tokenizer import bytes_to_unicode

from stillroom.failures import Failure

Words = Sequence[bytes | None]
"""Bytes by token id; None where an id stands for no text."""
ALPHABET = {letter: byte for byte, letter in bytes_to_unicode().items()}
"""GPT-2's: bytes by the letter that byte-level BPE writes for each."""
BYTE = re.compile("<0x([0-9A-F]{2})>")
TELLING = {"ByteLevel", "Metaspace", "ByteFallback", "WordPiece"}
"""Steps of a decoder, one of which at least tells how bytes or spaces are written."""
SILENT = {"Replace", "Fuse", "Strip"}
"""Steps that may stand beside them."""


class Spare(bytes):
    """Bytes of a token that its tokenizer does not write, since another one has the same.

    Such are ``<0x41>`` where ``A`` is a token, and equal tokens after the first.
    """


def spelled(tokenizer: Any) -> list[bytes | None]:
    """Id-to-bytes map (vocabulary in bytes) of a fast tokenizer, the highest id being the last.

    The steps of its decoder are followed on each token by itself; the first of a text too, so
    that SentencePiece's is `` Hello`` (``spans.ends`` leaves that space out). A byte or a part of a
    character is bytes as any other. WordPiece drops spaces: a token without its prefix (``##``)
    is taken as one with a space before. An added token that is not special, and no word of the
    model, is its own text. Every token that was not added is held against what the tokenizer
    decodes after another token; how texts come back, ``spans.lost`` tells.

    Returns:
        Bytes by id: None for special tokens and ids without a token, ``Spare`` for those that are
        read but not written.

    Raises:
        Failure: the tokenizer is no fast one, its decoder tells no bytes, or it decodes a token
            otherwise.
    """
    steps, backend = steps_of(tokenizer), tokenizer.backend_tokenizer
    own = backend.get_vocab(with_added_tokens=False)
    added = tokenizer.added_tokens_decoder
    special = {i for i, token in added.items() if token.special}
    tokens = {i: t for t, i in tokenizer.get_vocab().items() if i not in special}
    words = {
        i: t.encode() if i in added and t not in own else bytes_of(t, steps)
        for i, t in tokens.items()
    }
    _check(backend, {i: word for i, word in words.items() if i not in added})
    told: list[bytes | None] = [None] * (max(tokenizer.get_vocab().values(), default=-1) + 1)
    written: set[bytes] = set()
    # an added token is found before all others, a byte of its own is the last resort
    for i in sorted(words, key=lambda i: (i not in added, bool(BYTE.fullmatch(tokens[i])), i)):
        told[i] = Spare(words[i]) if words[i] in written else words[i]
        written.add(words[i])
    return told


def steps_of(tokenizer: Any) -> list[Mapping[str, Any]]:
    """The steps of a fast tokenizer's decoder; Failure where they tell no bytes."""
    name = type(tokenizer).__name__
    if not tokenizer.is_fast:
        raise Failure(f"{name} is no fast tokenizer: what its ids stand for cannot be known")
    backend = tokenizer.backend_tokenizer
    told = json.loads(backend.decoder.__getstate__()) if backend.decoder else {"decoders": []}
    steps = told.get("decoders", [told])
    kinds = {step["type"] for step in steps}
    spaces = any(step.get("content") == " " for step in steps if step["type"] == "Replace")
    suffix = getattr(backend.model, "end_of_word_suffix", None)  # of BPE alone
    if suffix or kinds - TELLING - SILENT or not (kinds & TELLING or spaces):
        how = ", ".join(sorted(kinds)) or "none"
        raise Failure(
            f"the bytes that the ids of this {name} stand for cannot be known: its decoder is "
            f"{how}{f', with {suffix!r} at the end of words' if suffix else ''}; known are "
            f"{', '.join(sorted(TELLING))}. Give a byte-level, SentencePiece or WordPiece one"
        )
    return steps


def bytes_of(token: str, steps: Sequence[Mapping[str, Any]]) -> bytes:
    """A token as the steps of a decoder write it after another one."""
    for step in steps:
        match step:
            case {"type": "Replace", "pattern": {"String": old}, "content": new}:
                token = token.replace(old, new)
            case {"type": "Metaspace", "replacement": mark}:
                token = token.replace(mark, " ")
            case {"type": "WordPiece", "prefix": prefix}:
                begins = not token.startswith(prefix)
                token = f" {token}" if begins else token.removeprefix(prefix)
            case {"type": "ByteFallback"} if found := BYTE.fullmatch(token):
                return bytes([int(found[1], 16)])
            case {"type": "ByteLevel"} if ALPHABET.keys() >= set(token):
                return bytes(ALPHABET[letter] for letter in token)
    return token.encode()


def _check(backend: Any, words: Mapping[int, bytes]) -> None:
    """Each token as decoded behind another one, the space before left out: WordPiece drops some."""
    # longer than a byte: <0x41> would be decoded together with the bytes behind it
    plain = [i for i, word in words.items() if len(word) > 2 and word.strip().isalnum()][:1]
    before = backend.decode(plain, skip_special_tokens=False)
    said = backend.decode_batch([[*plain, i] for i in words], skip_special_tokens=False)
    for (i, word), text in zip(words.items(), said, strict=True):
        mine, theirs = word.decode(errors="replace"), text.removeprefix(before)
        if mine.removeprefix(" ") != theirs.removeprefix(" "):
            raise Failure(
                f"the bytes that ids stand for cannot be known: id {i} would be {mine!r} by the "
                f"steps of its decoder, and the tokenizer writes {theirs!r}"
            )


def shared(a: Words, b: Words) -> tuple[Tensor, Tensor]:
    """Ids of the tokens that two vocabularies have in common, by their bytes (token overlap).

    ``a``, ``b`` from ``spelled`` -> ids of a [k], rising, and of b [k]. Where several ids have the
    same bytes, the one that is written goes with the one that is written, and the others in order.
    """
    theirs = dict(_keys(b))
    pairs = [(i, theirs[key]) for key, i in _keys(a) if key in theirs]
    ids = torch.tensor(pairs, dtype=torch.long).reshape(-1, 2)
    return ids[:, 0], ids[:, 1]


def _keys(words: Words) -> Iterator[tuple[Hashable, int]]:
    seen: Counter[Hashable] = Counter()
    for i, word in enumerate(words):
        if word is not None:
            key = (isinstance(word, Spare), word)
            yield (*key, seen[key]), i
            seen[key] += 1


def same_words(a: Any, b: Any) -> str | None:
    """How two tokenizers differ in what their ids stand for, in one sentence; None where equal.

    Text is compared by its bytes, special tokens by what they are called, whichever of them is BOS
    or EOS. Sizes say nothing, and rows of a head beyond the tokens are none. Where the bytes of one
    of them cannot be known, what both call their tokens is compared instead.
    """
    if _made(a) == _made(b):
        return None
    try:
        mine, theirs = _named(a), _named(b)
    except Failure:
        mine, theirs = ({i: t.encode() for t, i in x.get_vocab().items()} for x in (a, b))
    ids = sorted({*mine, *theirs})
    other = [i for i in ids if mine.get(i) != theirs.get(i)]
    if not other:
        return None
    words = [repr(x[other[0]])[1:] if other[0] in x else "no token" for x in (mine, theirs)]
    same = len(ids) - len(other)
    return (
        f"{len(mine):,} and {len(theirs):,} tokens, of which {same:,} have the same id; "
        f"the first other one, id {other[0]}, is {' and '.join(words)}"
    )


def _made(tokenizer: Any) -> tuple[Any, ...]:
    """What the bytes of all ids follow from."""
    decoder = tokenizer.is_fast and tokenizer.backend_tokenizer.decoder
    told = decoder.__getstate__() if decoder else None
    return tokenizer.get_vocab(), {*tokenizer.added_tokens_decoder}, told


def _named(tokenizer: Any) -> dict[int, bytes]:
    words = spelled(tokenizer)
    named = ((i, words[i], token) for token, i in tokenizer.get_vocab().items())
    return {i: token.encode() if word is None else word for i, word, token in named}
