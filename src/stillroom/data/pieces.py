"""Tokens of one vocabulary as another writes them, piece by piece: what is known within a token."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from stillroom.core import Sparse
from stillroom.data.spelling import Words

Piece = tuple[int, ...]
BREAK = "\n"
"""Before a word, where a tokenizer puts a space of its own before a text."""
LEAST = 1e-6
"""Probability of other pieces than a teacher's tokens have, for texts have several spellings."""


class Pieces:
    """A teacher's tokens in the pieces that the student writes them in, sorted, as a trie.

    Once the student has written ``hel`` at a place where the teacher said which of its tokens
    comes next, the teacher's ``hello``, ``help`` and ``hel`` tell what follows: ``lo``, ``p``, or
    the end of the token, after which the student goes on with something else.

    Args:
        pieces: ids of the student by id of the teacher; None where a token cannot be written so.
    """

    def __init__(self, pieces: Sequence[Piece | None]) -> None:
        self._sorted = sorted((told, i) for i, told in enumerate(pieces) if told is not None)
        self._of = pieces
        self._numbers: dict[Piece, int] = {}
        self._nodes: list[tuple[Tensor, Tensor, Tensor]] = []

    def after(self, begun: Piece, token: int) -> int:
        """The number of what may follow the pieces ``begun``; -1 where ``token`` does not."""
        told = self._of[token] if token < len(self._of) else None
        if told is None or told[: len(begun)] != begun or len(told) == len(begun):
            return -1
        if begun not in self._numbers:
            self._numbers[begun] = len(self._nodes)
            self._nodes.append(self._node(begun))
        return self._numbers[begun]

    def _node(self, begun: Piece) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens that begin so, the place of what follows among ``next``, and ``next``.

        Those that end there have the place after the last.
        """
        low = bisect_left(self._sorted, (begun,))
        high = bisect_left(self._sorted, ((*begun[:-1], begun[-1] + 1),))
        found, depth = self._sorted[low:high], len(begun)
        following = sorted({told[depth] for told, _ in found if len(told) > depth})
        place = {piece: k for k, piece in enumerate(following)}
        end = len(following)
        places = [place[told[depth]] if len(told) > depth else end for told, _ in found]
        return torch.tensor([i for _, i in found]), torch.tensor(places), torch.tensor(following)

    def said(self, teacher: Tensor, nodes: Tensor, vocab: int) -> Sparse:
        """What the student writes next, by the teacher's scores of its own next token.

        ``p(v) = sum_{u goes on with v} t_u / sum_{u begins so} t_u``, and ``tail`` for the tokens
        that end there. ``teacher`` [n, V_t] logits, ``nodes`` [n] numbers of ``after``, ``vocab``
        the student's tokens.
        """
        exact = teacher.to(torch.promote_types(teacher.dtype, torch.float32))
        ids, logp, tails = [], [], []
        for scores, number in zip(exact, nodes.tolist(), strict=True):
            tokens, places, following = (part.to(scores.device) for part in self._nodes[number])
            shares = scores.new_zeros(len(following) + 1)
            shares.index_add_(0, places, scores[tokens].softmax(-1))
            ids.append(following)
            logp.append(shares[:-1].log())
            tails.append(shares[-1].clamp_min(LEAST).log())
        return Sparse(
            ids=pad_sequence(ids, batch_first=True),
            logp=pad_sequence(logp, batch_first=True, padding_value=-torch.inf),
            tail=torch.stack(tails),
            vocab=vocab,
        )


def written(tokenizer: Any, words: Words, strange: Sequence[bytes]) -> dict[bytes, Piece]:
    """The ids by which a tokenizer writes words that may be none of its tokens, as after a text.

    Those of which it does not tell are left out: parts of a character, and words whose text it
    changes.
    """
    asked: dict[bytes, str] = {}
    for word in strange:
        try:
            asked[bytes(word)] = word.decode()
        except UnicodeDecodeError:
            continue
    encode = tokenizer.backend_tokenizer.encode_batch_fast
    space, broken = (found.ids for found in encode(["a", BREAK], add_special_tokens=False))
    lead = broken if _said(words, space) != b"a" else []
    texts = [(BREAK if lead else "") + text for text in asked.values()]
    told: dict[bytes, Piece] = {}
    for word, found in zip(asked, encode(texts, add_special_tokens=False), strict=True):
        ids = [i for i in found.ids[len(lead) :] if words[i]]
        if found.ids[: len(lead)] == lead and _said(words, ids) == word:
            told[word] = tuple(ids)
    return told


def _said(words: Words, ids: Sequence[int]) -> bytes:
    return b"".join(words[i] or b"" for i in ids)
