"""Coverage: how much of one tokenizer another one can say, counted in the tokens of texts.

Counts tokens, and knows no model: what a model thinks of them, ``teachers.mass`` tells.
"""

from __future__ import annotations

import heapq
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from stillroom.data.habits import habits
from stillroom.data.rows import Row
from stillroom.data.spans import ends, lost
from stillroom.data.spelling import Words, same_words, shared, spelled
from stillroom.failures import Failure
from stillroom.losses.alignment import chunks

WORST = 8
"""How many examples are kept."""


@dataclass(frozen=True)
class Chunk:
    """The bytes of a chunk, and the tokens that each side has for them."""

    where: str
    words: tuple[tuple[bytes, ...], tuple[bytes, ...]]


@dataclass(frozen=True)
class Side:
    """One tokenizer beside the other.

    Args:
        name: what it was called by.
        vocabulary: how many tokens stand for text.
        common: how many of these the other has too, by their bytes.
        tokens: that it makes of all texts.
        covered: share of these that the other has too (0 to 1).
        single: share of its tokens in aligned texts that are one token of the other's.
        bytes_a_token: of all texts, those of tokens that are no text left out.
        tokens_a_chunk: in aligned texts, its mean.
        lost: texts that its ids do not give back, and how.
        mass: of a model with this tokenizer, what ``teachers.mass`` gives; None without one.
    """

    name: str
    vocabulary: int
    common: int
    tokens: int
    covered: float
    single: float
    bytes_a_token: float
    tokens_a_chunk: float
    lost: Sequence[str]
    mass: tuple[float, float] | None = None


@dataclass(frozen=True)
class Coverage:
    """Two tokenizers on the same texts; shares of nothing are nan.

    Args:
        sides: of the first and of the second.
        texts: how many there are.
        aligned: how many of these both spell with the same bytes; the others have no chunks.
        chunks: how many there are.
        worst: the longest, of different bytes.
        habits: what each adds to a text and to a conversation, by what it is.
        difference: in what their ids stand for (``spelling.same_words``), None where equal.
    """

    sides: tuple[Side, Side]
    texts: int
    aligned: int
    chunks: int
    worst: Sequence[Chunk]
    habits: Mapping[str, tuple[str, str]]
    difference: str | None


def texts_of(named: Sequence[tuple[str, Row]]) -> list[tuple[str, str]]:
    """The texts of rows that ``forms.shaped`` made, each with its place; what is no text is not."""
    found: list[tuple[str, str]] = []
    for where, row in named:
        turns = [turn.get("content") for turn in row.get("messages", ())]
        said = [row.get("prompt"), row.get("completion"), *turns]
        found += [(where, text) for text in said if isinstance(text, str)]
    return found


def coverage(
    names: Sequence[str], tokenizers: Sequence[Any], texts: Sequence[tuple[str, str]]
) -> Coverage:
    """Compare two tokenizers on texts: tokens in common, chunks, what does not come back.

    Args:
        names: of the two.
        tokenizers: two fast ones of ``transformers``.
        texts: with their places, for messages.

    Raises:
        Failure: what a tokenizer's ids stand for cannot be known, there is no text, or one is no
            Unicode.
    """
    if not texts:
        raise Failure("no row has a text in prompt, completion or a message's content")
    for where, text in texts:
        if re.search("[\ud800-\udfff]", text):
            raise Failure(f"{where}: half of a surrogate pair is no text; write the character")
    a, b = (_read(name, t, texts) for name, t in zip(names, tokenizers, strict=True))
    aligned = list(_aligned(a, b, texts))
    sizes = torch.cat([sizes for sizes, _ in aligned] or [torch.zeros(2, 0)], 1)
    worst: dict[bytes, Chunk] = {}
    for chunk in (chunk for _, some in aligned for chunk in some):
        worst.setdefault(b"".join(chunk.words[0]), chunk)
    ids_a, ids_b = shared(a.words, b.words)
    return Coverage(
        sides=(_side(a, ids_a, sizes, texts), _side(b, ids_b, sizes.flip(0), texts)),
        texts=len(texts),
        aligned=len(aligned),
        chunks=sizes.shape[1],
        worst=heapq.nlargest(WORST, worst.values(), key=_tokens),
        habits=habits(*tokenizers),
        difference=same_words(*tokenizers),
    )


@dataclass(frozen=True)
class _Reader:
    name: str
    tokenizer: Any
    words: Words
    ids: Sequence[Sequence[int]]
    """Of each text."""


def _read(name: str, tokenizer: Any, texts: Sequence[tuple[str, str]]) -> _Reader:
    ids = [tokenizer(text, add_special_tokens=False).input_ids for _, text in texts]
    return _Reader(name, tokenizer, spelled(tokenizer), ids)


def _aligned(
    a: _Reader, b: _Reader, texts: Sequence[tuple[str, str]]
) -> Iterator[tuple[Tensor, list[Chunk]]]:
    """Of each text that both spell alike: tokens of each chunk [2, c], and the longest chunks."""
    for (where, text), *ids in zip(texts, a.ids, b.ids, strict=True):
        both = list(zip((a, b), ids, strict=True))
        (mine, ends_a), (theirs, ends_b) = (ends(side.words, some, text) for side, some in both)
        if mine != theirs:
            continue
        stops = torch.stack(chunks(torch.tensor(ends_a).long(), torch.tensor(ends_b).long()))
        sizes = stops.diff(dim=1, prepend=stops.new_zeros(2, 1))
        words = [tuple(side.words[i] or b"" for i in some) for side, some in both]
        found = []
        for k in sizes.sum(0).topk(min(WORST, sizes.shape[1])).indices.tolist():
            past, many = stops[:, k].tolist(), sizes[:, k].tolist()
            parts = [w[n - m : n] for w, n, m in zip(words, past, many, strict=True)]
            found.append(Chunk(where, (parts[0], parts[1])))
        yield sizes, [chunk for chunk in found if _tokens(chunk) > 2]


def _tokens(chunk: Chunk) -> int:
    return sum(map(len, chunk.words))


def _side(reader: _Reader, common: Tensor, sizes: Tensor, texts: Sequence[tuple[str, str]]) -> Side:
    """``common``: ids that the other has too; ``sizes`` [2, C]: tokens a chunk, its own first."""
    known, words = {*common.tolist()}, reader.words
    said = [i for some in reader.ids for i in some if words[i] is not None]
    back = [
        (where, lost(reader.tokenizer, words, ids, text))
        for (where, text), ids in zip(texts, reader.ids, strict=True)
    ]
    return Side(
        name=reader.name,
        vocabulary=sum(word is not None for word in words),
        common=len(known),
        tokens=len(said),
        covered=_share(sum(i in known for i in said), len(said)),
        single=_share(int((sizes == 1).all(0).sum()), int(sizes[0].sum())),
        bytes_a_token=_share(sum(len(words[i] or b"") for i in said), len(said)),
        tokens_a_chunk=_share(int(sizes[0].sum()), sizes.shape[1]),
        lost=[f"{where}: {how}" for where, how in back if how],
    )


def _share(part: int, whole: int) -> float:
    return part / whole if whole else math.nan
