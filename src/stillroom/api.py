"""From Python: distil with one call; run and check recipes as the command line does."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader
from transformers import PreTrainedModel

from stillroom.catalogue import name_of, row
from stillroom.config.build import Parts, build
from stillroom.config.recipe import Recipe, make
from stillroom.config.values import plain, within
from stillroom.core import Failure, Method
from stillroom.data.items import ItemData
from stillroom.engine.checkpoint import room_on_disk
from stillroom.engine.job import Job
from stillroom.engine.parallel import Processes
from stillroom.engine.record import Record
from stillroom.engine.training import Result, check, train
from stillroom.models.classes import Classifier
from stillroom.models.cut import Uniform
from stillroom.models.text import CausalLM, load
from stillroom.reports.card import write_card
from stillroom.reports.html import write_report
from stillroom.teachers.local import Local

SPENT = "cpu_seconds"
SPENT_COLUMN = {"label": "CPU seconds of training, all threads", "better": None}


@dataclass(frozen=True)
class Distilled:
    """A finished run: its folder, and by arm the student and its numbers on the test split."""

    folder: Path
    results: Mapping[str, Result]
    report: Path

    @property
    def student(self) -> Any:
        """The student of the last arm (of the only one, without arms)."""
        return list(self.results.values())[-1].student

    @property
    def table(self) -> list[dict[str, Any]]:
        """The rows of the result table: start, arms, teacher."""
        return json.loads((self.folder / "table.json").read_text(encoding="utf-8"))["rows"]


def distill(  # noqa: PLR0913 - one noun each
    method: str | Mapping[str, Any] | Method,
    *,
    student: Any,
    teacher: Any = None,
    data: Any,
    steps: int,
    out: str | Path | None = None,
    tokenizer: Any = None,
    **sections: Mapping[str, Any],
) -> Distilled:
    """Distils a teacher into a student and writes the run folder with its report.

    Args:
        method: a name (``stillroom list``), a mapping with ``name`` and fields, or a method.
        student: a hub name or folder, ``{"lm": {...}}``, a causal LM of transformers (with
            ``tokenizer``), or any ``nn.Module`` that maps inputs to class scores.
        teacher: the same kinds; none means that the data hold its answers. Several by name, as
            networks, for a method that calls them so or hears all there are.
        data: as ``data.train``, rows, a mapping as in a recipe's ``data``; for classes a pair of
            tensors, a map-style data set of pairs or a ``DataLoader`` over one, or a mapping of
            these with ``train``, ``validation`` and ``test``.
        steps: how many.
        out: the run folder, ``runs/<method>`` by default; the same one takes a run up again.
        tokenizer: of a student given as a module.
        sections: further recipe sections: ``train={"lr": 1e-5}``, ``eval``, ``run``, ``sampling``.

    Raises:
        Failure: anything that does not fit, before the first step, in words that help.
    """
    told: dict[str, Any] = {k: dict(v) for k, v in sections.items()}
    told["train"] = {**told.get("train", {}), "steps": steps}
    told["method"] = _method_words(method)
    parts = Parts(tokenizer=tokenizer)
    told["student"] = _student_words(student, parts)
    if (
        isinstance(teacher, Mapping)
        and teacher
        and all(isinstance(t, nn.Module) for t in teacher.values())
    ):
        told["teachers"] = {name: _words(network) for name, network in teacher.items()}
        parts.teacher = {name: Local(_network(t)) for name, t in teacher.items()}
    else:
        told["teacher"] = _teacher_words(teacher, parts)
    told["data"] = _data_words(data, parts, classes=isinstance(parts.student, Classifier))
    told["name"] = str(told["method"]["name"])
    recipe = make(told, folder=Path())
    return run(recipe, Path(out or Path("runs") / recipe.name), parts=parts)


def run(
    recipe: Recipe, out: Path, *, progress: bool = False, parts: Parts | None = None
) -> Distilled:
    """Runs a recipe, its arms one after the other, and writes table, model cards and report."""
    arms = dict(recipe.arms) or {recipe.name: recipe}
    processes = Processes()
    top = Record(out, main=processes.main)
    if recipe.arms:
        for name, arm in arms.items():  # the last one's mistake is told before the first learns
            with within(f"arms.{name}"):
                check(build(arm, parts, ready=False))
        top.open(recipe.resolved())
    results: dict[str, Result] = {}
    job: Job | None = None
    for name, arm in arms.items():
        job = None  # the networks of the arm before go before those of the next are loaded
        job = build(arm, parts)
        place = out / "arms" / name if recipe.arms else out
        with within(f"arms.{name}") if recipe.arms else nullcontext():
            results[name] = train(job, place, progress=progress)
    if top.main:
        with room_on_disk(out):
            _write_pages(top, recipe, results, job)
    processes.wait()  # the others may read what the main one wrote
    return Distilled(out, results, out / "report.html")


def _write_pages(
    top: Record, recipe: Recipe, results: Mapping[str, Result], job: Job | None
) -> None:
    top.json("table.json", _table(recipe, results, job))
    for name, result in results.items():
        arm = recipe.arms.get(name, recipe)
        write_card(top.folder, result.folder / "student", row(name_of(type(arm.system))))
    write_report(top.folder)


def _table(recipe: Recipe, results: Mapping[str, Result], job: Job | None) -> dict[str, Any]:
    """Rows of what came before, each arm, teacher; what the columns mean; what must be known."""
    suite = job.suite if job else None
    kinds = {
        name: "method" if arm.classes == recipe.classes else "baseline"
        for name, arm in recipe.arms.items()
    }
    first, last = next(iter(results.values())), list(results.values())[-1]
    rows = _before(first, job)
    for name, result in results.items():
        values = {**result.test, SPENT: result.info[SPENT]} if result.test else {}
        rows.append({"name": name, "kind": kinds.get(name, "method"), "values": values})
    told = suite.teacher({"student": last.student}, "test") if suite else {}
    if told:
        rows.append({"name": "teacher", "kind": "teacher", "values": told})
    notes = _stage_notes(job.stages if job else {})
    notes += [
        f"{name}: {note}" for name, result in results.items() for note in result.info["notes"]
    ]
    for why, count in last.info["data"].get("left_out", {}).items():
        notes.append(f"{count} rows were left out: {why}.")
    columns = {**(suite.columns() if suite else {}), SPENT: SPENT_COLUMN}
    shown = {k: v for k, v in columns.items() if any(k in r["values"] for r in rows)}
    return {"rows": rows, "columns": shown, "notes": notes}


@torch.no_grad()
def _before(first: Result, job: Job | None) -> list[dict[str, Any]]:
    """Rows of the students before the arms: the last is the one that every arm starts from."""
    if job is None or job.suite is None or not job.stages:
        return [{"name": "start", "kind": "start", "values": first.start}]
    rows = []
    if "cut" in job.stages:
        guess = job.suite.measure({"student": Uniform(job.student)}, "test", samples=False)
        rows.append({"name": "uniform", "kind": "start", "values": guess})
    *earlier, last = job.stages
    for name in earlier:
        players = {"student": load(str(job.stages[name])).to(job.student.model.device)}
        values = job.suite.measure(players, "test")
        rows.append({"name": name, "kind": "start", "values": values})
    return [*rows, {"name": last, "kind": "start", "values": first.start}]


def _stage_notes(stages: Mapping[str, Path]) -> list[str]:
    """What each stage did and cost, whether in this run or an earlier one."""
    notes = []
    for name, place in stages.items():
        told = place / "cut.json" if name == "cut" else place.parent / "result.json"
        info = json.loads(told.read_text(encoding="utf-8"))
        did = f"layers {info['layers']}" if name == "cut" else f"{info['steps']} steps"
        cost = f"{info['cpu_seconds']:.0f} CPU seconds"
        notes.append(f"{name}: {did}, {cost}, made once and shared by the arms")
    return notes


def _method_words(method: str | Mapping[str, Any] | Method) -> dict[str, Any]:
    if isinstance(method, str):
        return {"name": method}
    if isinstance(method, Method):
        return {"name": name_of(type(method)), **plain(method)}
    return dict(method)


def _network(given: Any) -> CausalLM | Classifier:
    if isinstance(given, CausalLM | Classifier):
        return given
    return CausalLM(given) if isinstance(given, PreTrainedModel) else Classifier(given)


def _words(network: nn.Module) -> dict[str, Any]:
    """How a live object stands in the resolved recipe."""
    inner: Any = getattr(network, "model", getattr(network, "network", network))
    count = sum(p.numel() for p in network.parameters())
    return {"model": f"{type(inner).__name__} given as an object, {count:,} parameters"}


def _student_words(student: Any, parts: Parts) -> dict[str, Any]:
    if isinstance(student, str | Path):
        return {"model": str(student)}
    if isinstance(student, Mapping):
        return dict(student)
    parts.student = _network(student)
    if isinstance(parts.student, CausalLM) and parts.tokenizer is None:
        raise Failure("distill: a causal LM given as an object needs tokenizer=")
    return _words(parts.student)


def _teacher_words(teacher: Any, parts: Parts) -> dict[str, Any]:
    if teacher is None:
        return {"recorded": True}
    if isinstance(teacher, str | Path):
        return {"model": str(teacher)}
    if isinstance(teacher, Mapping):
        return dict(teacher)
    if isinstance(teacher, nn.Module):
        parts.teacher = Local(_network(teacher))
        return _words(teacher)
    parts.teacher = teacher
    return {"model": f"{type(teacher).__name__} given as an object"}


def _data_words(data: Any, parts: Parts, *, classes: bool) -> dict[str, Any]:
    if classes:
        splits = data if isinstance(data, Mapping) else {"train": data}
        parts.splits = {
            name: ItemData(given.dataset if isinstance(given, DataLoader) else given)
            for name, given in splits.items()
        }
        sizes = ", ".join(f"{len(given)} {name}" for name, given in parts.splits.items())
        return {"train": f"examples given as objects: {sizes}"}
    if isinstance(data, str | Path):
        return {"train": str(data)}
    if isinstance(data, Mapping):
        return dict(data)
    if isinstance(data, Sequence):
        parts.rows = data
        return {"train": f"{len(data)} rows given as objects"}
    raise Failure(f"distill: data is a file, rows or a mapping, got {type(data).__name__}")
