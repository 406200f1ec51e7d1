"""Generalised knowledge distillation: the teacher scores what the student writes."""

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge, Gt, Le
from torch import Tensor

from stillroom.core import Batch, Needs, Paper, Run
from stillroom.losses.divergences import jsd
from stillroom.methods._bases import TokenMethod


@dataclass(frozen=True, kw_only=True)
class GKD(TokenMethod):
    """On-policy distillation: the teacher scores every token of the student's own answers.

    ``D_beta(teacher(. | x, y_<k) || student(. | x, y_<k))`` with the generalised Jensen-Shannon
    divergence; with probability ``on_policy`` a step's answers y are sampled from the student
    (no gradient through sampling), else they are the data's.

    Differences: the mean runs over all tokens of the batch, the paper's over each answer first.
    One draw a step decides for the whole batch. The reward term of the paper's equation for
    reinforcement learning is left out.

    Args:
        beta: 0 is KL(teacher || student), 1 is KL(student || teacher), between them JSD.
        on_policy: the paper's lambda, the share of steps on the student's own answers.
        sample_temperature: of the student's answers; the divergence is at temperature 1.
    """

    paper = Paper(
        "2306.13649", "Agarwal et al., 2024", "On-Policy Distillation of Language Models: "
        "Learning from Self-Generated Mistakes"
    )  # fmt: skip
    needs = Needs(teacher={"topk"}, student={"logits"}, rollouts=True, fresh=True)
    modality = "text"
    family = "on-policy"

    beta: Annotated[float, Ge(0), Le(1)] = 0.5
    on_policy: Annotated[float, Ge(0), Le(1)] = 0.5
    sample_temperature: Annotated[float, Gt(0)] = 1.0

    def sequences(self, run: Run, batch: Batch) -> Batch:
        if run.uniform() >= self.on_policy:
            return batch
        return run.rollout(batch, temperature=self.sample_temperature)

    def divergence(self, student: Tensor, target: Tensor) -> Tensor:
        return jsd(student, target, beta=self.beta)
