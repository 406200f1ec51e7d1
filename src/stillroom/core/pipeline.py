"""What a pipeline states, and what it may do: ask, write, verify, teach."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol

from stillroom.core.method import Method, Needs, Paper

Row = Mapping[str, Any]
"""A question and what is known of it, as plain values: ``prompt`` or ``messages``, ``completion``,
``gold``, ``provenance`` and whatever else its file holds."""


@dataclass(frozen=True)
class Lesson:
    """One training of a pipeline: what is learned, by which method, beginning where.

    Args:
        name: what it is, for people.
        rows: what is learned; None is the training split as it is, which is how examples with
            classes are learned.
        steps: how many; 0 learns nothing, and ships the student that it begins with.
        method: None is the recipe's.
        start: folder of a student that an earlier lesson made; None is the recipe's.
        network: another network than the recipe's student, as a recipe tells one.
        rate: of the recipe's learning rates, which are multiplied by it.
        teacher: folder of a model that an earlier lesson made, whose scores are learned from; None
            is the recipe's for the training split as it is; of other rows they are all there is.
        draw: which of the fresh weights that the recipe's seed has; lessons of equal networks begin
            apart where it differs. 0 is that of a recipe without a pipeline.
        beside: further models that are shipped with the student, by name.
        written: how the shipped system answers, where that is more than the student's own sampling:
            ``written(student, prompts) -> texts``, of the plain prompts of a split.
    """

    name: str
    rows: Sequence[Row] | None
    steps: int
    method: Method | None = None
    start: Path | None = None
    network: Mapping[str, Any] | None = None
    rate: float = 1.0
    teacher: Path | None = None
    draw: int = 0
    beside: Mapping[str, Path] = field(default_factory=dict)
    written: Callable[[Any, Sequence[str]], list[str]] | None = None


class Work(Protocol):
    """What a pipeline may touch. All that takes time or money is kept, and done once.

    The test split is not there: nothing that a pipeline decides can depend on it.
    """

    @property
    def rows(self) -> Sequence[Row]:
        """Of the training split, each with an ``id``; what answers messages is their completion.

        There are none of examples with classes, which no pipeline sees one by one.
        """
        ...

    @property
    def validation(self) -> Sequence[Row]: ...
    @property
    def steps(self) -> int:
        """That the recipe gives to the student, over all of its lessons."""
        ...

    @property
    def seed(self) -> int: ...

    def ask(
        self, what: str, rows: Sequence[Row], *, n: int = 1, temperature: float | None = None
    ) -> list[Row]:
        """``n`` answers of the teacher to each row, put to it through the template ``what``.

        A row for each answer that arrived: the row with ``completion`` and ``provenance.asked``,
        the answers to one row side by side. Those that were refused, empty or cut are left out and
        counted.
        """
        ...

    def write(
        self,
        student: Path,
        rows: Sequence[Row],
        *,
        n: int = 1,
        temperature: float = 0.0,
    ) -> list[Row]:
        """``n`` answers that a student writes to the question of each row, as ``ask`` gives."""
        ...

    def verified(self, rows: Sequence[Row]) -> list[Row]:
        """The rows, each with ``provenance.verified``: whether its completion is right."""
        ...

    def right(self, rows: Sequence[Row]) -> list[Row]:
        """Those of the rows whose completion is right."""
        ...

    def reply(self, model: Any, prompts: Sequence[str]) -> list[str]:
        """What a model (a folder, or the student in memory) writes to plain prompts.

        By the recipe's sampling, and not kept: it is for ``Lesson.written``.
        """
        ...

    def teach(self, lesson: Lesson) -> Path:
        """The folder of the model that a lesson makes: trained at the first call, then kept."""
        ...

    def tell(self, what: str, **numbers: float) -> None:
        """Writes numbers into the ledger that is shown when all is over."""
        ...


@dataclass(frozen=True, kw_only=True)
class Pipeline:
    """One paper's system of several trainings: plain Python over stages that are kept.

    Fields are hyper-parameters, class-body literals say what it needs. It holds no state, and has
    no training loop: each training is a ``Lesson``.

    Args:
        templates: Jinja files by name, in place of those that the toolkit ships for its questions.
    """

    paper: ClassVar[Paper | None] = None
    needs: ClassVar[Needs] = Needs()
    modality: ClassVar[str] = "text"
    family: ClassVar[str] = ""

    templates: dict[str, str] = field(default_factory=dict)

    def questions(self, work: Work) -> int:
        """How many questions the teacher is asked at most; told before the first one."""
        raise NotImplementedError(f"{type(self).__name__} must define questions()")

    def run(self, work: Work) -> Lesson:
        """Does all that comes before the last lesson, and gives that one: it makes the student.

        Raises:
            Failure: nothing is left to learn from, or what was asked for cannot be had.
        """
        raise NotImplementedError(f"{type(self).__name__} must define run()")
