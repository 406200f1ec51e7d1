"""Temporally adaptive interpolated distillation: a target that moves from student to teacher."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Ge, Le, Lt
from torch import Tensor, nn

from stillroom.core import Batch, Failure, Needs, Paper, Run, Setup, Teacher, Term, Update
from stillroom.losses.divergences import forward_kl
from stillroom.losses.per_row import per_row
from stillroom.methods._bases import TokenMethod


@dataclass(frozen=True, kw_only=True)
class TAID(TokenMethod):
    """Reach for a blend of one's own scores and the teacher's, which turns into the teacher.

    ``J(t) = KL(softmax((1 - t) sg[student] + t teacher) || softmax(student))``, of logits, sg: no
    gradient. t begins at ``t_start``, where the target is near, and rises at least as a straight
    line to ``t_end``; a falling loss makes it rise faster. After step n of N:
    ``m = beta m + (1 - beta) (J_before - J) / J_before`` and
    ``t = min(t_end, max(t_start + (t_end - t_start) n / N, t + alpha sigmoid(m) (1 - t)))``.

    Differences: J is the divergence of the paper's equation; the authors' code takes the
    cross-entropy, of the same gradient, so that the entropy of the blend counts in the change of J.
    No J_before (the first step, where theirs waits) and one of 0 (t_start 0) count as no change.
    Their share of cross-entropy with the label, 0 by default, is left out. Where the run ends by
    time, N is what the steps so far make expect.

    Args:
        t_start: t of the first step; at 0 nothing is learned there.
        t_end: what t comes to; at 1 the target is the teacher's distribution.
        alpha: how fast t may leave the line; 0 keeps it there.
        beta: of the moving average of the relative change of J.
    """

    paper = Paper(
        "2501.16937", "Shing, Misaki, Bao, Yokoi, Akiba, 2025", "TAID: Temporally Adaptive "
        "Interpolated Distillation for Efficient Knowledge Transfer in Language Models"
    )  # fmt: skip
    needs = Needs(teacher={"logits"}, student={"logits"})
    modality = "text"
    family = "logits"

    t_start: Annotated[float, Ge(0), Le(1)] = 0.4
    t_end: Annotated[float, Ge(0), Le(1)] = 1.0
    alpha: Annotated[float, Ge(0), Le(1)] = 5e-4
    beta: Annotated[float, Ge(0), Lt(1)] = 0.99

    def check(self, teacher: Teacher) -> None:
        if self.t_end < self.t_start:
            raise Failure(
                f"taid: t rises from t_start to t_end, but these are {self.t_start:g} and "
                f"{self.t_end:g}; raise t_end or lower t_start"
            )

    def players(self, setup: Setup) -> Mapping[str, nn.Module]:
        return {"schedule": _Schedule(self.t_start)}

    def target(self, student: Tensor, teacher: Tensor, t: Tensor | float = 1.0) -> Tensor:
        return (1 - t) * student.detach() + t * teacher

    def divergence(self, student: Tensor, target: Tensor) -> Tensor:
        return forward_kl(student, target)

    def objective(
        self, student: Tensor, teacher: Tensor | None, labels: Tensor, t: Tensor | None = None
    ) -> Tensor:
        assert teacher is not None
        assert t is not None
        t = t.to(student.dtype).unsqueeze(-1)
        return self.divergence(student, self.target(student, teacher, t))

    def updates(self, run: Run, batch: Batch) -> Iterator[Update]:
        schedule: _Schedule = run.players["schedule"]
        student, teacher = run.student(batch), run.teacher(batch)
        t = schedule.t.expand(len(batch.labels))
        value = per_row(self.objective, student, teacher, batch.labels, t=t)
        schedule.add(value.detach(), batch.mask)
        run.log(**{"taid/t": schedule.t})
        yield Update(Term(value))

    def after(self, run: Run, batch: Batch) -> None:
        schedule: _Schedule = run.players["schedule"]
        total, count = run.gather(schedule.seen[None]).sum(0)  # processes share one J
        schedule.seen.zero_()
        if count > 0:
            schedule.learn(total / count, self.beta)
        faster = schedule.t + self.alpha * schedule.momentum.sigmoid() * (1 - schedule.t)
        line = self.t_start + (self.t_end - self.t_start) * (run.step + 1) / run.steps
        schedule.t.copy_(faster.clamp(min=line).clamp(max=self.t_end))
        run.log(**{"taid/momentum": schedule.momentum})


class _Schedule(nn.Module):
    """t and what moves it: the last J, and the moving average of its relative change.

    ``seen``: sum of the values of this step's rows on this process, and how many they are.
    """

    t: Tensor
    momentum: Tensor
    before: Tensor
    seen: Tensor

    def __init__(self, start: float) -> None:
        super().__init__()
        zero = torch.zeros((), dtype=torch.float64)
        self.register_buffer("t", zero + start)
        self.register_buffer("momentum", zero.clone())
        self.register_buffer("before", zero.clone())
        self.register_buffer("seen", zero.new_zeros(2))

    @torch.no_grad()
    def add(self, value: Tensor, mask: Tensor) -> None:
        counted = torch.where(mask > 0, value, 0).double()
        self.seen += torch.stack([(counted * mask).sum(), mask.double().sum()])

    def learn(self, loss: Tensor, beta: float) -> None:
        change = torch.where(self.before > 0, 1 - loss / self.before, 0.0)
        self.momentum.copy_(beta * self.momentum + (1 - beta) * change)
        self.before.copy_(loss)
