"""What a diagnostic reads and tells. It explains runs that are over, and trains nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

from stillroom.core.method import Needs, Paper


class Past(Protocol):
    """One training that is over, as its folder tells it."""

    @property
    def name(self) -> str: ...
    @property
    def recipe(self) -> Mapping[str, Any]: ...
    @property
    def metrics(self) -> Sequence[Mapping[str, Any]]:
        """Lines of numbers with their ``step``, in order; ``validation/NAME`` of a validation."""
        ...

    @property
    def result(self) -> Mapping[str, Any]:
        """``test``: numbers of the test split, of the student that was kept; ``tokens``, ..."""
        ...


@dataclass(frozen=True)
class Findings:
    """Numbers by run and column, and what follows from them in sentences.

    ``columns``: by name what the number means, and which way is better (``lower``, ``higher``, None
    where neither is). A run may lack a number (None).
    """

    columns: Mapping[str, tuple[str, str | None]]
    rows: Mapping[str, Mapping[str, float | None]]
    sentences: Sequence[str] = field(default_factory=tuple)


@dataclass(frozen=True, kw_only=True)
class Diagnostic:
    """One study. Fields say how runs are read; class-body literals say what they must hold.

    ``needs.teacher``: signals of the teacher that the runs had. ``needs.metrics``: numbers that
    they must have recorded, at the fields' defaults.
    """

    paper: ClassVar[Paper | None] = None
    needs: ClassVar[Needs] = Needs()
    modality: ClassVar[str] = "any"
    family: ClassVar[str] = ""

    def read(self, runs: Sequence[Past]) -> Findings:
        """What the runs tell, each alone and beside the others.

        Raises:
            Failure: a run lacks a number that is read; it says which, and what would record it.
        """
        raise NotImplementedError(f"{type(self).__name__} must define read()")
