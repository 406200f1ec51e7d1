"""What a tokenizer adds by itself: BOS and EOS, and what its chat template writes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

GREETING = [{"role": "user", "content": "Hello"}]
"""The conversation that both chat templates write."""
ROLES = {"BOS": "bos_token_id", "EOS": "eos_token_id", "padding": "pad_token_id"}


def habits(a: Any, b: Any) -> dict[str, tuple[str, str]]:
    """What tokenizers add by themselves: BOS and EOS, special tokens, the chat template's words."""
    told = [_habits(tokenizer) for tokenizer in (a, b)]
    return {what: (told[0][what], told[1][what]) for what in told[0]}


def _habits(tokenizer: Any) -> dict[str, str]:
    bare = tokenizer("a", add_special_tokens=False).input_ids
    full = tokenizer("a").input_ids
    first = next((k for k in range(len(full)) if full[k : k + len(bare)] == bare), 0)
    named = {what: [getattr(tokenizer, role)] for what, role in ROLES.items()}
    added = {"added before a text": full[:first], "added after a text": full[first + len(bare) :]}
    return {
        **{what: _called(tokenizer, ids) for what, ids in {**named, **added}.items()},
        "a user's 'Hello', rendered": _rendered(tokenizer),
    }


def _called(tokenizer: Any, ids: Sequence[int | None]) -> str:
    told = (f"{tokenizer.convert_ids_to_tokens(i)} ({i})" for i in ids if i is not None)
    return " ".join(told) or "none"


def _rendered(tokenizer: Any) -> str:
    if tokenizer.chat_template is None:
        return "no chat template"
    try:
        render = tokenizer.apply_chat_template
        return render(GREETING, tokenize=False, add_generation_prompt=True)
    except Exception as error:  # templates refuse what they were not made for in many ways
        return f"refused: {error}"
