"""The words that every room shares: batches, signals, needs, terms, updates, methods, runs.

Needs torch and nothing else. Nothing here trains, loads or samples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from stillroom.catalogue import paper_url

SMALL_LOGITS = 2**24
"""Elements of a [rows, vocabulary] tensor that ``Signals.logits`` still makes on text."""


class Failure(ValueError):
    """What a person can mend: says what, what was given, and what to do."""


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

    def split(self, budget: int) -> list[Batch]:
        """Micro-batches of whole examples, each of at most ``budget`` tokens where one fits."""
        per_example = max(1, self.cost // max(1, self.size))
        fewest = min([v.size for v in self.values() if isinstance(v, Batch)] or [self.size])
        step = max(1, budget // per_example, -(-self.size // max(1, fewest)))
        return [self.part(i, min(i + step, self.size)) for i in range(0, self.size, step)]

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


@dataclass(frozen=True)
class Head:
    """From what the LM head reads (the state after the last norm) to logits.

    ``logits(h) = soft_cap * tanh(scale * (h W^T + b) / soft_cap)``; without a soft-cap the
    ``tanh`` is left out. ``weight`` [V, d], ``bias`` [V].
    """

    weight: Tensor
    bias: Tensor | None = None
    scale: float = 1.0
    soft_cap: float | None = None

    def logits(self, hidden: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.to(hidden.dtype)
        out = nn.functional.linear(hidden, self.weight.to(hidden.dtype), bias)
        if self.scale != 1.0:
            out = out * self.scale
        return out if self.soft_cap is None else self.soft_cap * torch.tanh(out / self.soft_cap)


class Signals(Bag):
    """What a network says about a batch.

    ``hidden`` [N, d] with ``head`` (text, at ``rows``), or ``logits`` [B, C] (classes), and
    ``features`` {layer: [B, d]}. On text ``logits`` is made from ``hidden`` only while it is small.
    """

    def __getattr__(self, name: str) -> Any:
        if name == "logits" and "hidden" in self and "logits" not in self:
            size = len(self["hidden"]) * len(self["head"].weight)
            if size > SMALL_LOGITS:
                raise Failure(
                    f"logits of {len(self['hidden'])} rows by {len(self['head'].weight)} tokens "
                    "are too large to hold; put the formula into an objective and call "
                    "per_row(objective, student, teacher, labels)"
                )
            return self["head"].logits(self["hidden"])
        return super().__getattr__(name)


@dataclass(frozen=True, kw_only=True)
class Needs:
    """What a method asks for, checked before the first step.

    ``fresh``: asks the teacher about sequences that the data do not hold. ``whole``: compares
    the samples of a batch, which is then never split, and gathered over processes.
    """

    teacher: Set[str] = frozenset()
    student: Set[str] = frozenset({"logits"})
    rollouts: bool = False
    fresh: bool = False
    whole: bool = False
    streams: Set[str] = frozenset({"train"})


@dataclass(frozen=True)
class Paper:
    """``id`` of the arXiv (or a DOI), who and when, the title."""

    id: str
    authors: str
    title: str = ""

    @property
    def url(self) -> str:
        return paper_url(self.id)


@dataclass(frozen=True)
class Term:
    """``weight`` times the mean of ``value`` over the batch's mask named ``over``.

    ``value`` has the shape of the mask. The mean runs over all micro-batches and processes.
    """

    value: Tensor
    over: str = "mask"
    weight: float = 1.0
    name: str = "loss"


@dataclass(frozen=True)
class Update:
    """ONE optimiser step of the named players; afterwards the gradients of ALL are dropped."""

    terms: Term | Sequence[Term]
    players: tuple[str, ...] = ("student",)


class Teacher(Protocol):
    """Anything that says signals about a batch."""

    @property
    def signals(self) -> Set[str]: ...
    @property
    def fresh(self) -> bool: ...

    def __call__(self, batch: Batch, *, grad: bool = False) -> Signals: ...


@dataclass(frozen=True)
class Setup:
    """What a method may read when it makes its players: before optimisers, after loading."""

    student: nn.Module
    teachers: Mapping[str, Teacher]
    batch: Batch
    samples: int
    """Sample ids of the training stream are below this."""


class Run(Protocol):
    """What a method may touch."""

    players: Mapping[str, Any]
    step: int
    steps: int
    epoch: int
    """Full passes over the training stream that came before this step."""
    epochs: float
    """Passes that the whole run makes."""

    @property
    def progress(self) -> float: ...
    def student(self, batch: Batch) -> Signals: ...
    def teacher(self, batch: Batch, name: str = "teacher", *, grad: bool = False) -> Signals: ...
    def rollout(self, batch: Batch, n: int = 1, **sampling: Any) -> Batch: ...
    def ask(self, player: str, batch: Batch) -> Any: ...
    def next(self, stream: str) -> Batch: ...
    def gather(self, value: Any) -> Any: ...
    def uniform(self, tag: int = 0) -> float: ...
    def reset(self, player: str) -> None: ...
    def log(self, **values: Tensor | float) -> None: ...
    def note(self, text: str) -> None: ...


@dataclass(frozen=True, kw_only=True)
class Method:
    """One paper. Fields are hyper-parameters; class-body literals say what it needs.

    A method holds no state: what changes lives in players. Most define ``loss`` and stop.
    """

    paper: ClassVar[Paper | None] = None
    needs: ClassVar[Needs] = Needs()
    modality: ClassVar[str] = "any"
    family: ClassVar[str] = ""

    def players(self, setup: Setup) -> Mapping[str, nn.Module]:
        """Further networks: projectors, critic, frozen snapshots, tables."""
        return {}

    def layers(self) -> Mapping[str, Sequence[str]]:
        """Names of the layers whose features are read, by player or teacher."""
        return {}

    def prepare(self, run: Run, batch: Batch) -> Batch:
        """Once a step, no gradient, all rows of this process, before it is split."""
        return batch

    def loss(
        self, student: Signals, teacher: Signals, batch: Batch, nets: Mapping[str, Any]
    ) -> Term | Sequence[Term]:
        raise NotImplementedError(f"{type(self).__name__} must define loss() or updates()")

    def updates(self, run: Run, batch: Batch) -> Iterator[Update]:
        """Per micro-batch, all in lockstep; how many must not depend on the data."""
        student, teacher = run.student(batch), run.teacher(batch)
        if self.needs.whole:
            batch = run.gather(batch)
        terms = self.loss(student, teacher, batch, run.players)
        moved = ("student", *self.moving(run.players))
        yield Update(terms, players=moved)

    def moving(self, players: Mapping[str, nn.Module]) -> Iterator[str]:
        """Players of this method that learn, beside the student."""
        for name, player in players.items():
            if name != "student" and any(p.requires_grad for p in player.parameters()):
                yield name

    def after(self, run: Run, batch: Batch) -> None:
        """Once a step, after its last update: moving averages, tables, phase changes."""


Objective = Callable[..., Tensor]
"""``objective(student_logits, teacher_logits, labels, **row_inputs)``; [n, V] twice, [n] -> [n]."""
