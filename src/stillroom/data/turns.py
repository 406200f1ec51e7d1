"""Conversations: what is asked, what the assistant says, and which tokens of a text that is."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from stillroom.data.rows import Row
from stillroom.failures import Failure

if TYPE_CHECKING:
    from stillroom.data.text import Renderer

Span = tuple[int, int]
"""First and past-the-last place of tokens."""


def question(row: Row, where: str = "row") -> str | list[Row]:
    """What a teacher is asked: the prompt, or the messages without the last turn's answer.

    Raises:
        Failure: there is neither, or nothing comes before the answer.
    """
    if "messages" not in row:
        if not isinstance(prompt := row.get("prompt"), str):
            raise Failure(
                f"{where}: expected a text in 'prompt' (or a list in 'messages'), got columns "
                f"{sorted(row)}; data.columns makes them from others"
            )
        return prompt
    turns = row["messages"]
    if not isinstance(turns, list) or not all(isinstance(turn, Mapping) for turn in turns):
        raise Failure(f"{where}: messages must be a list of turns with role and content")
    asked = turns[:-1] if turns and turns[-1].get("role") == "assistant" else turns
    if not asked:
        raise Failure(f"{where}: messages hold no turn that asks for an answer")
    return asked


def answer(messages: Any, where: str) -> str:
    """What the assistant says in the last turn; empty where that is calls of tools alone.

    Raises:
        Failure: the last turn is not the assistant's, or says nothing.
    """
    turns = isinstance(messages, list) and messages and all(isinstance(m, dict) for m in messages)
    if not turns or messages[-1].get("role") != "assistant":
        raise Failure(f"{where}: messages must be a list whose last turn is the assistant's")
    return _said(messages[-1], f"{where}: the last answer")


def _said(turn: Row, where: str) -> str:
    content = turn.get("content")
    if turn.get("tool_calls") and not content:
        return ""
    if not isinstance(content, str):
        raise Failure(f"{where} must have a text as content, got {type(content).__name__}")
    if not content:
        raise Failure(f"{where} is empty, so no token is supervised")
    return content


def earlier(renderer: Renderer, messages: Sequence[Row], text: str, where: str) -> Iterator[Span]:
    """Which tokens of a rendered conversation are the assistant's, a span a turn.

    From where the prompt for a turn ends (the rendered turns before it, with what asks for an
    answer), up to the last stop id of what the template adds for it, or to the end of that. A token
    that begins before, merged from what asks and what is said, is left out; a space before, which
    some tokenizers leave out of a token's place, cannot be told.

    Args:
        renderer: has the tokenizer and the stop ids.
        messages: the turns.
        text: the same, rendered.
        where: the row.

    Raises:
        Failure: a turn says nothing, has nothing before it, or is written otherwise once more
            turns follow.
    """
    made = renderer.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    starts, ends = zip(*made.offset_mapping, strict=True)
    for k, turn in enumerate(messages):
        if turn.get("role") != "assistant":
            continue
        _said(turn, f"{where}: turn {k}")
        asked: Any = question({"messages": messages[: k + 1]}, f"{where}: turn {k}")
        before = renderer.rendered(asked, where, asks=True)
        after = renderer.rendered(messages[: k + 1], where)
        if not after.startswith(before) or not text.startswith(after):
            raise Failure(
                f"{where}: the chat template writes turn {k} otherwise once more turns follow, so "
                "its tokens cannot be told; set data.train_on to last, or give the tokenizer a "
                "chat template that keeps earlier turns as they were"
            )
        # a space at the edge of a token may be left out of its offsets: both edges are asked;
        # and nothing tells the first token of all
        first = max(1, bisect_left(starts, len(before)), bisect_right(ends, len(before)))
        past = bisect_left(starts, len(after))
        stops = [i for i in range(first, past) if made.input_ids[i] in renderer.stop_ids]
        yield first, stops[-1] + 1 if stops else past
