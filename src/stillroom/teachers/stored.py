"""A teacher whose scores of given sequences stand in a store; no network is in memory."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from stillroom.catalogue import closure
from stillroom.core import Batch, Failure, Head, Signals, Sparse
from stillroom.losses.sparse import draws, top_k
from stillroom.models.heads import View
from stillroom.rollouts.sampling import uniform
from stillroom.store.arrays import KEY, Arrays

TOLD = re.compile(r"(hidden|logits)|(topk|sampled):(\d+)")
MOST = 255
"""Draws at most: a count is one byte."""
BLOCK = 2**26
"""Logits that are held at once while scores are taken from them."""
PEAK = 4096.0
"""The largest number of a stored state: float16 then keeps what is 2^-26 of it as exactly."""


BY_ROW = {"hidden": "scale", "logits": "logits", "topk": "tail", "sampled": "different"}
"""An array with one entry a supervised row, by what is kept."""


@dataclass(frozen=True)
class Kept:
    """What is kept of a teacher's scores: of each supervised row, in bytes.

    ``logits``: 4 V, exact. ``hidden``: 2 d + 4, the state that the head reads, in float16 with one
    scale a row, and the head once. ``topk:K``: 6 K + 2, the largest log-probabilities and the rest
    as one number. ``sampled:N``: 5 for each of the tokens that came in N draws, and 1.
    """

    kind: str
    count: int = 0

    @classmethod
    def of(cls, told: str) -> Kept:
        """Raises Failure where ``told`` is none of the forms above."""
        found = TOLD.fullmatch(told)
        if found is None:
            raise Failure(f"signals: expected hidden, logits, topk:K or sampled:N, got {told!r}")
        kind, count = found[1] or found[2], int(found[3] or 0)
        if found[1] is None and not 1 <= count <= (MOST if kind == "sampled" else count):
            raise Failure(f"signals: {told!r} is out of range; draws are 1 to {MOST}, K at least 1")
        return cls(kind, count)

    def __str__(self) -> str:
        return f"{self.kind}:{self.count}" if self.count else self.kind

    def taken(self, said: Signals, key: bytes) -> dict[str, Tensor]:
        """Arrays to keep of what a teacher says of one sequence, which ``key`` names."""
        if "sparse" in said:
            return _largest(said.sparse)
        if self.kind == "hidden":
            states = said.hidden.float()
            scale = states.abs().amax(-1).clamp_min(torch.finfo(torch.float32).tiny) / PEAK
            return {"states": (states / scale.unsqueeze(-1)).half(), "scale": scale}
        rows, head = (said.hidden, said.head) if "hidden" in said else (said["logits"], None)
        width = rows.shape[-1] if head is None else len(head.weight)
        parts = []
        for start in range(0, len(rows), step := max(1, BLOCK // width)):
            part = rows[start : start + step]
            logits = (part if head is None else head.logits(part)).float()
            parts.append(self._of_logits(logits, start, key))
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def _of_logits(self, logits: Tensor, start: int, key: bytes) -> dict[str, Tensor]:
        if self.kind == "logits":
            return {"logits": logits}
        if self.kind == "topk":
            return _largest(top_k(logits, self.count))
        rows = torch.arange(start, start + len(logits)).unsqueeze(-1)
        numbers = uniform(int.from_bytes(key[:7], "big"), rows, torch.arange(self.count))
        told = draws(logits, numbers.to(logits.device))
        there = ~told.logp.isneginf()
        counts = (told.logp[there].exp() * self.count).round()
        return {
            "ids": told.ids[there].int(),
            "counts": counts.to(torch.uint8),
            "different": there.sum(-1).to(torch.uint8),
        }

    def said(self, arrays: Mapping[str, Tensor], vocab: int, head: Head | None) -> Signals:
        """What was kept, as signals."""
        if self.kind == "logits":
            return Signals(logits=arrays["logits"])
        if self.kind == "hidden":
            return Signals(hidden=arrays["states"] * arrays["scale"].unsqueeze(-1), head=head)
        if self.kind == "topk":
            logp, tail = arrays["logp"].float(), arrays["tail"].float()
            return Signals(
                sparse=Sparse(ids=arrays["ids"].long(), logp=logp, tail=tail, vocab=vocab)
            )
        different = arrays["different"].long()
        places = torch.arange(int(different.max()) if len(different) else 0)
        there = places < different.unsqueeze(-1)
        ids = torch.zeros(there.shape, dtype=torch.long)
        logp = torch.full(there.shape, -torch.inf)
        ids[there] = arrays["ids"].long()
        logp[there] = (arrays["counts"].float() / self.count).log()
        return Signals(sparse=Sparse(ids=ids, logp=logp, vocab=vocab))


class Stored:
    """Says of sequences what a network said of them once; of others it knows nothing.

    A sequence is found by its token ids and its supervised rows.

    Args:
        arrays: where it stands; their identity names the ``signal``.
    """

    fresh = False

    def __init__(self, arrays: Arrays) -> None:
        self.arrays = arrays
        self.kept = Kept.of(arrays.identity["signal"])
        self.signals = closure({self.kept.kind, "text"})  # which stands in the data
        self._shared: dict[str, Tensor] = {}
        self._whole: Head | None = None
        self._views: tuple[View, View] | None = None

    @property
    def rows(self) -> int:
        """Tokens that something is kept of."""
        return self.arrays.length(BY_ROW[self.kept.kind])

    def __call__(self, batch: Batch, *, grad: bool = False) -> Signals:
        keys = keys_of(batch)
        if lost := [
            int(i) for i, key in zip(batch.id, keys, strict=True) if key not in self.arrays
        ]:
            raise Failure(
                f"{len(lost)} of {len(keys)} sequences are not in the store {self.arrays.folder}, "
                f"such as that with id {lost[0]}"
            )
        self._shared = self._shared or self.arrays.shared()
        head = self._head(batch["ids"].device) if self.kept.kind == "hidden" else None
        said = self.kept.said(self.arrays.read(keys), int(self._shared["vocab"]), head)
        return _to(said, batch["ids"].device)

    def narrow(self, view: View) -> None:
        """Scores the tokens of a student's view alone wherever the student does.

        Raises:
            Failure: what it holds are no states.
        """
        if self.kept.kind != "hidden":
            raise Failure(
                f"student.vocab: a store of {self.kept} cannot be narrowed to a view of the "
                "vocabulary; keep 'hidden', or train with 'vocab: full'"
            )
        self._views = (view, View(view.ids))

    def _head(self, device: torch.device) -> Head:
        """The head on a device: whole, or of the view where the student's is on."""
        if self._whole is None or self._whole.weight.device != device:
            head = head_from(self._shared)
            bias = None if head.bias is None else head.bias.to(device)
            self._whole = replace(head, weight=head.weight.to(device), bias=bias)
        if self._views is None:
            return self._whole
        students, own = self._views
        own.on = students.on
        return own.head(self._whole)


def _largest(told: Sparse) -> dict[str, Tensor]:
    return {"ids": told.ids.int(), "logp": told.logp.half(), "tail": told.tail.half()}


def keys_of(batch: Batch) -> list[bytes]:
    """The key of each sequence: a hash of its token ids and of which of its rows count."""
    length, owner = batch["ids"].shape[1], batch.owner
    found = []
    for i in range(batch.size):
        real = batch["real"][i]
        start = i * length + int(real.int().argmax())
        told = hashlib.blake2b(batch["ids"][i][real].int().cpu().numpy().tobytes(), digest_size=KEY)
        told.update(b"|")
        told.update((batch["rows"][owner == i] - start).int().cpu().numpy().tobytes())
        found.append(told.digest())
    return found


def head_arrays(head: Head) -> dict[str, Tensor]:
    """A head as arrays that a store can share."""
    numbers = {"scale": head.scale, "soft_cap": head.soft_cap}
    told = {k: torch.tensor(v, dtype=torch.float64) for k, v in numbers.items() if v is not None}
    bias = {} if head.bias is None else {"bias": head.bias}
    return {"weight": head.weight, **bias, **told}


def head_from(arrays: Mapping[str, Any]) -> Head:
    """The head that ``head_arrays`` wrote down."""
    cap = arrays.get("soft_cap")
    return Head(
        arrays["weight"],
        arrays.get("bias"),
        scale=float(arrays["scale"]),
        soft_cap=None if cap is None else float(cap),
    )


def _to(said: Any, device: torch.device) -> Any:
    if isinstance(said, Tensor):
        return said.to(device)
    if isinstance(said, dict):
        return type(said)({name: _to(value, device) for name, value in said.items()})
    return said
