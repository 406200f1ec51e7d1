"""Tiny fast tokenizers of each kind, made here: byte-level BPE, SentencePiece's ways, WordPiece."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

TEXTS = [
    "the cat sat on the mat and the hat",
    "Hello world, hello there; where is the weather?",
    "naïve café 你好 你好 世界 😀 😀",
]
SPECIAL = ["<s>", "</s>"]
GEMMA = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]


def byte_level(size: int, texts: Sequence[str] = TEXTS, **told: Any) -> PreTrainedTokenizerFast:
    """GPT-2's way; ``size`` from 258 on."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(texts, _bpe(size, SPECIAL, initial_alphabet=alphabet))
    return wrapped(made, **told)


def byte_fallback(size: int = 60, *, space_first: bool = True) -> PreTrainedTokenizerFast:
    """Llama's way (a space before each text), or Gemma's; the bytes stand first."""
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    trained.train_from_iterator([t for t in TEXTS if t.isascii()], _bpe(size, []))
    told = json.loads(trained.to_str())["model"]
    names = ["<unk>", *SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256)), *told["vocab"]]
    model: Any = models.BPE(
        vocab={name: i for i, name in enumerate(names)},
        merges=[tuple(pair) for pair in told["merges"]],
        unk_token="<unk>",
        fuse_unk=True,
        byte_fallback=True,
    )
    made = Tokenizer(model)
    rule = normalizers.Replace(" ", "▁")
    before = normalizers.Sequence([normalizers.Prepend("▁"), rule])
    made.normalizer = before if space_first else rule
    made.decoder = decoders.Sequence([*GEMMA, decoders.Strip(" ", 1, 0)] if space_first else GEMMA)
    return wrapped(made, unk_token="<unk>")


def unigram() -> PreTrainedTokenizerFast:
    """T5's way: no bytes to fall back on."""
    made = Tokenizer(models.Unigram())
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.decoder = decoders.Metaspace()
    trainer: Any = trainers.UnigramTrainer
    special = ["<unk>", *SPECIAL]
    made.train_from_iterator(
        TEXTS,
        trainer(vocab_size=80, special_tokens=special, unk_token="<unk>", show_progress=False),
    )
    return wrapped(made, unk_token="<unk>")


def word_piece() -> PreTrainedTokenizerFast:
    """BERT's way: lower case, and spaces are lost."""
    made = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer()
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece()
    trainer: Any = trainers.WordPieceTrainer
    special = ["[UNK]", *SPECIAL]
    made.train_from_iterator(
        TEXTS, trainer(vocab_size=90, special_tokens=special, show_progress=False)
    )
    return wrapped(made, unk_token="[UNK]")


def merged(*merges: str, turned: bool = False, **told: Any) -> PreTrainedTokenizerFast:
    """A byte-level one with merges of its own, as ``"c a"``; ``turned``: other ids, same words."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [*SPECIAL, *letters, *(merge.replace(" ", "") for merge in merges)]
    ids = reversed(range(len(words))) if turned else range(len(words))
    model: Any = models.BPE(
        vocab=dict(zip(words, ids, strict=True)),
        merges=[tuple(merge.split()) for merge in merges],
    )
    made = Tokenizer(model)
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    return wrapped(made, **told)


def wrapped(made: Tokenizer, **told: Any) -> PreTrainedTokenizerFast:
    names = {"bos_token": "<s>", "eos_token": "</s>", **told}
    return PreTrainedTokenizerFast(tokenizer_object=made, **names)


def _bpe(size: int, special: list[str], **told: Any) -> Any:
    trainer: Any = trainers.BpeTrainer
    return trainer(vocab_size=size, special_tokens=special, show_progress=False, **told)
