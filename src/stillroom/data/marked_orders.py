"""Marked orders: a made-up text world in which every answer can be checked exactly.

A prompt is four symbols, the first of which allows three of six styles. An answer copies the
symbols as words between three markers, all of one allowed style, picked at random:

    prompt ``a2 a3 a2 a2 :``    answer ``m0.s2 w2 w3 m1.s2 w2 w2 m2.s2``  (then end of text)

A student that cannot see its own earlier marker does best on the teacher's text by mixing styles
(validity 1/9, forward KL 2 ln 3); one that commits to a style is always valid (reverse KL ln 3).
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch

from stillroom.core import Failure

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

VALUES, STYLES, ALLOWED, MARKERS, SYMBOLS = 8, 6, 3, 3, 4
PAD, EOS, SEP = 0, 1, 2
FIRST_SYMBOL = 3
FIRST_WORD = FIRST_SYMBOL + VALUES
FIRST_MARKER = FIRST_WORD + VALUES
VOCABULARY = (
    *("<pad>", "<eos>", ":"),
    *(f"a{v}" for v in range(VALUES)),
    *(f"w{v}" for v in range(VALUES)),
    *(f"m{j}.s{k}" for j in range(MARKERS) for k in range(STYLES)),
)
"""All 37 words; a word's token id is its place here."""
LENGTH = MARKERS + SYMBOLS + 1
"""Tokens of every valid answer, the end of text included."""
MARKER_PLACES, WORD_PLACES = (0, 3, 6), (1, 2, 4, 5)
_IDS = {word: i for i, word in enumerate(VOCABULARY)}
_COUNT = VALUES**SYMBOLS

Row = dict[str, str]


def marker(place: int, style: int) -> int:
    """Token id of marker ``place`` (0, 1, 2) in ``style`` (0 to 5)."""
    return FIRST_MARKER + STYLES * place + style


def encode(text: str) -> list[int]:
    """Token ids of words that spaces part; the same as those of the tokenizer."""
    try:
        return [_IDS[word] for word in text.split()]
    except KeyError as unknown:
        known = " ".join(VOCABULARY)
        raise Failure(f"no word {unknown} in {text!r}; the words are: {known}") from None


def decode(ids: Sequence[int]) -> str:
    """Words of token ids."""
    return " ".join(VOCABULARY[i] for i in ids)


@dataclass(frozen=True)
class MarkedOrders:
    """One world: ``world_seed`` draws which styles go with which first symbol.

    ``prompts``: how many of the 4096 prompts the splits are made of (at least 16); None: all.
    ``smoothing``: share of each token's probability that the smoothed teacher spreads evenly.
    """

    world_seed: int = 0
    prompts: int | None = None
    smoothing: float = 1e-3

    def __post_init__(self) -> None:
        if self.prompts is not None and not 16 <= self.prompts <= _COUNT:
            raise Failure(f"prompts must be from 16 to {_COUNT}, got {self.prompts}")
        if not 0 < self.smoothing < 1:
            raise Failure(f"smoothing must be between 0 and 1, got {self.smoothing}")

    @cached_property
    def allowed(self) -> tuple[tuple[int, ...], ...]:
        """The three styles, in order, that each first symbol allows."""
        draw = random.Random(self.world_seed)
        return tuple(tuple(sorted(draw.sample(range(STYLES), ALLOWED))) for _first in range(VALUES))

    def tokenizer(self) -> PreTrainedTokenizerFast:
        """The words as a transformers tokenizer: parted by spaces, unknown ones refused."""
        from tokenizers import Tokenizer, models, pre_tokenizers
        from transformers import PreTrainedTokenizerFast

        words = Tokenizer(models.WordLevel(_IDS, unk_token=None))
        # a prompt with its answer glued on reads the same as with a space between
        words.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Split(":", "isolated")]
        )
        return PreTrainedTokenizerFast(
            tokenizer_object=words,
            pad_token=VOCABULARY[PAD],
            eos_token=VOCABULARY[EOS],
            clean_up_tokenization_spaces=False,
        )

    def valid(self, prompt: Sequence[int]) -> list[list[int]]:
        """The three right answers to a prompt's token ids, each of 8 tokens with the end of text.

        ``m0_k w(x1) w(x2) m1_k w(x3) w(x4) m2_k EOS`` for the styles k that x1 allows.
        """
        symbols = [token - FIRST_SYMBOL for token in prompt[:-1]]
        known = all(0 <= x < VALUES for x in symbols)
        if len(symbols) != SYMBOLS or prompt[-1] != SEP or not known:
            raise Failure(
                f"a prompt is {SYMBOLS} symbols and the separator, like 'a2 a3 a2 a2 :' "
                f"(5 6 5 5 2), got ids {list(prompt)}"
            )
        a, b, c, d = (FIRST_WORD + x for x in symbols)
        return [
            [marker(0, k), a, b, marker(1, k), c, d, marker(2, k), EOS]
            for k in self.allowed[symbols[0]]
        ]

    def teacher_logp(self, prompt: Sequence[int], completion: Sequence[int]) -> float:
        """Log-probability of a completion under the smoothed teacher, in nats, always finite.

        ``p(y | x) = 1/3 sum_k prod_t [(1 - eps) 1(y_t = y_kt) + eps / V]`` with eps =
        ``smoothing``. The product runs over the tokens that are given. Shorter than 8, that is the
        probability that the teacher's text begins so: over all answers that stop at their first
        end of text, or else at 8 tokens, the sum is exactly 1. Past the eighth, every token costs
        a floor of ``ln(eps / V)``, the price of one wrong token.
        """
        miss = math.log(self.smoothing / len(VOCABULARY))
        hit = math.log(1 - self.smoothing + self.smoothing / len(VOCABULARY))
        scores = []
        for answer in self.valid(prompt):
            same = sum(a == b for a, b in zip(completion, answer, strict=False))
            scores.append(same * hit + (len(completion) - same) * miss)
        top = max(scores)
        return top + math.log(sum(math.exp(s - top) for s in scores) / len(scores))

    def splits(self, seed: int, *, one_style: bool = False) -> dict[str, list[Row]]:
        """Rows of prompt and one stored teacher answer: 2048 train, 256 validation, 256 test.

        The prompts are shuffled by ``1000 + seed``; one stream draws the order and then an answer
        for each. Train is the first half, test the last sixteenth, validation the one before it.
        ``one_style``: train and validation keep only the rows whose answer has the smallest style
        that its prompt allows (about a third), the cheap cure for a student that mixes styles.
        """
        stream = torch.Generator().manual_seed(1000 + seed)
        order = torch.randperm(_COUNT, generator=stream).tolist()[: self.prompts]
        picks = torch.randint(ALLOWED, (_COUNT,), generator=stream).tolist()
        half, part = len(order) // 2, len(order) // 16
        places = {"train": order[:half], "validation": order[-2 * part : -part]}
        if one_style:
            places = {name: [i for i in kept if not picks[i]] for name, kept in places.items()}
        places["test"] = order[-part:]
        prompts = list(itertools.product(range(VALUES), repeat=SYMBOLS))
        return {
            name: [self._row(prompts[i], picks[i]) for i in kept] for name, kept in places.items()
        }

    def _row(self, symbols: Sequence[int], pick: int) -> Row:
        prompt = [*(FIRST_SYMBOL + x for x in symbols), SEP]
        answer = self.valid(prompt)[pick]
        return {"prompt": decode(prompt), "completion": decode(answer[:-1])}
