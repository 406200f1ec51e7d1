"""Adaptive teaching: what the teacher finds easy is taught without its label, the rest with it."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Le, Lt
from torch import Tensor
from torch.nn.functional import pad

from stillroom.core import Batch, Method, Needs, Paper, Run, Signals, Term, Update
from stillroom.losses.decoupled import log_odds, others_kl, target_kl
from stillroom.losses.per_row import per_row

ROUNDING = 1e-5
"""What two passes may make of one token in float32: equal ones must not be parted by it."""


@dataclass(frozen=True, kw_only=True)
class ATKD(Method):
    """Split distillation into label and other tokens; learn the label where the teacher doubts it.

    ``UNC = 1 - p_teacher(label)``, m its median over the supervised tokens of the batch;
    ``L = w mean_(UNC < m) NCKD + (1 - w) mean_(UNC >= m) (TCKD + NCKD)``, where TCKD is the KL of
    label against not-label and NCKD that of all other tokens, renormalised. Plain distillation is
    ``TCKD + UNC NCKD``: UNC, which would silence the second part where the teacher is sure, is
    gone. A group without tokens adds nothing.

    Differences: the median is that of all processes, the mean of the two middle values where their
    number is even; what differs from it by rounding alone is hard. Temperature is 1 everywhere, as
    in the paper. The teacher is asked once, so what it said of the whole batch is kept for a step.

    Args:
        easy_weight: w, the share of the easy tokens in the loss.
        easy: share of the tokens that count as easy; 0 takes all as hard.
        divergence: ``reverse`` has both parts the other way round, KL(student || teacher); the
            split stays.
    """

    paper = Paper(
        "2402.11890", "Zhong et al., 2024", "Revisiting Knowledge Distillation for "
        "Autoregressive Language Models"
    )  # fmt: skip
    needs = Needs(teacher={"logits"}, student={"logits"})
    modality = "text"
    family = "logits"

    easy_weight: Annotated[float, Ge(0), Le(1)] = 0.2
    easy: Annotated[float, Ge(0), Lt(1)] = 0.5
    divergence: Literal["forward", "reverse"] = "forward"

    def prepare(self, run: Run, batch: Batch) -> Batch:
        """Masks of both groups, and what the teacher said, so that it is asked once."""
        said = run.teacher(batch)
        unsure = per_row(_uncertainty, said, None, batch.labels)
        counted = batch.mask > 0
        line = _quantile(_of_all(run, unsure[counted]), self.easy)
        easy = unsure < line * (1 - ROUNDING)
        run.log(**{"atkd/line": line, "atkd/easy": easy[counted]})
        masks = {"easy": batch.mask * easy, "hard": batch.mask * ~easy}
        kept = {f"teacher_{k}": said[k] for k in ("hidden", "logits") if k in said}
        return batch.add(teacher_head=said.get("head")).add_rows(**masks, **kept)

    def updates(self, run: Run, batch: Batch) -> Iterator[Update]:
        kept = {k: batch.get(f"teacher_{k}") for k in ("hidden", "head", "logits")}
        teacher = Signals({k: v for k, v in kept.items() if v is not None})
        student, hard = run.student(batch), batch.hard > 0
        value = per_row(self._split, student, teacher, batch.labels, hard=hard)
        easy = Term(value, over="easy", weight=self.easy_weight, name="easy")
        yield Update([easy, Term(value, over="hard", weight=1 - self.easy_weight, name="hard")])

    def _split(self, student: Tensor, teacher: Tensor, labels: Tensor, hard: Tensor) -> Tensor:
        """NCKD, and TCKD beside it where a token is hard."""
        own, other = (student, teacher) if self.divergence == "forward" else (teacher, student)
        label = target_kl(own, other, labels)
        return others_kl(own, other, labels) + torch.where(hard, label, 0)


def _uncertainty(teacher: Tensor, nobody: None, labels: Tensor) -> Tensor:
    """1 - p(label), to the last digit also where p is nearly 1."""
    return torch.sigmoid(-log_odds(teacher, labels))


def _of_all(run: Run, values: Tensor) -> Tensor:
    """[n] of each process, where n may differ, end to end."""
    most = int(run.gather(values.new_full((1,), float(len(values)))).max())
    padded = pad(values, (0, most - len(values)), value=torch.nan)
    joined = run.gather(padded)
    return joined[~joined.isnan()]


def _quantile(values: Tensor, share: float) -> Tensor:
    """Between the two next values where none is at that place; of nothing 0."""
    return values.quantile(share) if len(values) else values.new_zeros(())
