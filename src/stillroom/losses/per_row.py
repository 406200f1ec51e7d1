"""From hidden states through the LM head to one loss a row, without logits of all rows at once."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from stillroom.core import Failure, Head, Objective, Signals
from stillroom.losses._one_pass import Task, checked, measured, scored


def per_row(
    objective: Objective,
    student: Signals,
    teacher: Signals | None,
    labels: Tensor | None,
    *,
    foreign: bool = False,
    **row_inputs: Tensor | Signals | None,
) -> Tensor:
    """One value of ``objective`` a row: a chunked LM-head loss that never holds [N, V] logits.

    ``objective(student_logits, teacher_logits, labels, **row_inputs)``: [n, V], [n, V], [n],
    [n, ...] -> [n] (to measure: [n, k], at most ``MOST_VALUES`` numbers side by side). It must be
    row-local and draw no random numbers, since it is called on a few rows at a time, and may be
    called again. It may hold several terms; weights, advantages and other factors go in as row
    inputs ([N, ...] or None), never on top. What further networks said is a row input, too
    (``Signals`` with logits, or hidden and head): the objective gets its logits, [n, V], and none
    of all rows are made.

    ``student`` has ``logits`` [N, C] (classes: one call), or ``hidden`` [N, d] and ``head``
    (text). ``teacher`` has one or the other, or ``sparse``, which the objective gets in place of
    its logits; where it is None or has none of these, its logits are None.
    Gradients reach hidden states, heads, row inputs, and whatever the objective holds.

    On text value and gradients are made in one pass over the heads, four matrix products and none
    twice (three where the head is frozen, two where nothing learns): logits are computed in
    float32 or better, a block of rows at a time, and the objective's gradient takes their place.
    The backward pass scales what is there by the gradient that arrives, if that is the same for
    all rows, as it is under a mean; else the head's gradient is made anew. Where the objective
    holds tensors that learn, or the teacher does, blocks are computed again in the backward pass
    (gradient checkpointing, arXiv 1604.06174); so is all where a second derivative is asked for.

    Where an LM head and the other side differ in V, the first columns that both have are used:
    meant for heads padded beyond one vocabulary, whose further columns are no tokens. That the
    vocabularies are the same is checked where tokenizers are compared, not here. ``foreign`` says
    that they are not, and the objective sees all columns of both.

    ``labels`` are token ids. Where the heads hold some tokens of the vocabulary alone, both must
    hold the same, and the objective sees logits of these and labels counted among them.

    Raises ``Failure`` where the student gives nothing to score, where teacher, labels or a row
    input have other than N rows, where a label has no logit or the two sides have logits of
    different tokens, or where the objective returns another shape.
    """
    (rows, head), (theirs, their_head) = _source(student), _source(teacher)
    inputs, heads = _inputs(row_inputs)
    if not isinstance(rows, Tensor):
        raise Failure(
            "per_row needs a student with logits, or with hidden and head; "
            f"this one has {sorted(student)}"
        )
    _check_lengths(len(rows), {"the teacher": theirs, "labels": labels, **inputs})
    for other in ([] if theirs is None else [their_head]) + list(heads.values()):
        _check_tokens(head, other)
    if head is None:
        targets = _logits(theirs, their_head)
        said = {name: _logits(inputs[name], other) for name, other in heads.items()}
        return checked(objective(rows, targets, labels, **{**inputs, **said}), len(rows))
    labels = labels if labels is None else head.columns(labels)
    task = Task(objective, rows, head, theirs, their_head, labels, inputs, foreign, heads)
    if not torch.is_grad_enabled():
        return measured(task)
    value = None
    others = [(theirs, their_head), *((inputs[name], other) for name, other in heads.items())]
    if _learns(rows, head) and not any(_learns(*other) for other in others):
        value = scored(task, partial(_recomputed, task))
    return _recomputed(task) if value is None else value


def _recomputed(task: Task) -> Tensor:
    """Blocks of rows with their graph, each computed once more in the backward pass."""

    def block(rows: Tensor, theirs: Any, *others: Tensor | None) -> Tensor:
        targets = theirs if task.their_head is None else task.their_head.logits(theirs)
        targets = task.narrowed(targets)
        labels, *inputs = others
        said = [
            _logits(given, task.heads[name])[:, : task.width] if name in task.heads else given
            for name, given in zip(task.inputs, inputs, strict=True)
        ]
        return task.value(task.head.logits(rows)[:, : task.width], targets, labels, *said)

    # split, not slices: each slice would send back a gradient of all N rows
    size = task.block_size
    absent = [None] * len(task.rows.split(size))
    cells: tuple[Any, ...] = (task.rows, task.theirs, task.labels, *task.inputs.values())
    columns = [absent if cell is None else cell.split(size) for cell in cells]
    values = [
        checkpoint(block, *row, use_reentrant=False, preserve_rng_state=False)
        for row in zip(*columns, strict=True)
    ]
    return torch.cat(cast(list[Tensor], values))


def _inputs(
    given: Mapping[str, Tensor | Signals | None],
) -> tuple[dict[str, Tensor | None], dict[str, Head | None]]:
    """Row inputs as tensors, and the heads of those that further networks said."""
    inputs: dict[str, Tensor | None] = {}
    heads: dict[str, Head | None] = {}
    for name, value in given.items():
        if isinstance(value, Signals):
            rows, heads[name] = _source(value)
            if not isinstance(rows, Tensor):
                raise Failure(
                    f"per_row needs logits, or hidden and head, of {name}; it has {sorted(value)}"
                )
            inputs[name] = rows
        else:
            inputs[name] = value
    return inputs, heads


def _logits(rows: Any, head: Head | None) -> Any:
    return rows if head is None else head.logits(rows)


def _source(signals: Signals | None) -> tuple[Any, Head | None]:
    """Something a row, and the head that makes logits of it; None where it is logits already."""
    if signals is not None and "logits" in signals:
        return signals["logits"], None
    if signals is not None and "hidden" in signals:
        return signals["hidden"], signals.head
    return None if signals is None else signals.get("sparse"), None


def _learns(rows: Any, head: Head | None) -> bool:
    parts = [rows, *((head.weight, head.bias) if head else ())]
    return any(part is not None and part.requires_grad for part in parts)


def _check_lengths(rows: int, given: Mapping[str, Any]) -> None:
    for name, value in given.items():
        if value is not None and (not value.shape or value.shape[0] != rows):
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
