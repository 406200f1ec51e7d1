"""Several teachers of one student, each for its own examples."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from stillroom.catalogue import closure
from stillroom.core import Batch, Failure, Signals, Sparse, Teacher

GIVEN = ("logits", "topk", "text")
"""What can be put together of several teachers, the most first."""


class Routed:
    """Asks for each example the teacher that its row names (multi-teacher distillation, routing).

    ``route`` [B] of a batch is the place of that teacher among ``teachers``. It gives what all of
    them give: ``logits`` of each row, made by each teacher's own head, or as many of the largest
    (``topk:K``), or ``text``.

    Raises:
        Failure: the teachers have nothing in common.
    """

    def __init__(self, teachers: Mapping[str, Teacher]) -> None:
        self.teachers = dict(teachers)
        given = [frozenset(closure(set(t.signals))) for t in teachers.values()]
        common = frozenset.intersection(*given)
        if "logits" not in common and any("logits" in signals for signals in given):
            common -= {"topk"}  # how many of them, the others would have to be told
        self.kind = next((kind for kind in GIVEN if kind in common), None)
        if self.kind is None:
            told = "; ".join(f"{name}: {sorted(t.signals)}" for name, t in teachers.items())
            raise Failure(
                f"the teachers give nothing that fits together ({told}); keep the same "
                "'signals: topk:K' of each"
            )
        self.signals = closure({self.kind}) | (common & {"text"})
        self.fresh = all(t.fresh for t in teachers.values())

    def __call__(self, batch: Batch, *, grad: bool = False) -> Signals:
        if "route" not in batch:
            raise Failure("this batch does not say which teacher each example has (data.route)")
        said: list[Any] = []
        rows: list[Tensor] = []
        for place, teacher in enumerate(self.teachers.values()):
            own = (batch["route"] == place).nonzero().squeeze(1)
            if len(own):
                said.append(self._said(teacher(batch.only(own), grad=grad)))
                rows.append(torch.isin(batch.owner, own).nonzero().squeeze(1))
        if self.kind == "text":
            return Signals()
        order = torch.cat(rows).argsort()
        if self.kind == "logits":
            width = min(part.shape[-1] for part in said)  # padded heads have more
            return Signals(logits=torch.cat([part[:, :width] for part in said])[order])
        return Signals(sparse=_joined(said, order))

    def _said(self, signals: Signals) -> Any:
        if self.kind == "topk":
            return signals["sparse"]
        if self.kind == "text" or "logits" in signals:
            return signals.get("logits")
        return signals["head"].logits(signals["hidden"])


def each(teachers: Mapping[str, Teacher]) -> Iterator[tuple[str, Teacher]]:
    """Every teacher by name, those behind one that routes to them included, and not that one."""
    for name, teacher in teachers.items():
        if isinstance(teacher, Routed):
            yield from each(teacher.teachers)
        else:
            yield name, teacher


def _joined(parts: list[Sparse], order: Tensor) -> Sparse:
    sizes = {part["ids"].shape[-1] for part in parts}
    if len(sizes) > 1:
        raise Failure(f"the teachers give {sorted(sizes)} tokens a place: keep the same topk:K")
    vocab = min(part["vocab"] for part in parts)
    same = [part.below(vocab) for part in parts]
    names = ("ids", "logp", "tail")
    return Sparse({k: torch.cat([p[k] for p in same])[order] for k in names}, vocab=vocab)
