"""One critic for the answers of all arms: the one that was fitted before any of them learned."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from stillroom.core import Batch, Failure
from stillroom.data.text import TextData
from stillroom.evaluation.suite import View, mean
from stillroom.losses.per_row import per_row
from stillroom.losses.policy import label_logp
from stillroom.models.cut import Early
from stillroom.models.text import CausalLM
from stillroom.nets.pooled import MeanState, fit
from stillroom.rollouts.sampling import Sampling

SPLIT = "test"
"""Measured there alone: it reads each answer with two more networks."""
COLUMNS = {
    "first_critic_gap": ("first critic's score, teacher minus student", None),
    "first_critic_accuracy": ("first critic prefers the teacher", None),
    "fresh_critic_accuracy": ("a critic fitted to these answers prefers the teacher", None),
    "base_nll": ("nats a token of the answers, to the start", None),
}
PAIRS, L2 = 256, 10.0
"""Of the first critic."""
DEPTH = 2 / 3
"""Share of the start's layers that are read: later ones told no more apart, and cost more."""


class Judge:
    """The start of a run as a reader of answers, and a linear critic on what it reads.

    Args:
        start: a snapshot of the student before it learns.
        data: the training split.
        keep: ``keep(name, make, **inputs)`` gives the folder that ``make`` filled.
        view: what :class:`View` needs to sample: ``renderer``, ``budget`` and ``sampling``, of
            which only the length is used: an arm's temperature changes nothing.
    """

    def __init__(
        self, start: CausalLM, data: TextData, keep: Callable[..., Path], **view: Any
    ) -> None:
        self.start, self.keep = start, keep
        layers = round(DEPTH * start.model.config.get_text_config().num_hidden_layers)
        self.reader = MeanState(Early(start, max(1, layers)))
        view["sampling"] = Sampling(max_new_tokens=view["sampling"].max_new_tokens)
        some = TextData(data.examples[:PAIRS], data.pad_id)
        self.view = View(players={"student": start}, data=some, **view)

    @cached_property
    def critic(self) -> tuple[Tensor, Tensor]:
        """Weights and centre, fitted once to teacher text against the start's own answers."""
        inputs = {"start": self._digest(), "length": self.view.sampling.max_new_tokens}
        data: Any = self.view.data
        inputs["data"] = [[e.prompt_ids, e.completion_ids] for e in data.examples]

        def make(folder: Path) -> None:
            weight, centre = fit(*self.read(self.view), L2)
            save_file({"weight": weight, "centre": centre}, folder / "critic.safetensors")

        told = load_file(self.keep("judge", make, **inputs) / "critic.safetensors")
        return told["weight"], told["centre"]

    def score(self, read: Tensor) -> Tensor:
        """[n, d] features to [n] scores of the first critic."""
        weight, centre = (part.to(read.device) for part in self.critic)
        return (read - centre) @ weight

    def read(self, view: View) -> tuple[Tensor, Tensor]:
        """Features [n, d] of the teacher's and the student's answers, pair by pair."""
        self.start.to(next(view.student.parameters()).device)
        found = [
            (self.reader(a).repeat_interleave(view.copies, 0), self.reader(b))
            for a, b in view.answered()
        ]
        theirs, own = (torch.cat(side) for side in zip(*found, strict=True))
        return theirs, own

    def nll(self, batches: Iterator[Batch]) -> float:
        """Nats a token of answers, to the start."""
        return -mean([per_row(_logp, self.start(b), None, b.labels) for b in batches])

    def _digest(self) -> str:
        """A hash of the start's weights."""
        told = hashlib.blake2b(digest_size=16)
        for name, value in self.start.state_dict().items():
            told.update(name.encode())
            told.update(memoryview(value.detach().cpu().reshape(-1).view(torch.uint8).numpy()))
        return told.hexdigest()


def ready(view: View) -> None:
    """Raises Failure where there are no texts to judge, or too few."""
    if view.judge is None:
        raise Failure("eval.metrics: judge reads answers of a language model; there is none here")
    if len(view.data) < 2:
        raise Failure("eval.metrics: judge needs two test prompts or more")


def measure(view: View) -> dict[str, float]:
    """Whether a critic that the students could not deceive tells their answers from the teacher's.

    ``first_critic_gap`` and ``_accuracy``: mean difference of scores, and pairs that the teacher's
    answer wins (a tie counts a half), by the critic that was fitted to the start before anything
    was learned. ``fresh_critic_accuracy``: a critic fitted to the pairs of one half of the prompts
    judges the other half; the mean of both ways. ``base_nll``: nats a token of the answers to the
    start: lower by plain sharpening, too.
    """
    judge: Judge = view.judge
    theirs, own = judge.read(view)
    gap = judge.score(theirs) - judge.score(own)
    return {
        "first_critic_gap": float(gap.mean()),
        "first_critic_accuracy": won(gap),
        "fresh_critic_accuracy": fresh(theirs, own, view.copies),
        "base_nll": judge.nll(batch for _, batch in view.answered()),
    }


def teacher(view: View) -> dict[str, float]:
    """What the teacher's own text costs the start."""
    return {"base_nll": view.judge.nll(view.batches())}


def fresh(theirs: Tensor, own: Tensor, copies: int) -> float:
    """Held-out accuracy of critics fitted to half of the pairs [n, d]; no prompt on both sides."""
    half = len(own) // copies // 2 * copies
    sides = slice(None, half), slice(half, None)
    found = []
    for learned, judged in (sides, sides[::-1]):
        weight, _ = fit(theirs[learned], own[learned], L2)
        found.append(won((theirs[judged] - own[judged]) @ weight))
    return sum(found) / 2


def won(gap: Tensor) -> float:
    """Share of positive differences; 0 counts a half."""
    return float((torch.sign(gap).mean() + 1) / 2)


def _logp(student: Tensor, teacher: Tensor | None, labels: Tensor) -> Tensor:
    return label_logp(student, labels)
