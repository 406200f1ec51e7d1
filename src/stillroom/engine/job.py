"""What one run is made of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stillroom.core import Method, Teacher
from stillroom.data.streams import Data
from stillroom.data.views import Views
from stillroom.engine.settings import Eval, RunOptions, Train
from stillroom.evaluation.suite import Suite
from stillroom.rollouts.sampling import Sampling


@dataclass(frozen=True, kw_only=True)
class Job:
    """Everything that one run needs, built and checked."""

    method: Method
    student: Any
    teachers: Mapping[str, Teacher]
    streams: Mapping[str, Data]
    train: Train
    eval: Eval = field(default_factory=Eval)
    run: RunOptions = field(default_factory=RunOptions)
    sampling: Sampling = field(default_factory=Sampling)
    suite: Suite | None = None
    views: Views | None = None
    """How the examples of all streams are changed when they are learned from."""
    pad_id: int = 0
    recipe: Mapping[str, Any] = field(default_factory=dict)
    ledger: Mapping[str, Any] = field(default_factory=dict)
    """Which data were read and which rows left out."""
    earlier: Mapping[str, float] = field(default_factory=dict)
    """What trainings that came before took, of a pipeline: counted with this one's."""
    beside: Mapping[str, Path] = field(default_factory=dict)
    """Folders of models that are shipped with the student, by name."""
    stages: Mapping[str, Path] = field(default_factory=dict)
    """Folders of the students that this one came by (cut, healed), by their row in tables."""
