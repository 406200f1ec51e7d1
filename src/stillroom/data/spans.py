"""Texts as bytes of their tokens: where each token ends, and what does not come back."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, takewhile
from typing import Any

from stillroom.data.spelling import Words, bytes_of, steps_of


def ends(words: Words, ids: Sequence[int], text: str) -> tuple[bytes, list[int]]:
    """The bytes that ids stand for, and where each ends in them (byte offsets, spans).

    A token that is no text, or that a padded head has beyond the vocabulary, ends where the one
    before does. The space that some tokenizers put before ``text`` is left out of both.
    """
    parts = [words[i] or b"" if i < len(words) else b"" for i in ids]
    joined = b"".join(parts)
    led = not text.startswith(" ") or joined[1:] == text.encode("utf-8", "replace")
    more = int(joined.startswith(b" ") and led)
    return joined[more:], [max(0, end - more) for end in accumulate(map(len, parts))]


def first_words(tokenizer: Any, words: Words) -> set[bytes]:
    """Bytes that one token can write where a text begins.

    All that tokens stand for; where the tokenizer puts a space of its own before a text, also the
    rest of those that begin with one.
    """
    known = {bytes(word) for word in words if word is not None}
    first = (words[i] or b"" for i in tokenizer("a", add_special_tokens=False).input_ids)
    if not b"".join(first).startswith(b" "):
        return known
    return known | {word[1:] for word in known if word.startswith(b" ")}


def lost(tokenizer: Any, words: Words, ids: Sequence[int], text: str) -> str | None:
    """How a text differs from what its ids stand for (round trip), None where it does not.

    Says whether that is what the tokenizer's normalizer makes of the text, and shows both from
    shortly before the first difference.
    """
    mine, theirs = text.encode(), ends(words, ids, text)[0]
    if mine == theirs:
        return None
    normalizer = tokenizer.backend_tokenizer.normalizer
    normal = normalizer.normalize_str(text) if normalizer else text
    spaces = [step for step in steps_of(tokenizer) if step["type"] in ("Replace", "Metaspace")]
    by_rule = bytes_of(normal, spaces).removeprefix(b" ") == theirs.removeprefix(b" ")
    why = "its normalizer changes" if by_rule else "it does not give back"
    if special := sorted({i for i in ids if words[i] is None}):
        why = f"it takes parts for {' '.join(tokenizer.convert_ids_to_tokens(special))} in"
    back = theirs.decode(errors="replace")
    alike = takewhile(lambda pair: pair[0] == pair[1], zip(text, back, strict=False))
    start = max(0, sum(1 for _ in alike) - 12)
    shown = (repr(part[start : start + 30]) for part in (text, back))
    return f"{why} {', which comes back as '.join(shown)}"
