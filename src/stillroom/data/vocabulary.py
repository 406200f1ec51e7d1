"""Tokenizers of made-up worlds: a word a token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PAD, EOS = 0, 1
SPECIAL = 2
"""Tokens that are no words; word ``i`` has the id ``i + SPECIAL``."""


def of_words(words: Sequence[str]) -> PreTrainedTokenizerFast:
    """Words parted by spaces, after ``<pad>`` and ``<eos>``; an unknown one is padding."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {"<pad>": PAD, "<eos>": EOS}
    vocabulary |= {word: i + SPECIAL for i, word in enumerate(words)}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))  # a word that was cut
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.decoder = decoders.WordPiece(cleanup=False)
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        pad_token="<pad>",
        eos_token="<eos>",
        clean_up_tokenization_spaces=False,
    )
