"""A whole run: players, steps, evaluation, checkpoints, the student that is kept."""

from __future__ import annotations

import math
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from stillroom.core import Failure, Setup
from stillroom.data.streams import Stream
from stillroom.engine import checkpoint
from stillroom.engine.checks import check_needs, check_plan, check_read, check_texts
from stillroom.engine.job import Job
from stillroom.engine.loop import iterate
from stillroom.engine.parallel import Processes
from stillroom.engine.players import Players
from stillroom.engine.progress import progress_bar
from stillroom.engine.record import Record
from stillroom.engine.run import Run
from stillroom.engine.sharding import Sharding, check_shardable, weights_for, whole
from stillroom.models.text import CausalLM
from stillroom.models.view import narrowed
from stillroom.teachers.average import Average
from stillroom.teachers.local import Local
from stillroom.teachers.routed import each


@dataclass(frozen=True)
class Result:
    """Where a run stands: its folder, its student, and the numbers of the test split."""

    folder: Path
    student: Any
    start: Mapping[str, float]
    test: Mapping[str, float]
    info: Mapping[str, Any]
    fresh: bool = True
    """False when the folder held the finished run already."""


def train(job: Job, folder: Path, *, progress: bool = False) -> Result:
    """Runs a job in a folder; the same folder takes it up again where it stopped.

    Raises:
        Failure: the folder belongs to another recipe, a signal is missing, a number is not
            finite, the method will not go on, the disk is full.
    """
    check_needs(job.method, job.student, job.teachers)
    check_plan(job.method, job.train)
    check_read(job)
    processes = Processes()
    if job.train.sharding and processes.world == 1:
        raise Failure(
            "train.sharding: there is one process, so there are no shares; start several with "
            "accelerate launch --num-processes N -m stillroom run RECIPE, or leave it out"
        )
    record = Record(folder, main=processes.main)
    with checkpoint.room_on_disk(folder), _threads(job.run.threads):
        record.open(job.recipe)
        if (done := record.read("result.json")) is not None:
            job.student.load(folder / "student")
            return Result(folder, job.student, done["start"], done["test"], done, fresh=False)
        return _Training(job, record, processes, progress).run_all()


def check(job: Job) -> None:
    """Makes all that a run would make before its first step, and drops it; writes nothing.

    Raises:
        Failure: a signal is missing, a rate is told for no player, a batch cannot be shared,
            networks cannot be sharded.
    """
    check_needs(job.method, job.student, job.teachers)
    check_plan(job.method, job.train)
    check_read(job)
    alone = replace(job, train=replace(job.train, sharding=False))
    made = _Training(alone, Record(Path(), main=False), Processes(), progress=False)
    if job.train.sharding:
        check_shardable(made.run.players, job.teachers)


class _Training:
    def __init__(self, job: Job, record: Record, processes: Processes, progress: bool) -> None:
        self.job, self.record, self.processes, self.show = job, record, processes, progress
        self.checkpoints = record.folder / "checkpoints"
        self.streams = {
            name: Stream(
                data,
                job.train.batch,
                job.run.seed,
                rank=processes.rank,
                world=processes.world,
                views=job.views,
            )
            for name, data in job.streams.items()
        }
        self.sharding: Sharding | None = None
        torch.manual_seed(job.run.seed)
        networks = self._networks()
        if job.train.sharding:
            check_shardable(networks, job.teachers)
            self.sharding = Sharding(processes, bf16=job.train.precision == "bf16")
            networks = self.sharding.shard_all(networks, job.teachers)
        players = Players(networks, job.train, processes)
        self.run = Run(job, players, self.streams, processes)
        torch.manual_seed(job.run.seed + processes.rank)
        self.start: dict[str, float] = {}
        self.best: dict[str, Any] | None = None
        self.readings: dict[str, float] = {}
        self.ended = False
        self.spent = {"seconds": 0.0, "cpu_seconds": 0.0}

    def _networks(self) -> dict[str, nn.Module]:
        job, device = self.job, self.processes.device
        layers = job.method.layers()
        if "student" in layers:
            job.student.taps = tuple(layers["student"])
        for name, teacher in each(job.teachers):
            if isinstance(teacher, Local):
                network: Any = teacher.network.to(device)
                if name in layers:
                    network.taps = tuple(layers[name])
                if job.train.packing and isinstance(network, CausalLM):
                    network.packing()
        student = job.student.to(device).train()
        for setting in ("checkpointing", "packing"):
            if getattr(job.train, setting):
                if not isinstance(student, CausalLM):
                    raise Failure(f"train.{setting}: is for language models; leave it out")
                getattr(student, setting)()
        data = job.streams["train"]
        first = data.batch(range(min(len(data), job.train.batch))).to(device)
        check_texts(job.method, first)
        longest = data.longest + job.sampling.max_new_tokens * bool(data.longest)
        made = job.method.players(Setup(student, job.teachers, first, len(data), longest))
        followers = {name: teacher.network for name, teacher in self._followers()}
        if taken := {"student", *followers} & set(made):
            raise RuntimeError(f"{type(job.method).__name__}: {sorted(taken)} are no names for it")
        return {"student": student, **{k: n.to(device) for k, n in made.items()}, **followers}

    def _followers(self) -> Iterator[tuple[str, Average]]:
        """Teachers that change with the student: a checkpoint must hold them."""
        for name, teacher in each(self.job.teachers):
            if isinstance(teacher, Average):
                if self.job.train.sharding:
                    raise Failure("teacher.average: does not go with train.sharding yet")
                yield name, teacher

    def run_all(self) -> Result:
        if not self._resumed():
            self.start = self._measure("test")
            self._validate()
            self._samples()
            self._save()
        self.run.plan(self.spent["cpu_seconds"])
        name = str(self.job.recipe.get("name", type(self.job.method).__name__))
        with progress_bar(name, self.run, show=self.show and self.processes.main) as tick:
            while self.run.step < self.run.steps and not self.ended:
                tick(self._step(), self.spent["seconds"])
                if self._due():
                    self._validate()
                    self._save()
        return self._finish()

    def _step(self) -> dict[str, float]:
        run, begun, cpu = self.run, time.perf_counter(), time.process_time()
        run.epoch, before = self.streams["train"].epoch, dict(run.tokens)
        live = [t.network for _, t in each(self.job.teachers) if isinstance(t, Local)]
        with run.clock("train"), narrowed(*run.players.values(), *live):
            try:
                log = iterate(run, run.next("train"))
            except Failure as error:
                last = checkpoint.step_of(checkpoint.saved(self.checkpoints)[-1])
                error.args = (f"{error}. The checkpoint of step {last} is whole",)
                raise
        for _, teacher in self._followers():
            teacher.follow(run.players["student"])
        log |= {f"time/{kind}": seconds for kind, seconds in run.clock.take().items()}
        run.step += 1
        self.record.line("metrics.jsonl", {"step": run.step, **log})
        self._count(before, time.process_time() - cpu)
        run.plan(self.spent["cpu_seconds"])
        self.spent["seconds"] += time.perf_counter() - begun
        return log

    def _count(self, before: Mapping[str, int], cpu_seconds: float) -> None:
        """Adds what all processes spent in this step; each knows of its own alone."""
        run = self.run
        own = [cpu_seconds, *(run.tokens[kind] - before[kind] for kind in before)]
        device = self.processes.device
        total = self.processes.total(torch.tensor(own, dtype=torch.float64, device=device))
        self.spent["cpu_seconds"] += float(total[0])
        for (kind, count), new in zip(before.items(), total[1:], strict=True):
            run.tokens[kind] = count + int(new)

    def _due(self) -> bool:
        every = self.job.eval.every
        return self.run.step == self.run.steps or (every is not None and not self.run.step % every)

    def _measure(self, split: str) -> dict[str, float]:
        suite = self.job.suite
        if suite is None:
            return {}
        own_draws = torch.random.fork_rng(devices=[])
        with own_draws, torch.no_grad(), self.run.clock("evaluate"), self.run.evaluating():
            return suite.measure(self.run.players, split)

    def _validate(self) -> None:
        values, step = self._measure("validation"), self.run.step
        took = self.run.clock.take()
        named = {f"validation/{k}": v for k, v in values.items()}
        self.record.line(
            "metrics.jsonl", {"step": step, **named, **{f"time/{k}": v for k, v in took.items()}}
        )
        with torch.no_grad():
            self.job.method.validated(self.run, values)
        if self._within_bounds(values) and self._preferred(values):
            self.best = {"step": step, "value": values.get(self.job.eval.select or "")}
            state = self.run.players["student"].state_dict(keep_vars=True)
            state = whole(state, keep=self.processes.main)
            if self.processes.main:
                checkpoint.save_best(self.checkpoints, step, state)

    def _preferred(self, values: Mapping[str, float]) -> bool:
        """Whether this student is kept in place of the one that was, by ``eval.select``.

        Without it the latest is; where ``eval.stop`` may end the run, it is set aside as well.
        """
        select, suite = self.job.eval.select, self.job.suite
        if select is None or suite is None:
            return suite is not None and bool(self.job.eval.stop)
        if select not in values:
            raise Failure(f"eval.select: no metric gives {select!r}; there is {sorted(values)}")
        sign = -1 if suite.higher_is_better(select) else 1
        best = math.nan if self.best is None else sign * self.best["value"]
        return sign * values[select] < best or math.isnan(best)  # a number beats what is none

    def _within_bounds(self, values: Mapping[str, float]) -> bool:
        """Ends the run where a number of ``eval.stop`` got too much worse than it was."""
        for name, margin in self.job.eval.stop.items():
            better = self.job.suite.columns()[name]["better"] if self.job.suite else None
            value, before = values[name], self.readings.setdefault(name, values[name])
            worse = {"lower": value - before, "higher": before - value}.get(
                better or "", abs(value - before)
            )
            if better is not None and worse < 0:
                self.readings[name] = value
            if not worse <= margin and not self.ended:
                self.ended = True
                kept = self.best["step"] if self.best else self.run.step
                self.run.note(
                    f"Stopped at step {self.run.step}: {name} came to {value:.4g} from "
                    f"{before:.4g}, and eval.stop allows a change of {margin:g} for the worse. "
                    f"The student is that of step {kept}"
                )
        return not self.ended

    def _save(self) -> None:
        randoms = self.processes.everyone(checkpoint.random_state())
        run, players = self.run, self.run.all.state()
        if not self.processes.main:
            return
        state = {
            "step": run.step,
            "data": _identity(self.job.ledger),
            "players": players,
            "random": randoms,
            "cursors": {name: stream.cursor for name, stream in self.streams.items()},
            "start": self.start,
            "best": self.best,
            "readings": self.readings,
            "ended": self.ended,
            "spent": self.spent,
            "tokens": run.tokens,
            "notes": run.notes,
        }
        checkpoint.save(self.checkpoints, run.step, state, keep=self.job.run.keep)
        checkpoint.drop_other_bests(self.checkpoints, self.best["step"] if self.best else None)

    def _resumed(self) -> bool:
        """Whether there was a checkpoint; then the run stands where it was written."""
        places = checkpoint.saved(self.checkpoints)
        if not places:
            self.record.rewind(-1)
            return False
        state, run = checkpoint.load(places[-1]), self.run
        if (before := len(state["random"])) != self.processes.world:
            raise Failure(
                f"{self.record.folder} holds a run of {before} process{'es'[: 2 * (before > 1)]} "
                f"and is taken up by {self.processes.world}: launch as many as before"
            )
        if state["data"] != (now := _identity(self.job.ledger)):
            raise Failure(
                f"{self.record.folder} holds a run on other data, though the recipe is the same: "
                f"they were {state['data']}, and are now {now}. Give another --out, or those data"
            )
        run.all.restore(state["players"])
        for name, cursor in state["cursors"].items():
            self.streams[name].cursor = cursor
        run.step, run.tokens, run.notes = state["step"], state["tokens"], state["notes"]
        self.start, self.best, self.spent = state["start"], state["best"], state["spent"]
        self.readings, self.ended = state["readings"], state["ended"]
        self.record.rewind(run.step)
        checkpoint.restore_random(state["random"][self.processes.rank])
        return True

    def _samples(self) -> None:
        if self.job.suite is not None and self.job.eval.samples:
            with self.run.evaluating():
                rows = self.job.suite.samples(self.run.players, self.job.eval.samples)
            now = self.run.step
            before = [r for r in self.record.lines("samples.jsonl") if r["step"] != now]
            self.record.replace_lines(
                "samples.jsonl", [*before, *({"step": now, **row} for row in rows)]
            )

    def _finish(self) -> Result:
        student: Any = self.run.players["student"]
        if self.best is not None:
            best = checkpoint.load_best(self.checkpoints, self.best["step"])
            student.load_state_dict(weights_for(student, best))
        test = self._measure("test")
        self._samples()
        if self.sharding is not None:
            self.sharding.restore()
            student = self.job.student
        info = {
            "steps": self.run.step,
            "selected_step": self.best["step"] if self.best else self.run.step,
            **{name: took + self.job.earlier.get(name, 0) for name, took in self.spent.items()},
            "tokens": self.run.tokens,
            "notes": self.run.notes,
            "data": dict(self.job.ledger),
            "start": self.start,
            "test": test,
        }
        if self.processes.main:
            _export(self.job, student, self.record.folder / "student")
            for name, place in self.job.beside.items():
                shutil.copytree(place, self.record.folder / "beside" / name, dirs_exist_ok=True)
        self.record.json("result.json", info)
        self.processes.wait()
        return Result(self.record.folder, student, self.start, test, info)


def _identity(ledger: Mapping[str, Any]) -> dict[str, Any]:
    """What tells these data from others; how their answers were collected does not."""
    how = ("collected", "pipeline")
    return {name: told for name, told in ledger.items() if name not in how}


def _export(job: Job, student: Any, folder: Path) -> None:
    """The student as ``from_pretrained`` loads it, written aside and moved into place."""
    aside = folder.with_name(".student.writing")
    shutil.rmtree(aside, ignore_errors=True)
    student.save(aside)
    if job.suite is not None and job.suite.renderer is not None:
        job.suite.renderer.tokenizer.save_pretrained(aside)
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(aside, folder)


@contextmanager
def _threads(wanted: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(wanted or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
