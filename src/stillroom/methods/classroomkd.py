"""Multi-teacher distillation where only mentors that do better than the student teach."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from annotated_types import Ge
from torch import Tensor

from stillroom.core import Batch, Method, Needs, Paper, Run, Term, Update
from stillroom.losses.divergences import forward_kl
from stillroom.losses.policy import label_logp


@dataclass(frozen=True, kw_only=True)
class ClassroomKD(Method):
    """Learn from those of several mentors that currently know the true class better (filtering).

    ``a_s CE(label, student) + sum_(m active) w_m tau_m^2 KL(softmax(mentor_m / tau_m) ||
    softmax(student / tau_m))`` with the score ``a_m = exp(mean log p_m(label))`` of the student and
    of each of n mentors, ``w_m = n a_m / sum_k a_k``, active where ``w_m >= w_student``, and
    ``tau_m = 1 + tau_0 |w_m - w_student| / max(w_m, w_student)``.

    Scores, weights and temperatures carry no gradient. The share of mentors that teach is logged as
    ``active``, and of each alone as ``active/NAME``: late in training it may come to 0, and then
    the labels alone are left.

    Differences: none where scores are of the batch and rounded, as in the authors' code. Their text
    scores each sample alone; that is ``granularity: sample``, where nothing is compared over the
    batch, though it is not split either.

    Args:
        granularity: ``batch``: a score is the geometric mean over the batch; ``sample``: each
            sample has its own scores, weights and temperatures.
        temperature_gain: tau_0, by how much the temperature grows with a mentor's lead; 0 is
            temperature 1 for all.
        rounded: whether ``a_m / sum_k a_k`` is rounded to two decimals, as in the authors' code, so
            that mentors within a hundredth of the student teach as well.
        active: who teaches. ``better``: the paper's filter; ``all``: none is left out; ``random``:
            as many as the filter lets pass, drawn anew in each step.
    """

    paper = Paper(
        "2409.20237", "Sarode, Khan, Shehzadi, Stricker, Afzal, 2025", "Classroom-Inspired "
        "Multi-Mentor Distillation with Adaptive Learning Strategies"
    )  # fmt: skip
    needs = Needs(teacher={"logits"}, student={"logits"}, whole=True, several=True)
    modality = "image"
    family = "multi-teacher"

    granularity: Literal["batch", "sample"] = "batch"
    temperature_gain: Annotated[float, Ge(0)] = 12.0
    rounded: bool = True
    active: Literal["better", "all", "random"] = "better"

    def updates(self, run: Run, batch: Batch) -> Iterator[Update]:
        student = run.student(batch).logits
        mentors = [run.teacher(batch, name).logits for name in run.teachers]
        batch = run.gather(batch)
        own, *theirs = self._scores([student, *mentors], batch)
        weights = self._weights(torch.stack([own, *theirs]))
        lead, level = weights[1:], weights[:1]
        teaches = self._active(run, lead >= level)
        heat = 1 + self.temperature_gain * _gap(lead, level)
        lessons = torch.zeros_like(batch.mask)
        for i, mentor in enumerate(mentors):
            tau = heat[i].unsqueeze(-1)  # [1, 1] of the batch, [B, 1] of samples
            value = heat[i] ** 2 * lead[i] * forward_kl(student / tau, mentor.detach() / tau)
            lessons = lessons + torch.where(teaches[i], value, 0)
        self._log(run, teaches, batch)
        label = -own.exp() * label_logp(student, batch.labels)
        yield Update([Term(label, name="label"), Term(lessons, name="mentors")])

    def _scores(self, logits: list[Tensor], batch: Batch) -> list[Tensor]:
        """Log of each model's score: [1], or [B] where each sample has its own."""
        each = [label_logp(z.detach(), batch.labels) for z in logits]
        if self.granularity == "sample":
            return each
        mask = batch.mask.to(each[0])
        count = mask.sum().clamp_min(torch.finfo(mask.dtype).tiny)
        return [(logp * mask).sum(0, keepdim=True) / count for logp in each]

    def _weights(self, scores: Tensor) -> Tensor:
        """``n a_m / sum_k a_k`` of student and mentors: never 0 / 0, however small all are."""
        share = scores.softmax(0)
        share = share.round(decimals=2) if self.rounded else share
        return share * (len(scores) - 1)

    def _active(self, run: Run, better: Tensor) -> Tensor:
        """Which mentors teach, [n, 1] or [n, B]."""
        if self.active == "all":
            return torch.ones_like(better)
        if self.active == "better":
            return better
        drawn = torch.tensor([run.uniform(i) for i in range(len(better))], device=better.device)
        return drawn.argsort().argsort()[:, None] < better.sum(0, keepdim=True)

    def _log(self, run: Run, teaches: Tensor, batch: Batch) -> None:
        counted = teaches.expand(-1, len(batch.mask))[:, batch.mask > 0].double()
        run.log(active=counted)
        run.log(**{f"active/{name}": t for name, t in zip(run.teachers, counted, strict=True)})


def _gap(lead: Tensor, level: Tensor) -> Tensor:
    """How far a mentor is from the student, as a share of the larger; 0 where both have nothing."""
    larger = torch.maximum(lead, level)
    return (lead - level).abs() / larger.clamp_min(torch.finfo(larger.dtype).tiny)
