"""Pairs of answers that begin alike, told from where they part."""

from __future__ import annotations

from collections.abc import Sequence

from stillroom.data.rows import Row
from stillroom.failures import Failure


def shared_prefix(rows: Sequence[Row], step: str = "\n") -> list[Row]:
    """Pairs told from where their answers part: what both begin with becomes part of the prompt.

    The beginning ends with a ``step``: it is cut back to the last one within it, so that no step
    is torn, and so that both answers still say something. Rows without such a beginning stay.

    Args:
        rows: pairs of plain prompts.
        step: what ends a step.

    Raises:
        Failure: a row is no pair, or has messages, whose turn cannot begin with half an answer.

    >>> row = {"prompt": "2+2+2=", "completion": "2+2=4;6", "rejected": "2+2=4;7"}
    >>> (made,) = shared_prefix([row], step=";")
    >>> made["prompt"], made["completion"], made["rejected"]
    ('2+2+2=2+2=4;', '6', '7')
    """
    if not step:
        raise Failure("shared_prefix: step must be a text that ends steps, such as a new line")
    return [_parted(row, step, f"row {i}") for i, row in enumerate(rows)]


def _parted(row: Row, step: str, where: str) -> Row:
    texts = [row.get(name) for name in ("prompt", "completion", "rejected")]
    if "messages" in row or not all(isinstance(text, str) for text in texts):
        raise Failure(
            f"{where}: a shared beginning takes texts in 'prompt', 'completion' and 'rejected', "
            f"got columns {sorted(row)}"
        )
    prompt, *answers = (str(text) for text in texts)
    same = next((i for i, (a, b) in enumerate(zip(*answers, strict=False)) if a != b), None)
    same = min(map(len, answers)) if same is None else same
    end = answers[0].rfind(step, 0, min(same, min(map(len, answers)) - 1)) + len(step)
    if end < len(step) or not all(text[end:] for text in answers):
        return row
    told = row.get("provenance") or {}
    pair = {**(told.get("pair") or {}), "shared": answers[0][:end]}
    chosen, rejected = (text[end:] for text in answers)
    return {
        **row,
        "prompt": prompt + answers[0][:end],
        "completion": chosen,
        "rejected": rejected,
        "provenance": {**told, "pair": pair},
    }
