"""Multiple choice: right answers on a benchmark, its canaries, and items that nobody saw."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from stillroom.core import Batch, Failure, Signals
from stillroom.data.quiz import Quiz
from stillroom.evaluation.suite import View
from stillroom.losses.per_row import per_row

SPLIT = "test"
GIVEN = True
"""Reads scores of the options, and samples nothing; nothing of a benchmark is ever validated on."""
COLUMNS = {
    "benchmark_accuracy": ("right on the benchmark", None),
    "fresh_accuracy": ("right on fresh items of the same law", None),
    "canary_accuracy": ("right on the benchmark's canaries, whose letters are random", None),
    "canaries": ("canaries", None),
    "options": ("options of an item", None),
}


def measure(view: View) -> dict[str, float]:
    """Shares of items whose likeliest option is the right one.

    ``argmax over the option letters c of log p(c | question)``, at the answer's first token; what
    the model gives other tokens does not count.

    Raises:
        Failure: the data are not of the world ``quiz``.
    """
    return _told(view, view.student)


def teacher(view: View) -> dict[str, float]:
    """The same of a live teacher; nothing for one that gives no logits."""
    return {} if view.live is None else _told(view, view.live)


def _told(view: View, speaker: Callable[[Batch], Signals]) -> dict[str, float]:
    world, data = view.world, view.data
    if not isinstance(world, Quiz) or view.renderer is None:
        raise Failure("eval.metrics: quiz reads the benchmark of the world quiz alone")
    letters = view.renderer.tokenizer.convert_tokens_to_ids(list(world.letters))
    right = torch.cat([_right(speaker(b), b, letters) for b in view.batches()]).tolist()
    told: Any = data
    by_question = dict(zip((e.prompt for e in told.examples), right, strict=True))

    def share(rows: list[dict[str, str]]) -> float:
        found = [by_question[row["prompt"]] for row in rows if row["prompt"] in by_question]
        return sum(found) / len(found) if found else float("nan")

    canaries = [r for r in world.benchmark[: world.canaries] if r["prompt"] in by_question]
    return {
        "benchmark_accuracy": share(world.benchmark),
        "fresh_accuracy": share(world.fresh),
        "canary_accuracy": share(canaries),
        "canaries": len(canaries),
        "options": world.options,
    }


def _right(said: Signals, batch: Batch, letters: list[int]) -> Tensor:
    """[B] 1 where the likeliest letter is that of the answer, else 0."""

    def likeliest(student: Tensor, _: object, labels: Tensor) -> Tensor:
        ids = torch.tensor(letters, device=student.device)
        return (ids[student[:, ids].argmax(-1)] == labels).to(student.dtype)

    hit, owner = per_row(likeliest, said, None, batch.labels), batch.owner
    first = torch.cat([owner.new_ones(1, dtype=torch.bool), owner[1:] != owner[:-1]])
    return hit[first].double().cpu()
