"""What a method may touch during a step: networks, teachers, samples, streams, log."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from stillroom.core import Batch, Failure, Signals, Teacher
from stillroom.data.streams import Stream
from stillroom.data.text import collate, prompts_of
from stillroom.engine.job import Job
from stillroom.engine.parallel import Processes
from stillroom.engine.players import Players
from stillroom.models.text import CausalLM, mode
from stillroom.rollouts.guided import Guided, Rule
from stillroom.rollouts.sampling import Sampling, sample, uniform
from stillroom.teachers.local import Local

UNKNOWN = 10**6
"""Steps that a run is said to have before its first one told how long they take."""
ROLLOUT_TOKENS = 2**17
"""Tokens (prompt and answer, padded) that are sampled side by side."""


class Clock:
    """Seconds by kind of work; an inner block's time is not counted in the outer one."""

    def __init__(self) -> None:
        self.spent: dict[str, float] = {}
        self._open: list[str] = []
        self._since = time.perf_counter()

    @contextmanager
    def __call__(self, kind: str) -> Iterator[None]:
        self._charge()
        self._open.append(kind)
        try:
            yield
        finally:
            self._charge()
            self._open.pop()

    def _charge(self) -> None:
        now = time.perf_counter()
        if self._open:
            kind = self._open[-1]
            self.spent[kind] = self.spent.get(kind, 0.0) + now - self._since
        self._since = now

    def take(self) -> dict[str, float]:
        """What was spent since the last call."""
        spent, self.spent = self.spent, {}
        return spent


class Run:
    """The engine's side of ``core.Run``."""

    def __init__(
        self, job: Job, players: Players, streams: Mapping[str, Stream], processes: Processes
    ) -> None:
        self.method, self.all, self.teachers = job.method, players, job.teachers
        self.players: Mapping[str, nn.Module] = players.networks
        self.streams, self.processes, self.train = streams, processes, job.train
        self.seed, self.sampling, self.pad_id = job.run.seed, job.sampling, job.pad_id
        self.step, self.steps, self.epoch = 0, job.train.steps or 0, 0
        self.per_epoch = len(streams["train"].data) / job.train.batch
        self.clock = Clock()
        self.tokens = {"trained": 0, "generated": 0}
        self.notes: list[str] = []
        self._logged: dict[str, tuple[Tensor, int]] = {}

    @property
    def progress(self) -> float:
        return self.step / max(1, self.steps)

    @property
    def epochs(self) -> float:
        return self.steps / self.per_epoch

    def plan(self, cpu_seconds: float) -> None:
        """Where time is the measure: how many steps it will be, by what they took so far."""
        if self.train.cpu_seconds is None:
            return
        share = cpu_seconds / self.train.cpu_seconds
        expected = round(self.step / share) if share else UNKNOWN
        self.steps = self.step if share >= 1 else max(self.step + 1, expected)

    def autocast(self) -> Any:
        wanted = self.train.precision == "bf16"
        return torch.autocast(self.processes.device.type, torch.bfloat16, enabled=wanted)

    def evaluating(self) -> Any:
        """Evaluation is in full precision, unless what is gathered is not."""
        return self.autocast() if self.train.sharding else nullcontext()

    def student(self, batch: Batch) -> Signals:
        return self._said(self.players["student"], batch)

    def teacher(self, batch: Batch, name: str = "teacher", *, grad: bool = False) -> Signals:
        teacher = self.teachers[name]
        if "x_teacher" in batch:  # its own view of the examples
            batch = batch.add(x=batch.x_teacher)
        with self.clock("teacher"):
            return self._said(lambda part: teacher(part, grad=grad), batch)

    def _said(self, speaker: Any, batch: Batch) -> Signals:
        """Signals of a batch: in parts where no graph is kept, of all processes if ``whole``."""
        if torch.is_grad_enabled():
            said = speaker(batch)
        else:
            said = _joined([speaker(part) for part in self.parts(batch)])
        return self.gather(said) if self.method.needs.whole else said

    def functional(self, player: str, weights: Mapping[str, Tensor], batch: Batch) -> Any:
        """What a player would say with other weights, as ``torch.func.functional_call`` does.

        ``weights`` by name of ``named_parameters``, those that are left out being its own;
        gradients of any order reach them. The batch is read whole, by this process alone.
        """
        with sdpa_kernel(SDPBackend.MATH):  # of attention the only one with a second derivative
            return torch.func.functional_call(self.players[player], dict(weights), (batch,))

    def parts(self, batch: Batch) -> list[Batch]:
        """Micro-batches; as many on every process where these speak together or not at all."""
        parts = batch.split(self.train.tokens_per_micro)
        if not self.train.sharding:
            return parts
        return batch.split(self.train.tokens_per_micro, self.processes.most(len(parts)))

    def ask(self, player: str, batch: Batch) -> Any:
        """What a player says of a batch, or a method of it (``critic.read``).

        In eval mode, without gradient, in micro-batches.
        """
        name, _, part = player.partition(".")
        network = self.players[name]
        speaker: Any = getattr(network, part) if part else network
        with torch.no_grad(), mode(network, training=False):
            return _joined([speaker(part) for part in self.parts(batch)])

    def rollout(
        self,
        batch: Batch,
        n: int = 1,
        *,
        guide: Rule | None = None,
        by: str = "teacher",
        player: str = "student",
        **sampling: Any,
    ) -> Batch:
        """``n`` answers of the student to each prompt: ``B * n`` sequences, groups together.

        ``ended`` [B * n] says which came to a stop id. ``sampling`` replaces the recipe's values.
        ``guide`` is a rule of ``rollouts.guided``, by which the teacher named ``by``, a language
        model in this process, has a say in each token; what the rule notes are row fields.
        ``player`` is who writes: one that is not the student draws by the same numbers in each
        step, so that a frozen one answers a question as it did before.
        """
        told = Sampling(**{**vars(self.sampling), **sampling})
        prompts = prompts_of(batch)
        longest = max(len(p) for p in prompts) + told.max_new_tokens
        if self.train.sharding:
            longest = self.processes.most(longest)
        side = max(1, ROLLOUT_TOKENS // (longest * n))
        at = (self.step,) if player == "student" else ()
        seed = int(uniform(self.seed, *at) * 2**53)
        student: Any = self.players[player]
        pair = None if guide is None else Guided(student, _guide(self.teachers[by], by), guide)
        answers: list[list[int]] = []
        notes: list[dict[str, Tensor]] = []
        with self.clock("generate"), self.autocast():
            for i in range(0, len(prompts), side):
                part, ids = prompts[i : i + side], batch.id[i : i + side]
                if pair is None:
                    answers += sample(student, part, ids, n, seed=seed, sampling=told)
                else:
                    said = pair.sample(part, ids, n, seed=seed, sampling=told)
                    answers, notes = answers + said.tokens, [*notes, dict(said.notes)]
        self.tokens["generated"] += sum(len(a) for a in answers)
        pairs = [(prompts[i // n], answer) for i, answer in enumerate(answers)]
        made = collate(pairs, batch.id.cpu().repeat_interleave(n), self.pad_id)
        stops = set(student.stop_ids)
        ended = torch.tensor([answer[-1] in stops for answer in answers])
        if "route" in batch:
            made = made.add(route=batch.route.cpu().repeat_interleave(n))
        noted = {k: v.cpu() for k, v in _joined(notes).items()} if notes else {}
        return made.add(ended=ended).add_rows(**noted).to(self.processes.device)

    def next(self, stream: str) -> Batch:
        return self.streams[stream].next().to(self.processes.device)

    def everything(self, stream: str) -> Iterator[Batch]:
        """Every sample of a stream once, without a view, in batches; it goes on as if not read.

        What fills the last batch up has mask 0. Each process gets its share, of one size.
        """
        for batch in self.streams[stream].everything():
            yield batch.to(self.processes.device)

    def gather(self, value: Any) -> Any:
        """The shares of all processes, joined along the first axis, with gradient."""
        return self.processes.gather(value)

    def uniform(self, tag: int = 0) -> float:
        """A number in [0, 1) of this step, the same on every process."""
        return float(uniform(self.seed, self.step, tag + 1))

    def reset(self, player: str) -> None:
        self.all.reset(player)

    def log(self, **values: Tensor | float) -> None:
        """Numbers of this step; tensors are averaged over entries, micro-batches, processes."""
        for name, value in values.items():
            tensor = torch.as_tensor(value, dtype=torch.float64, device=self.processes.device)
            total, count = self._logged.get(name, (torch.zeros((), dtype=torch.float64), 0))
            self._logged[name] = (total.to(tensor.device) + tensor.sum(), count + tensor.numel())

    def note(self, text: str) -> None:
        """A sentence for the reader, kept once."""
        if text not in self.notes:
            self.notes.append(text)

    def logged(self) -> dict[str, float]:
        """The step's numbers so far; starts the next step's."""
        if not self._logged:
            return {}
        pairs = [torch.stack([t, t.new_tensor(float(n))]) for t, n in self._logged.values()]
        sums = self.processes.total(torch.stack(pairs))
        names, self._logged = list(self._logged), {}
        return {k: float(t / n) for k, (t, n) in zip(names, sums, strict=True)}


def _joined(parts: list[Any]) -> Any:
    """Parts of one thing said: tensors end to end, what is no tensor once."""
    first = parts[0]
    if len(parts) == 1:
        return first
    if isinstance(first, Tensor):
        return torch.cat(parts)
    if isinstance(first, dict):
        return type(first)({name: _joined([p[name] for p in parts]) for name in first})
    return first


def _guide(teacher: Teacher, name: str) -> CausalLM:
    """The network of a teacher that can read along with the student."""
    network = teacher.network if isinstance(teacher, Local) else None
    if "weights" in teacher.signals and isinstance(network, CausalLM):
        return network
    raise Failure(
        f"the teacher {name!r} cannot guide what the student writes: that takes a language model "
        "in this process with the student's vocabulary (teacher: {model: NAME}), and this one "
        f"gives {sorted(teacher.signals)}. Methods that sample from the student alone, such as "
        "gkd, need its scores only"
    )
