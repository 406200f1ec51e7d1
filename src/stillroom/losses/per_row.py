"""From hidden states through the LM head to one loss a row, without logits of all rows at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import cast

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from stillroom.core import Failure, Head, Objective, Signals

BUDGET = 2**28
"""Bytes that one block of rows may take as float32 logits of both sides, temporaries included."""
COPIES = 4
"""Times that size is taken at once, as measured for a KL divergence and its gradient."""
MOST_VALUES = 8
"""Numbers a row that an objective may return side by side, where several are measured at once."""
MOST_ROWS = 256
"""Rows of a block where the budget allows more: matrix products gain nothing beyond."""


def per_row(
    objective: Objective,
    student: Signals,
    teacher: Signals | None,
    labels: Tensor | None,
    **row_inputs: Tensor | None,
) -> Tensor:
    """One value of ``objective`` a row: a chunked LM-head loss that never holds [N, V] logits.

    ``objective(student_logits, teacher_logits, labels, **row_inputs)``: [n, V], [n, V], [n],
    [n, ...] -> [n] (to measure: [n, k], at most ``MOST_VALUES`` numbers side by side). It must be
    row-local and draw no random numbers, since it runs on blocks of rows and again in the
    backward pass. It may hold several terms; weights, advantages and other factors go in as row
    inputs ([N, ...] or None), never on top.

    ``student`` has ``logits`` [N, C] (classes: one call), or ``hidden`` [N, d] and ``head``
    (text): then each block (at most ``MOST_ROWS`` rows and ``BUDGET`` bytes) is turned into
    logits, and once more in the backward pass (gradient checkpointing, arXiv 1604.06174).
    ``teacher`` has one or the other; where it is None or has neither, its logits are None.
    Gradients reach hidden states, heads, row inputs, and whatever the objective holds.

    Where an LM head and the other side differ in V, the first columns that both have are used:
    meant for heads padded beyond one vocabulary, whose further columns are no tokens. That the
    vocabularies are the same is checked where tokenizers are compared, not here.

    ``labels`` are token ids. Where the heads hold some tokens of the vocabulary alone, both must
    hold the same, and the objective sees logits of these and labels counted among them.

    Raises ``Failure`` where the student gives nothing to score, where teacher, labels or a row
    input have other than N rows, where a label has no logit or the two sides have logits of
    different tokens, or where the objective returns another shape.
    """
    own, (theirs, their_head) = _source(student), _source(teacher)
    rows, head = own
    if rows is None:
        raise Failure(
            "per_row needs a student with logits, or with hidden and head; "
            f"this one has {sorted(student)}"
        )
    _check_lengths(len(rows), {"the teacher": theirs, "labels": labels, **row_inputs})
    if theirs is not None:
        _check_tokens(head, their_head)
    if head is not None and labels is not None:
        labels = head.columns(labels)

    def block(
        rows: Tensor, theirs: Tensor | None, labels: Tensor | None, *inputs: Tensor | None
    ) -> Tensor:
        logits, targets = _logits(rows, head), None
        if theirs is not None:
            targets = _logits(theirs, their_head)
            if head is not None:
                logits, targets = _common(logits, targets)
        named = dict(zip(row_inputs, inputs, strict=True))
        return _checked(objective(logits, targets, labels, **named), len(rows))

    given = (rows, theirs, labels, *row_inputs.values())
    if head is None:
        return block(*given)
    size = _block_size(_width(rows, head), _width(theirs, their_head))
    # split, not slices: each slice would send back a gradient of all N rows
    absent = [None] * len(rows.split(size))
    columns = [absent if value is None else value.split(size) for value in given]
    return torch.cat([_recomputed(block, *cells) for cells in zip(*columns, strict=True)])


def _recomputed(block: Callable[..., Tensor], *cells: Tensor | None) -> Tensor:
    """``block(*cells)``, called anew in the backward pass; without gradient, merely called."""
    value = checkpoint(block, *cells, use_reentrant=False, preserve_rng_state=False)
    return cast(Tensor, value)


def _source(signals: Signals | None) -> tuple[Tensor | None, Head | None]:
    """Something a row, and the head that makes logits of it; None where it is logits already."""
    if signals is not None and "logits" in signals:
        return signals["logits"], None
    if signals is not None and "hidden" in signals:
        return signals["hidden"], signals.head
    return None, None


def _logits(rows: Tensor, head: Head | None) -> Tensor:
    return rows if head is None else head.logits(rows)


def _width(rows: Tensor | None, head: Head | None) -> int:
    if head is not None:
        return len(head.weight)
    return 0 if rows is None else rows.shape[-1]


def _block_size(*widths: int) -> int:
    return max(1, min(MOST_ROWS, BUDGET // (4 * COPIES * sum(widths))))


def _common(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    width = min(student.shape[-1], teacher.shape[-1])
    return student[..., :width], teacher[..., :width]


def _check_lengths(rows: int, given: Mapping[str, Tensor | None]) -> None:
    for name, value in given.items():
        if value is not None and (value.dim() == 0 or len(value) != rows):
            raise Failure(
                f"per_row has {rows} student rows, but {name} of shape {list(value.shape)}; "
                "give one entry a row (constants belong into the objective)"
            )


def _check_tokens(student: Head | None, teacher: Head | None) -> None:
    mine, theirs = (None if head is None else head.ids for head in (student, teacher))
    if mine is theirs or (mine is not None and theirs is not None and torch.equal(mine, theirs)):
        return
    own, other = ("all tokens" if ids is None else f"{len(ids)} tokens" for ids in (mine, theirs))
    raise Failure(
        f"the student scores {own} and the teacher {other}, not the same ones; narrow both to the "
        "same view of the vocabulary, or neither"
    )


def _checked(value: Tensor, rows: int) -> Tensor:
    if value.shape[:1] != (rows,) or value.dim() > 2 or value.shape[1:2] > (MOST_VALUES,):
        raise Failure(
            f"the objective returned shape {list(value.shape)} for {rows} rows; return one value "
            "a row (or a few side by side), neither reduced nor one a token of the vocabulary"
        )
    return value
