"""Batches: examples side by side, their rows, and batches within batches."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


class Bag(dict[str, Any]):
    """A dict read as attributes; asking for what is absent says what is present."""

    def __getattr__(self, name: str) -> Any:
        if name in self:
            return self[name]
        raise AttributeError(f"this {type(self).__name__} has no {name!r}, only {sorted(self)}")


class Batch(Bag):
    """Examples side by side. Fields are per example, per row, or nested batches.

    Text: ``ids`` [B, L] never shifted, ``positions`` [B, L], ``real`` [B, L] (not padding),
    ``last`` [B] (index of the last real token), ``id`` [B] (stable sample ids), ``rows`` [N]
    (sorted flat positions whose NEXT token counts), ``labels`` [N] (that next token),
    ``mask`` [N] over rows, ``examples`` [B] the mask over whole sequences. Classes: ``x`` [B, ...],
    ``labels`` [B], ``mask`` [B], ``id`` [B].

    A nested batch (samples of a group, another stream) is split along: example ``i`` of ``B``
    owns children ``i * M // B`` up to ``(i + 1) * M // B`` of ``M``.
    """

    row_fields: frozenset[str] = frozenset()

    @classmethod
    def text(cls, *, rows: Tensor, labels: Tensor, mask: Tensor, **fields: Any) -> Batch:
        return cls(fields).add_rows(rows=rows, labels=labels, mask=mask)

    def add(self, **fields: Any) -> Batch:
        """This batch with more fields, one entry an example (or a nested batch)."""
        new = Batch({**self, **fields})
        new.row_fields = self.row_fields
        return new

    def add_rows(self, **fields: Any) -> Batch:
        """This batch with more fields, one entry a supervised row."""
        new = self.add(**fields)
        new.row_fields = self.row_fields | set(fields)
        return new

    @property
    def size(self) -> int:
        return len(self["id"])

    @property
    def owner(self) -> Tensor:
        """[N] index of the example that each row belongs to."""
        if "rows" in self:
            return self["rows"] // self["ids"].shape[1]
        return torch.arange(self.size, device=self["id"].device)

    @property
    def cost(self) -> int:
        """Tokens with padding (an example of another kind counts 1), nested batches included."""
        own = self["ids"].numel() if "ids" in self else self.size
        return own + sum(v.cost for v in self.values() if isinstance(v, Batch))

    def part(self, start: int, stop: int) -> Batch:
        """Examples start..stop-1 with their rows and children, common padding cut off."""
        whole = start == 0 and stop >= self.size
        low, high = (0, 0) if whole else self._row_range(start, stop)
        picked: dict[str, Any] = {}
        for name, value in self.items():
            if whole:
                picked[name] = value
            elif isinstance(value, Batch):
                picked[name] = value.part(*(i * value.size // self.size for i in (start, stop)))
            elif name in self.row_fields:
                picked[name] = value[low:high]
            elif isinstance(value, Tensor | Sequence) and not isinstance(value, str):
                picked[name] = value[start:stop]
            else:
                picked[name] = value
        new = Batch(picked)
        new.row_fields = self.row_fields
        if not whole and "rows" in self:
            new["rows"] = new["rows"] - start * self["ids"].shape[1]
            new = new._trimmed()
        return new

    def only(self, examples: Tensor) -> Batch:
        """Some examples by index, in rising order, with their rows; nested batches are left out."""
        owner, fields = self.owner, {k: v for k, v in self.items() if not isinstance(v, Batch)}
        rows = torch.isin(owner, examples)
        picked = {
            name: value[rows if name in self.row_fields else examples]
            for name, value in fields.items()
        }
        new = Batch(picked)
        new.row_fields = self.row_fields
        if "rows" not in self:
            return new
        length = self["ids"].shape[1]
        moved = torch.searchsorted(examples, owner[rows]) * length + new["rows"] % length
        return new.add(rows=moved)._trimmed()

    def _row_range(self, start: int, stop: int) -> tuple[int, int]:
        if "rows" not in self:
            return start, stop
        ends = torch.tensor([start, stop], device=self["rows"].device) * self["ids"].shape[1]
        low, high = torch.searchsorted(self["rows"], ends).tolist()
        return low, high

    def _trimmed(self) -> Batch:
        """Without the columns that are padding in every example."""
        used = self["real"].any(0).nonzero()
        if not len(used):
            return self
        low, high, length = int(used[0]), int(used[-1]) + 1, self["ids"].shape[1]
        if (low, high) == (0, length):
            return self
        cut = {name: self[name][:, low:high] for name in ("ids", "positions", "real")}
        rows = self.owner * (high - low) + self["rows"] % length - low
        return self.add(**cut, rows=rows, last=self["last"] - low)

    def split(self, budget: int, least: int = 1) -> list[Batch]:
        """Micro-batches of whole examples, each of at most ``budget`` tokens where one fits.

        At least ``least`` of them, as far as there are examples (or groups of a nested batch).
        """
        per_example = max(1, self.cost // max(1, self.size))
        fewest = min([v.size for v in self.values() if isinstance(v, Batch)] or [self.size])
        unit = max(1, -(-self.size // max(1, fewest)))
        step = max(budget // per_example, unit)
        starts = list(range(0, self.size, step))
        if len(starts) < least:
            units = -(-self.size // unit)
            starts = sorted({unit * (units * i // least) for i in range(least)})
        return [self.part(i, j) for i, j in itertools.pairwise([*starts, self.size])]

    def to(self, device: torch.device | str) -> Batch:
        moved = {k: v.to(device) if isinstance(v, Tensor | Batch) else v for k, v in self.items()}
        new = Batch(moved)
        new.row_fields = self.row_fields
        return new

    def find(self, path: str) -> Any:
        """A field by name; ``corpus.mask`` looks into the nested batch ``corpus``."""
        value: Any = self
        for name in path.split("."):
            value = getattr(value, name)
        return value
