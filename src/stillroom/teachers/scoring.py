"""A network, or a server, scores given sequences once, for a store."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from stillroom.core import Batch, Failure, Signals, Sparse
from stillroom.data.text import TextData
from stillroom.models.heads import mode
from stillroom.teachers.stored import Stored, head_arrays, keys_of

Tick = Callable[[int], None]
"""Called with how many sequences more are done."""


def missing(stored: Stored, data: Sequence[TextData]) -> list[tuple[TextData, int]]:
    """Sequences of data sets that the store does not hold, each once."""
    found: dict[bytes, tuple[TextData, int]] = {}
    for texts in data:
        for index in range(len(texts)):
            (key,) = keys_of(texts.batch([index]))
            if key not in stored.arrays:
                found.setdefault(key, (texts, index))
    return list(found.values())


def score(
    network: Any,
    stored: Stored,
    wanted: Sequence[tuple[TextData, int]],
    *,
    budget: int,
    tick: Tick = lambda count: None,
) -> None:
    """Writes what ``network`` says of sequences into the store; a kill loses one shard at most.

    Args:
        network: a language model.
        stored: where to.
        wanted: data sets and indices.
        budget: tokens side by side, padding included.
        tick: see ``Tick``.

    Raises:
        Failure: states are to be kept, and the network's head is not known; another process writes
            the same.
    """
    if stored.kept.kind == "hidden" and not network.head_known:
        kind = type(network.model).__name__
        raise Failure(
            f"signals: the head of {kind} is not known, so its states say nothing; keep logits, "
            "topk:K or sampled:N"
        )
    device = next(network.parameters()).device
    with torch.no_grad(), mode(network, training=False):
        write(lambda batch: network(batch.to(device)), stored, wanted, budget=budget, tick=tick)


def write(
    say: Callable[[Batch], Signals],
    stored: Stored,
    wanted: Sequence[tuple[TextData, int]],
    *,
    budget: int,
    tick: Tick = lambda count: None,
) -> None:
    """As ``score``, for anything that says signals of a batch."""
    with stored.arrays.writing() as writer:
        for batch in _batches(wanted, budget):
            said = say(batch)
            writer.share(_shared(stored, said))
            counts = batch.owner.bincount(minlength=batch.size).tolist()
            start = 0
            for key, count in zip(keys_of(batch), counts, strict=True):
                part = Signals({k: _rows(v, start, count) for k, v in said.items()})
                writer.add(key, {k: v.cpu() for k, v in stored.kept.taken(part, key).items()})
                start += count
            tick(batch.size)


def _shared(stored: Stored, said: Signals) -> dict[str, torch.Tensor]:
    """What all sequences have in common: how many tokens there are, and the head of states."""
    if "hidden" in said:
        width = len(said.head.weight)
    else:
        width = said["sparse" if "sparse" in said else "logits"].shape[-1]
    head = head_arrays(said.head) if stored.kept.kind == "hidden" else {}
    return {"vocab": torch.tensor(width), **head}


def _rows(value: Any, start: int, count: int) -> Any:
    return value[start : start + count] if isinstance(value, torch.Tensor | Sparse) else value


def _batches(wanted: Sequence[tuple[TextData, int]], budget: int) -> Iterator[Batch]:
    """Sequences of like length side by side, the longest first: they need most memory."""
    sets = list({id(texts): texts for texts, _ in wanted}.values())
    for texts in sets:

        def length(index: int, texts: TextData = texts) -> int:
            example = texts.examples[index]
            return len(example.prompt_ids) + len(example.completion_ids)

        indices = sorted((i for own, i in wanted if own is texts), key=length, reverse=True)
        while indices:
            side = max(1, budget // length(indices[0]))
            yield texts.batch(indices[:side])
            indices = indices[side:]
