"""TAKD: assistants between a large teacher and a small student, each taught by the one before."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any

from annotated_types import Ge, Gt, Le

from stillroom.core import Lesson, Needs, Paper, Pipeline, Work
from stillroom.methods.kd import KD


@dataclass(frozen=True, kw_only=True)
class TAKD(Pipeline):
    """Distils through teacher assistants: networks whose sizes lie between teacher and student.

    The first assistant learns from the recipe's teacher, each further one from the one before, and
    the student from the last, all from new random weights and by

    ``L = (1 - lam) CE(y, softmax(z_S)) + lam tau^2 KL(softmax(z_T / tau) || softmax(z_S / tau))``

    the mean over examples. Without assistants it is plain distillation, exactly; with ``lam`` 0
    nothing of a teacher is left. An assistant like the student is born-again distillation.

    The assistants' steps stand beside ``train.steps``, which are the student's: give an arm without
    assistants as many more where arms are compared at equal training.

    Differences: one lam and one tau hold for all models of a chain, where the paper chooses them
    for each. The authors' code divides the divergence by the number of classes too, so its lam
    means another share; it never reaches the first stage of its learning rates, and chooses by the
    test split. A study of all paths is a recipe with an arm for each.

    Args:
        assistants: networks as a recipe tells them (``{net: {kind: mlp, widths: [32]}}``), from the
            teacher's side to the student's.
        assistant_steps: of each; null is as many as the student's.
        soft_weight: lam, the share of the teacher's scores; the rest is the labels'.
        temperature: tau.
    """

    paper = Paper(
        "1902.03393", "Mirzadeh, Farajtabar, Li et al., 2020",
        "Improved Knowledge Distillation via Teacher Assistant",
    )  # fmt: skip
    needs = Needs(teacher={"logits"})
    modality = "image"
    family = "multi-step"

    assistants: list[dict[str, Any]] = field(default_factory=list)
    assistant_steps: Annotated[int, Ge(1)] | None = None
    soft_weight: Annotated[float, Ge(0), Le(1)] = 0.9
    temperature: Annotated[float, Gt(0)] = 4.0

    def questions(self, work: Work) -> int:
        return 0

    def run(self, work: Work) -> Lesson:
        method = KD(temperature=self.temperature, label_weight=1 - self.soft_weight)
        steps, teacher = self.assistant_steps or work.steps, None
        for place, network in enumerate(self.assistants, start=1):
            told = Lesson(
                f"assistant {place}", None, steps, method, network=network, draw=place,
                teacher=teacher,
            )  # fmt: skip
            teacher = work.teach(told)
        return Lesson("student", None, work.steps, method, teacher=teacher)
