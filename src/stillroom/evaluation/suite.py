"""The evaluators of a recipe over the splits of its data."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from stillroom.catalogue import nearest
from stillroom.core import Batch, Failure, Teacher
from stillroom.data.streams import Data
from stillroom.data.text import Renderer, collate, prompts_of
from stillroom.models.text import mode
from stillroom.rollouts.sampling import Sampling, sample

SIDE_BY_SIDE = 64
"""Examples that are evaluated at once, before the token budget splits them."""


@dataclass(kw_only=True)
class View:
    """What an evaluator may read: networks, one split, and how answers are made."""

    players: Mapping[str, nn.Module]
    data: Data
    renderer: Renderer | None = None
    sampling: Sampling = field(default_factory=Sampling)
    teachers: Mapping[str, Teacher] = field(default_factory=dict)
    world: Any = None
    budget: int = 16384
    seed: int = 0
    copies: int = 1
    answer: str | None = None
    judge: Any = None
    database: Path | None = None
    verify: Any = None
    """How final answers are checked (``traces.verifying.Verify``)."""
    written: Callable[[Any, Sequence[str]], list[str]] | None = None
    """How the system answers, where it is more than the student alone (``core.Lesson``)."""
    beside: Mapping[str, Path] = field(default_factory=dict)
    """Folders of models that are shipped with the student, by name (``core.Lesson``)."""
    train: Data | None = None
    """The training split, which some evaluators read beside the one that is measured."""
    _answers: list[list[int]] | None = None

    @property
    def student(self) -> Any:
        return self.players["student"]

    @property
    def live(self) -> Teacher | None:
        """The teacher, where it gives logits of whatever it is asked about."""
        teacher = self.teachers.get("teacher")
        return teacher if teacher is not None and "logits" in teacher.signals else None

    def batches(self) -> Iterator[Batch]:
        device = next(self.student.parameters()).device
        for start in range(0, len(self.data), SIDE_BY_SIDE):
            chunk = range(start, min(start + SIDE_BY_SIDE, len(self.data)))
            yield from self.data.batch(chunk).to(device).split(self.budget)

    def answers(self) -> list[list[int]]:
        """``copies`` sampled answers to each prompt, side by side; made once and shared."""
        if self._answers is None:
            self._answers = []
            told: dict[str, Any] = {"seed": self.seed, "sampling": self.sampling}
            for batch in self._few():
                prompts = prompts_of(batch)
                self._answers += sample(self.student, prompts, batch.id, self.copies, **told)
        return self._answers

    def texts(self) -> list[tuple[str, str]]:
        """(student's, teacher's) text of each sampled answer."""
        if self.renderer is None:
            raise Failure("eval.metrics: texts are compared, and these data are no text")
        data: Any = self.data
        told = [example.answer for example in data.examples for _ in range(self.copies)]
        if self.written is not None:
            return list(zip(self.said([e.prompt for e in data.examples]), told, strict=True))
        pairs = zip(self.answers(), told, strict=True)
        return [(self.renderer.decode(own), answer) for own, answer in pairs]

    def said(self, prompts: Sequence[str]) -> list[str]:
        """What the system writes, ``copies`` answers to each prompt."""
        assert self.written is not None
        return self.written(self.student, [p for p in prompts for _ in range(self.copies)])

    def answered(self) -> Iterator[tuple[Batch, Batch]]:
        """Batches of the split beside those of the student's answers to the same prompts.

        Example i has the answers ``i * copies`` to ``i * copies + copies - 1`` of its batch.
        """
        done, pad_id = 0, self.renderer.pad_id if self.renderer else 0
        for batch in self._few():
            prompts = [p for p in prompts_of(batch) for _ in range(self.copies)]
            pairs = list(zip(prompts, self.answers()[done : done + len(prompts)], strict=True))
            done += len(prompts)
            id = batch.id.cpu().repeat_interleave(self.copies)
            yield batch, collate(pairs, id, pad_id).to(batch.id.device)

    def _few(self) -> Iterator[Batch]:
        """Batches so small that with all copies of each they are within the budget."""
        for batch in self.batches():
            yield from batch.split(max(1, self.budget // self.copies))


class Suite:
    """Evaluators by name (files of this room), on ``validation`` and ``test``.

    Raises:
        Failure: a name is no evaluator.
    """

    def __init__(self, metrics: Sequence[str], splits: Mapping[str, Data], **view: Any) -> None:
        self.evaluators = {name: _evaluator(name) for name in metrics}
        self.splits, self._view = splits, view
        self.renderer: Renderer | None = view.get("renderer")

    def by(
        self,
        written: Callable[[Any, Sequence[str]], list[str]] | None,
        beside: Mapping[str, Path] | None = None,
    ) -> Suite:
        """The same of a system whose answers are ``written`` in another way, with models beside."""
        told = {**self._view, "written": written, "beside": beside or {}}
        return Suite(list(self.evaluators), self.splits, **told)

    def view(self, players: Mapping[str, nn.Module], split: str) -> View:
        """What evaluators read; ``copies`` of each answer are for the test split alone."""
        told = self._view if split == "test" else {**self._view, "copies": 1}
        return View(players=players, data=self.splits[split], **told)

    def measure(
        self, players: Mapping[str, nn.Module], split: str, *, samples: bool = True
    ) -> dict[str, float]:
        """All numbers of one split; uses none of training's random numbers.

        ``samples`` False leaves out evaluators that are not ``GIVEN``: they read answers.
        """
        if split not in self.splits or not self.evaluators:
            return {}
        view = self.view(players, split)
        with mode(nn.ModuleDict(dict(players)), training=False):
            used = [e for e in self._of(split) if samples or vars(e).get("GIVEN", False)]
            for ready in (e.ready for e in used if "ready" in vars(e)):
                ready(view)
            return _merged(e.measure(view) for e in used)

    def teacher(self, players: Mapping[str, nn.Module], split: str) -> dict[str, float]:
        """The teacher's own numbers, from evaluators that can tell them."""
        if split not in self.splits:
            return {}
        view = self.view(players, split)
        told = [e.teacher for e in self.evaluators.values() if "teacher" in vars(e)]
        return _merged(tell(view) for tell in told)

    def samples(self, players: Mapping[str, nn.Module], count: int) -> list[dict[str, str]]:
        """The student's answers to the first test prompts, beside the teacher's."""
        split = next((name for name in ("test", "validation") if name in self.splits), None)
        if self.renderer is None or split is None:
            return []
        view = self.view(players, split)
        data: Any = view.data
        examples = data.examples[:count]
        if view.written is not None:
            said = view.written(view.student, [e.prompt for e in examples])
            pairs = zip(examples, said, strict=True)
            return [{"prompt": e.prompt, "reference": e.answer, "student": s} for e, s in pairs]
        answers = sample(
            view.student,
            [e.prompt_ids for e in examples],
            torch.arange(len(examples)),
            seed=view.seed,
            sampling=view.sampling,
        )
        return [
            {"prompt": e.prompt, "reference": e.answer, "student": self.renderer.decode(a)}
            for e, a in zip(examples, answers, strict=True)
        ]

    def _of(self, split: str) -> list[ModuleType]:
        """Evaluators of a split; one that is costly may name its only ``SPLIT``."""
        return [e for e in self.evaluators.values() if vars(e).get("SPLIT", split) == split]

    def columns(self, split: str = "test") -> dict[str, dict[str, str | None]]:
        """``{"nll": {"label": ..., "better": "lower"}}`` of every number, in order."""
        return {
            name: {"label": label, "better": better}
            for e in self._of(split)
            for name, (label, better) in e.COLUMNS.items()
        }

    def higher_is_better(self, name: str) -> bool:
        return self.columns()[name]["better"] == "higher"


def evaluators() -> list[str]:
    """Names of all evaluators: the files of this room."""
    own = (Path(__file__).stem, "__init__")
    return sorted(f.stem for f in Path(__file__).parent.glob("*.py") if f.stem not in own)


def _evaluator(name: str) -> ModuleType:
    if name in evaluators():
        return _module(name)
    giving = [known for known in evaluators() if name in _module(known).COLUMNS]
    near = f"; {giving[0]!r} gives this number" if giving else nearest(name, evaluators())
    raise Failure(f"eval.metrics: there is no {name!r}{near}; there is {', '.join(evaluators())}")


def _module(name: str) -> ModuleType:
    return importlib.import_module(f"stillroom.evaluation.{name}")


def _merged(parts: Iterator[dict[str, float]]) -> dict[str, float]:
    return {name: float(value) for part in parts for name, value in part.items()}


def mean(values: Sequence[Tensor]) -> float:
    """The mean over all entries of several tensors, in float64."""
    return float(torch.cat([v.double().flatten() for v in values]).mean())
