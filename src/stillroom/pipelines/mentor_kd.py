"""Mentor-KD: a middle model adds rationales and soft labels to those of a large one."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Ge, Gt, Le
from torch import Tensor

from stillroom.core import Failure, Lesson, Needs, Paper, Pipeline, Work
from stillroom.data.rows import Row
from stillroom.losses.divergences import forward_kl
from stillroom.losses.policy import label_logp
from stillroom.methods._bases import LogitMethod


@dataclass(frozen=True, kw_only=True)
class MentorKD(Pipeline):
    """Distils a text-only large model's reasoning by a mentor between it and the student.

    1. ``D_T``: the large model's rationales, of which those with the right answer are kept.
    2. The mentor, larger than the student, learns ``D_T`` by cross-entropy, and is frozen.
    3. ``D_M``: ``n`` rationales that it writes to each question; again the right ones are kept.
    4. The student learns ``D_T + D_M`` by ``L = (1 - lam) L_rd + lam L_sd``, over the tokens of
       rationales:
       ``L_rd = mean_t -log p_S(o_t | x, o_<t)``
       ``L_sd = mean_t KL(softmax(z_M / T) || softmax(z_S / T))``, without ``T^2``.

    A text that a question has already, from either writer, is not taken twice. ``soft_weight: 0``
    is fine-tuning on both sets, ``n: 0`` distillation on ``D_T`` alone; at both 0 there is no
    mentor, and this is chain-of-thought distillation.

    Mentor and student read the same tokens: their vocabularies must be equal. The mentor's steps
    are its own, beside ``train.steps``; its learning rate and batch are the student's.

    Differences: the mentor that is kept is that of its last step, where the authors' code takes the
    epoch that is best on the test split. Means of tokens run over the batch.

    Args:
        mentor: the network that stands between, as a recipe tells one (``{model: NAME}``, ``{lm:
            ...}``); null is one like the student, whose steps then count among the student's.
        mentor_steps: null is as many as the student's; without ``mentor`` half of them.
        teacher_samples: rationales of the large model to each question.
        teacher_temperature: of these; null leaves it to the teacher.
        n: rationales of the mentor to each question.
        sample_temperature: of these.
        soft_weight: lam, the share of the soft labels.
        temperature: T, of the soft labels.
    """

    paper = Paper(
        "2410.09037", "Lee, Kim & Lee, 2024",
        "Mentor-KD: Making Small Language Models Better Multi-step Reasoners",
    )  # fmt: skip
    needs = Needs(teacher={"text"}, fresh=True)
    modality = "text"
    family = "reasoning"

    mentor: dict[str, Any] | None = None
    mentor_steps: Annotated[int, Ge(1)] | None = None
    teacher_samples: Annotated[int, Ge(1)] = 3
    teacher_temperature: Annotated[float, Ge(0)] | None = None
    n: Annotated[int, Ge(0)] = 3
    sample_temperature: Annotated[float, Gt(0)] = 1.3
    soft_weight: Annotated[float, Ge(0), Le(1)] = 0.3
    temperature: Annotated[float, Gt(0)] = 2.0

    def questions(self, work: Work) -> int:
        return self.teacher_samples * len(work.rows)

    def run(self, work: Work) -> Lesson:
        told = {"n": self.teacher_samples, "temperature": self.teacher_temperature}
        rows = _new(work.right(work.ask("answer", work.rows, **told)))
        if not (self.n or self.soft_weight):
            return Lesson("student", rows, work.steps)
        if not rows:
            raise Failure("mentor_kd: no rationale of the teacher has a right answer to learn from")
        folder, steps = self._taught(work, rows)
        if self.n:
            own = work.write(folder, work.rows, n=self.n, temperature=self.sample_temperature)
            found = _new(work.right(own), rows)
            work.tell("rationales that are learned", teacher=len(rows), mentor=len(found))
            rows = [*rows, *found]
        if not self.soft_weight:
            return Lesson("student", rows, steps)
        method = _Mentored(soft_weight=self.soft_weight, temperature=self.temperature)
        return Lesson("student", rows, steps, method=method, teacher=folder)

    def _taught(self, work: Work, rows: list[Row]) -> tuple[Path, int]:
        """The mentor's folder, and how many steps are left to the student."""
        steps = self.mentor_steps or (work.steps if self.mentor else work.steps // 2)
        left = work.steps if self.mentor else work.steps - steps
        if not self.mentor and not 0 < steps < work.steps:
            raise Failure(
                f"mentor_steps: a mentor like the student takes its steps from train.steps, "
                f"{work.steps}, and {steps} leave none for one of them: lower it, or name a mentor"
            )
        return work.teach(Lesson("mentor", rows, steps, network=self.mentor)), left


@dataclass(frozen=True, kw_only=True)
class _Mentored(LogitMethod):
    """``(1 - lam) CE + lam KL(softmax(mentor / T) || softmax(student / T))`` of a token."""

    paper = MentorKD.paper
    needs = Needs(teacher={"logits"})
    modality = "text"
    family = "reasoning"

    soft_weight: float
    temperature: float

    def objective(self, student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
        lam, T = self.soft_weight, self.temperature
        return lam * forward_kl(student / T, teacher / T) - (1 - lam) * label_logp(student, labels)


def _new(rows: Iterable[Row], before: Iterable[Row] = ()) -> list[Row]:
    """The first of each question's rows with a text that it does not have already."""
    seen, found = {(row["id"], row["completion"].strip()) for row in before}, []
    for row in rows:
        told = row["id"], row["completion"].strip()
        if told not in seen:
            seen.add(told)
            found.append(row)
    return found
