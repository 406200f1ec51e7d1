"""Speculative knowledge distillation: student and teacher write the training text together."""

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge, Gt, Le
from torch import Tensor

from stillroom.core import Batch, Needs, Paper, Run
from stillroom.losses.divergences import jsd
from stillroom.methods._bases import TokenMethod
from stillroom.rollouts.guided import Interleaved


@dataclass(frozen=True, kw_only=True)
class SKD(TokenMethod):
    """Distillation on interleaved samples: the teacher replaces the tokens that it would not say.

    Token by token ``y_k ~ q(. | x, y_<k)`` from the student, kept where it is among the ``top_k``
    likeliest of ``p(. | x, y_<k)``, else ``y_k ~ p`` from the teacher. On that text
    ``D_beta(p(. | x, y_<k) || q(. | x, y_<k))`` at temperature 1, over all tokens of the
    vocabulary, as GKD has it. Early on most tokens are the teacher's, later most are the student's,
    without a schedule. With ``top_k`` of the whole vocabulary the text is the student's own (GKD
    with ``on_policy: 1``).

    Differences: the mean runs over all tokens of the batch, as in the authors' code; the paper's
    formula has that of each answer first. All tokens of the answer count, of which the code leaves
    out the first; what was sampled is not turned into text and back into other tokens. A token is
    proposed at a time where the code drafts five: the law of the text is the same.

    Args:
        beta: 0 is KL(teacher || student), the paper's choice, 1 KL(student || teacher), between
            them JSD.
        top_k: a proposal stays if it is among so many of the teacher's likeliest tokens, before
            temperature and top_p.
        sample_temperature: of the student's proposals.
        sample_top_p: of the student's proposals.
        teacher_temperature: of the teacher's replacements; 0 takes its likeliest token.
        teacher_top_p: of the teacher's replacements.
    """

    paper = Paper(
        "2410.11325", "Xu et al., 2025", "Speculative Knowledge Distillation: Bridging the "
        "Teacher-Student Gap Through Interleaved Sampling"
    )  # fmt: skip
    needs = Needs(teacher={"logits", "weights"}, student={"logits"}, rollouts=True, fresh=True)
    modality = "text"
    family = "on-policy"

    beta: Annotated[float, Ge(0), Le(1)] = 0.0
    top_k: Annotated[int, Ge(1)] = 25
    sample_temperature: Annotated[float, Gt(0)] = 0.5
    sample_top_p: Annotated[float, Gt(0), Le(1)] = 0.5
    teacher_temperature: Annotated[float, Ge(0)] = 0.2
    teacher_top_p: Annotated[float, Gt(0), Le(1)] = 0.5

    def sequences(self, run: Run, batch: Batch) -> Batch:
        guide = Interleaved(
            top_k=self.top_k, temperature=self.teacher_temperature, top_p=self.teacher_top_p
        )
        t, p = self.sample_temperature, self.sample_top_p
        made = run.rollout(batch, guide=guide, temperature=t, top_p=p)
        run.log(**{"skd/replaced": made["replaced"]})
        return made

    def divergence(self, student: Tensor, target: Tensor) -> Tensor:
        return jsd(student, target, beta=self.beta)
