"""What a method states, yields and may touch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from torch import Tensor, nn

from stillroom.catalogue import paper_url
from stillroom.core.batch import Batch
from stillroom.core.signals import Signals


@dataclass(frozen=True, kw_only=True)
class Needs:
    """What a method asks for, checked before the first step.

    ``fresh``: asks the teacher about sequences that the data do not hold. ``whole``: compares
    the samples of a batch, which is then never split, and gathered over processes. ``planned``:
    what a step does depends on how many there will be, so the run cannot end by time. ``texts``:
    columns of each row of training text, beside prompt and completion, each a further answer that
    becomes a nested batch of that name: ``cot``, with its chain of thought, ``rejected``, a worse
    one. ``teachers``: by which names it calls them. ``metrics``: numbers of the validation split
    that steer it (``Method.validated``). ``several``: calls all teachers that the recipe names,
    however many (``run.teachers``). ``many_labels``: an example has several classes at once, or
    none (``labels`` [B, C] of 0 and 1).
    """

    teacher: Set[str] = frozenset()
    student: Set[str] = frozenset({"logits"})
    rollouts: bool = False
    fresh: bool = False
    whole: bool = False
    planned: bool = False
    texts: Set[str] = frozenset()
    teachers: Set[str] = frozenset({"teacher"})
    metrics: Set[str] = frozenset()
    streams: Set[str] = frozenset({"train"})
    several: bool = False
    many_labels: bool = False


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
    longest: int = 0
    """Tokens of a sequence, its answer sampled or the data's, are at most this; 0 of classes."""


class Run(Protocol):
    """What a method may touch."""

    players: Mapping[str, Any]
    teachers: Mapping[str, Teacher]
    step: int
    steps: int
    epoch: int
    """Full passes over the training stream that came before this step."""

    @property
    def epochs(self) -> float:
        """Passes that the whole run makes."""
        ...

    @property
    def progress(self) -> float: ...
    def student(self, batch: Batch) -> Signals: ...
    def teacher(self, batch: Batch, name: str = "teacher", *, grad: bool = False) -> Signals: ...
    def functional(self, player: str, weights: Mapping[str, Tensor], batch: Batch) -> Any: ...
    def rollout(
        self,
        batch: Batch,
        n: int = 1,
        *,
        guide: Any = None,
        by: str = "teacher",
        player: str = "student",
        **sampling: Any,
    ) -> Batch: ...
    def ask(self, player: str, batch: Batch) -> Any: ...
    def next(self, stream: str) -> Batch: ...
    def everything(self, stream: str) -> Iterator[Batch]: ...
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

    def check(self, teacher: Teacher) -> None:
        """Before the first step: raises Failure where a field does not suit the teacher."""

    def streams(self) -> Set[str]:
        """Names of the streams that are read: a weight of 0 may leave one out."""
        return self.needs.streams

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
        asks = self.needs.teacher - {"text"}  # its text stands in the batch
        student, teacher = run.student(batch), run.teacher(batch) if asks else Signals()
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

    def validated(self, run: Run, values: Mapping[str, float]) -> None:
        """After each validation, that before the first step included, with its numbers."""


Objective = Callable[..., Tensor]
"""``objective(student_logits, teacher_logits, labels, **row_inputs)``; [n, V] twice, [n] -> [n]."""
