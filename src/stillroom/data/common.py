"""Classes of tokens that two vocabularies have in common: where their scores can be compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from stillroom.data.pieces import Pieces, written
from stillroom.data.spelling import Words, shared, spelled


@dataclass(frozen=True)
class Common:
    """The class of each token of two vocabularies, ``own`` [V_a] and ``other`` [V_b].

    -1 is in none. Each of the ``count`` classes has a token on both sides. ``pieces`` are the
    other's tokens as the own tokenizer writes them.
    """

    own: Tensor
    other: Tensor
    count: int
    pieces: Pieces


def common(a: Any, b: Any, stops: tuple[Sequence[int], Sequence[int]]) -> Common:
    """The finest classes in which two models that write the same text agree on the next token.

    A token that both vocabularies have is a class of its own. Any other belongs to the token that
    its text begins with where the other tokenizer writes it, and so on, until one is found that
    both have: where the teacher has a token ``hello`` and the student writes ``hel`` and ``lo``,
    what the teacher gives to ``hello`` counts for ``hel``. Where a tokenizer does not tell (of
    parts of a character) it is the longest beginning that both have. Special tokens are compared
    by name, and the ends of an answer are one class.

    Equal tokenizers have as many classes as tokens, in the order of ids.

    Args:
        a: a fast tokenizer of ``transformers``.
        b: another.
        stops: ids that end an answer, of both.

    Raises:
        Failure: what ids stand for cannot be known (``spelling.spelled``).
    """
    words = (spelled(a), spelled(b))
    by_bytes = zip(*(ids.tolist() for ids in shared(*words)), strict=True)
    pairs = sorted([*by_bytes, *_named(a, b, words)])
    pairs = [(i, j) for i, j in pairs if (i in stops[0]) == (j in stops[1])]
    found = [{ids[side]: k for k, ids in enumerate(pairs)} for side in (0, 1)]
    ending = {found[0][i] for i in stops[0] if i in found[0]}
    count = len(pairs) if ending else len(pairs) + 1
    for classes, own in zip(found, stops, strict=True):
        for i in own:
            classes.setdefault(i, min(ending, default=len(pairs)))
    both = {bytes(word): found[0][i] for i, word in enumerate(words[0]) if word and i in found[0]}
    strange = [[w for w in words[side] if w and w not in both] for side in (0, 1)]
    mine, theirs = written(a, words[0], strange[1]), written(b, words[1], strange[0])
    firsts = {
        word: bytes(told[ids[0]] or b"")
        for told, found in zip(words, (mine, theirs), strict=True)
        for word, ids in found.items()
    }
    for classes, told in zip(found, words, strict=True):
        for i, word in enumerate(told):
            if word and i not in classes:
                classes[i] = _root(word, both, firsts)
    own, other = (
        torch.tensor([classes.get(i, -1) for i in range(len(told))])
        for classes, told in zip(found, words, strict=True)
    )
    single = {j: (i,) for i, j in pairs}
    pieces = [single.get(j) or mine.get(bytes(w or b"")) for j, w in enumerate(words[1])]
    return Common(own, other, count, Pieces(pieces))


def _named(a: Any, b: Any, words: tuple[Words, Words]) -> list[tuple[int, int]]:
    """Special tokens, and all that stand for no text, of one name."""
    names = [
        {token: i for token, i in x.get_vocab().items() if told[i] is None}
        for x, told in zip((a, b), words, strict=True)
    ]
    return [(i, names[1][token]) for token, i in names[0].items() if token in names[1]]


def _root(word: bytes, both: Mapping[bytes, int], firsts: Mapping[bytes, bytes]) -> int:
    """The class of the token that a word comes down to; -1 where nothing of it is in common."""
    while word and word not in both:
        first = firsts.get(word, word)
        word = first if len(first) < len(word) else word[:-1]
    return both.get(word, -1)
