"""Self-evolution knowledge distillation: what is hard is shown nearer to what is known."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Le, Lt
from torch import Tensor

from stillroom.core import Batch, Needs, Paper, Run, Term, Update
from stillroom.losses.divergences import forward_kl
from stillroom.losses.per_row import per_row
from stillroom.methods._bases import LogitMethod


@dataclass(frozen=True, kw_only=True)
class SelfEvolutionKD(LogitMethod):
    """Token-wise distillation by difficulty: hard tokens meet a student that knows a little more.

    The prior ``g = beta onehot(y) + (1 - beta) p`` holds the data's token y and the teacher p. How
    hard a token is for the student q is ``k = KL(g || q)``, without gradient. Then, a token,

    ``L = KL(g || (1 - r) q + r g)`` with ``r = min(cap, f(k))`` where ``k > tau``, else ``r = 0``

    so an easy token has ``KL(g || q)``, and the loss of a hard one is at most ``-ln r``, with a
    gradient that stays bounded: teacher and label are mixed into the student before it is measured.
    As the student learns, k and with it r fall of themselves; ``self_evolution_kd/ratio`` and
    ``self_evolution_kd/hard`` (the share of tokens with ``r > 0``) are logged.

    Differences: the paper's summaries give two stages, the prior and the proxy alone. Unconfirmed:
    f, its cap, beta, and by what rule tokens are parted. Difficulty is that of the student in eval
    mode where tau is of the batch (``mean``, ``quantile``, over all processes), which takes one
    more pass of both networks, and that of the training pass where it is fixed.

    Args:
        beta: share of the label in the prior; at 1 the teacher has no say, at 0 the label has none.
        threshold: what tau is: ``mean`` of the batch's difficulties, a ``quantile`` of them, or
            ``fixed``.
        tau: in nats, where it is fixed.
        quantile: the share of tokens that are easy, where it is one.
        curve: f, ``ratio`` is ``k / (k + 1)``, ``exponential`` is ``1 - exp(-k)``, ``linear`` is k.
        cap: r is at most this; 0 is plain distillation to the prior.
    """

    paper = Paper(
        "2412.15303", "Song, Ding, Zan, Huang, 2025", "Self-Evolution Knowledge Distillation for "
        "LLM-based Machine Translation"
    )  # fmt: skip
    needs = Needs(teacher={"logits"}, student={"logits"})
    modality = "text"
    family = "sample-weighting"

    beta: Annotated[float, Ge(0), Le(1)] = 0.5
    threshold: Literal["mean", "quantile", "fixed"] = "mean"
    tau: Annotated[float, Ge(0)] = 1.0
    quantile: Annotated[float, Ge(0), Le(1)] = 0.5
    curve: Literal["ratio", "exponential", "linear"] = "ratio"
    cap: Annotated[float, Ge(0), Lt(1)] = 0.9

    def prepare(self, run: Run, batch: Batch) -> Batch:
        """``ratio`` a row, where it takes all rows to tell which are hard."""
        if self.threshold == "fixed":
            return batch
        student, teacher = run.ask("student", batch), run.teacher(batch)
        hardness = per_row(self.difficulty, student, teacher, batch.labels)
        tau = self._of_all(run, hardness, batch.mask)
        return batch.add_rows(ratio=self._ratio(hardness, tau))

    def updates(self, run: Run, batch: Batch) -> Iterator[Update]:
        student, teacher = run.student(batch), run.teacher(batch)
        ratio = batch.get("ratio")
        if ratio is None:
            with torch.no_grad():
                hardness = per_row(self.difficulty, student, teacher, batch.labels)
            ratio = self._ratio(hardness, hardness.new_tensor(self.tau))
        counted = ratio[batch.mask > 0]
        run.log(**{"self_evolution_kd/ratio": counted, "self_evolution_kd/hard": counted > 0})
        yield Update(Term(per_row(self.objective, student, teacher, batch.labels, ratio=ratio)))

    def objective(
        self, student: Tensor, teacher: Tensor, labels: Tensor, ratio: Tensor | None = None
    ) -> Tensor:
        prior = self._prior(teacher, labels)
        if ratio is None:
            return forward_kl(student, prior)
        ruled_out = prior.isneginf()
        r = ratio.to(prior.dtype).unsqueeze(-1)
        # log 0 is -inf, which adds nothing; but logaddexp of two of them has no gradient
        known = (r.log() + prior).masked_fill(ruled_out & student.isneginf(), 0.0)
        log_q = student.log_softmax(-1, dtype=prior.dtype)
        gap = prior - torch.logaddexp((-r).log1p() + log_q, known)
        return (prior.exp() * gap.masked_fill(ruled_out, 0.0)).sum(-1)

    def difficulty(self, student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
        """``KL(g || q)`` [n], in nats."""
        return forward_kl(student, self._prior(teacher, labels))

    def _prior(self, teacher: Tensor, labels: Tensor) -> Tensor:
        """``log g`` [n, V]; -inf where it is zero."""
        dtype = torch.promote_types(teacher.dtype, torch.float32)
        log_p, label = teacher.log_softmax(-1, dtype=dtype), labels.unsqueeze(-1)
        if self.beta == 0:
            return log_p
        rest = log_p + math.log1p(-self.beta) if self.beta < 1 else log_p.new_full((), -math.inf)
        rest = rest.expand_as(log_p)
        here = torch.logaddexp(rest.gather(-1, label), rest.new_tensor(self.beta).log())
        return rest.scatter(-1, label, here)

    def _ratio(self, hardness: Tensor, tau: Tensor) -> Tensor:
        if self.curve == "ratio":
            ratio = 1 - 1 / (hardness + 1)
        else:
            ratio = hardness if self.curve == "linear" else -(-hardness).expm1()
        return ratio.clamp(0, self.cap).masked_fill(hardness <= tau, 0.0)

    def _of_all(self, run: Run, hardness: Tensor, mask: Tensor) -> Tensor:
        """tau, of the rows of all processes that count."""
        if self.threshold == "mean":
            weighed = torch.where(mask > 0, hardness, 0) * mask
            total, count = run.gather(torch.stack([weighed.sum(), mask.sum()])[None]).sum(0)
            return total / count
        own = hardness[mask > 0]
        most = int(run.gather(own.new_tensor([len(own)])).max())
        padded = own.new_full((most,), math.nan)  # what is gathered has one size everywhere
        padded[: len(own)] = own
        every = run.gather(padded)
        every = every[~every.isnan()]
        return every.kthvalue(max(1, math.ceil(self.quantile * len(every)))).values
