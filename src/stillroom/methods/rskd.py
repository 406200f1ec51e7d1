"""Random sampling knowledge distillation: draws from the teacher in place of all its scores."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor

from stillroom.core import Batch, Failure, Needs, Paper, Run, Signals, Sparse, Term
from stillroom.losses.divergences import forward_kl
from stillroom.losses.per_row import per_row
from stillroom.losses.policy import label_logp
from stillroom.losses.sparse import draws, top_k
from stillroom.methods._bases import LogitMethod
from stillroom.rollouts.sampling import uniform


@dataclass(frozen=True, kw_only=True)
class RSKD(LogitMethod):
    """Distillation from few tokens a position: an unbiased sample, or the usual biased choices.

    ``L = sum_i w_i (log w_i - log p_i)`` over the tokens that came in ``draws`` draws from the
    teacher, ``w_i`` their relative counts: its gradient ``p - w`` is on average that of forward
    KL. ``(1 - label_weight) L + label_weight CE(label)`` where the label counts as well.

    The other targets are the paper's baselines, of the ``k`` likeliest tokens ``K`` with
    probabilities ``t``, mass ``a``:

    - ``topk``: ``sum_K t log(t / p)``, not normalised: its optimum is ``t / a`` on K;
    - ``renormalised``: the same with ``t / a``;
    - ``smoothed``: what is left, spread evenly over all other tokens;
    - ``ghost``: what is left as one more token, ``sum_K t log(t / p) + (1 - a) log((1 - a) /
      (1 - sum_K p))``, forward KL of the merged distributions;
    - ``naive``: what is left, added to the label.

    Differences: a teacher in this process is drawn from anew in each step; draws in a store stay as
    they are (``teacher.signals: sampled:50``), as the paper's, and so their noise does not average
    out over passes. The baselines' ``k`` is that of a store, too.

    Args:
        target: see above.
        draws: from a teacher that gives logits; a store has its own number.
        proposal: tau, draws come from ``t^tau`` and are weighted by ``t / t^tau``.
        top_k: k, likewise.
        label_weight: the share of the cross-entropy with the data's token.
    """

    paper = Paper(
        "2503.16870", "Anshumann et al., 2025", "Sparse Logit Sampling: Accelerating Knowledge "
        "Distillation in LLMs"
    )  # fmt: skip
    needs = Needs(teacher={"sparse"}, student={"logits"})
    modality = "text"
    family = "logits"

    target: Literal["sampled", "topk", "renormalised", "smoothed", "ghost", "naive"] = "sampled"
    draws: Annotated[int, Ge(1)] = 50
    proposal: Annotated[float, Gt(0)] = 1.0
    top_k: Annotated[int, Ge(1)] = 12
    label_weight: Annotated[float, Ge(0), Le(1)] = 0.0

    def prepare(self, run: Run, batch: Batch) -> Batch:
        """Numbers to draw by: of step, sample, place and draw, so that no split changes them."""
        if self.target != "sampled":
            return batch
        seed, owner = int(run.uniform() * 2**53), batch.owner
        place = batch.rows - owner * batch.ids.shape[1] - batch.real.int().argmax(1)[owner]
        who, where = batch.id[owner].unsqueeze(-1), place.unsqueeze(-1)
        numbers = uniform(seed, who.cpu(), where.cpu(), torch.arange(self.draws))
        return batch.add_rows(uniform=numbers.to(batch.ids.device))

    def loss(
        self, student: Signals, teacher: Signals, batch: Batch, nets: Mapping[str, Any]
    ) -> Term:
        given = {"uniform": batch["uniform"]} if "uniform" in batch else {}
        return Term(per_row(self.objective, student, teacher, batch.labels, **given))

    def objective(
        self, student: Tensor, teacher: Any, labels: Tensor, uniform: Tensor | None = None
    ) -> Tensor:
        told = teacher if isinstance(teacher, Sparse) else self._picked(teacher, uniform)
        if told.drawn != (self.target == "sampled"):
            gives = "draws" if told.drawn else "the likeliest tokens"
            raise Failure(f"rskd: the target {self.target!r} cannot be made of {gives}")
        soft = self._soft(student, told, labels)
        w = self.label_weight
        return soft if w == 0 else (1 - w) * soft - w * label_logp(student, labels)

    def _picked(self, teacher: Tensor, uniform: Tensor | None) -> Sparse:
        if self.target != "sampled":
            return top_k(teacher, self.top_k)
        assert uniform is not None
        return draws(teacher, uniform, proposal=self.proposal)

    def _soft(self, student: Tensor, told: Sparse, labels: Tensor) -> Tensor:
        if self.target in ("sampled", "ghost"):
            return forward_kl(student, told)
        logp = student.log_softmax(-1, dtype=torch.promote_types(student.dtype, torch.float32))
        own, logt = logp.gather(-1, told.ids), told.logp.to(logp.dtype)
        rest = told.tail.to(logp.dtype)
        if self.target == "renormalised":
            logt = logt.log_softmax(-1)
        value = (logt.exp() * (logt - own).masked_fill(logt.isneginf(), 0.0)).sum(-1)
        if self.target == "smoothed":
            others = student.shape[-1] - told.ids.shape[-1]
            each = rest - torch.tensor(float(others), dtype=logp.dtype).log()
            return value + rest.exp() * (each - (logp.sum(-1) - own.sum(-1)) / others)
        if self.target == "naive":
            return value - rest.exp() * label_logp(student, labels)
        return value
