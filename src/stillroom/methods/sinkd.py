"""SinKD: the student's batch of predictions is moved onto the teacher's by optimal transport."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor

from stillroom.core import Batch, Needs, Paper, Signals, Term
from stillroom.losses.divergences import forward_kl
from stillroom.losses.per_row import per_row
from stillroom.losses.policy import label_logp
from stillroom.losses.transport import l1_cost, sinkhorn
from stillroom.methods._bases import LogitMethod


@dataclass(frozen=True, kw_only=True)
class SinKD(LogitMethod):
    """Distil with a batch-wise Sinkhorn distance: match sets of predictions by optimal transport.

    ``(1 - w) * T^2 * KL(p_t || p_s) + w * CE(label, student) + beta * SD``
    ``SD = 1/b sum_ij K_ij D_ij``, ``D_ij = |p_s,i - p_t,j|_1``, ``p = softmax(z / T)``
    ``K = exp(-D / lam)``, then n times: rows divided by their sums, columns divided by theirs

    A prediction is held against those of the whole batch, not against its own target alone. The
    gradient flows through D and through all n divisions, which run on logarithms. SD is above 0
    also where both predict the same, since K is never quite sharp, and at most 2. D is 2 for any
    two predictions that have no class in common, and the slope of a sure softmax is small, so by
    itself SD teaches little where the student is sure and wrong: KL must go before. On classes
    alone: on text the batch would be all of its tokens, whose table of pairs is too large.
    The iterations take some three times what a step of ``kd`` does with a network of 1,200 weights
    and 32 examples; what they take does not grow with the network.

    Differences: the paper's sum over the batch is a mean here (a factor b), so that the weight does
    not depend on its size; their code takes .001 of the sum beside a weight of .8, which is .026 of
    this mean at 32 examples. The KL part carries T^2, where their code has a cross-entropy without
    it. Examples that a mask leaves out take no part in the transport.

    Args:
        temperature: T, of all three softmaxes that the teacher is compared by.
        label_weight: w, the share of the cross-entropy with the label beside the KL.
        sinkhorn_weight: beta.
        lam: how blurred the plan is, in units of D; towards 0 it becomes the best assignment of
            students' predictions to the teacher's, and needs more iterations.
        iterations: n.
    """

    paper = Paper(
        "2402.17110",
        "Cui, Qin, Gao, Zhang, Xu, Wu, Li, Sun, Zhou, Li, 2024",
        "Sinkhorn Distance Minimization for Knowledge Distillation",
    )
    needs = Needs(teacher={"logits"}, student={"logits"}, whole=True)
    modality = "image"
    family = "logits"

    temperature: Annotated[float, Gt(0)] = 2.0
    label_weight: Annotated[float, Ge(0), Le(1)] = 0.1
    sinkhorn_weight: Annotated[float, Ge(0)] = 0.8
    lam: Annotated[float, Gt(0)] = 0.1
    iterations: Annotated[int, Ge(1)] = 20

    def objective(self, student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
        T, w = self.temperature, self.label_weight
        soft = T**2 * forward_kl(student / T, teacher / T)
        return (1 - w) * soft - w * label_logp(student, labels)

    def loss(
        self, student: Signals, teacher: Signals, batch: Batch, nets: Mapping[str, Any]
    ) -> Sequence[Term]:
        terms = [Term(per_row(self.objective, student, teacher, batch.labels), name="kd")]
        if self.sinkhorn_weight:
            cost = self.moved(student.logits, teacher.logits, batch.mask > 0)
            terms.append(Term(cost, weight=self.sinkhorn_weight, name="sinkhorn"))
        return terms

    def moved(self, student: Tensor, teacher: Tensor, there: Tensor) -> Tensor:
        """[b] cost of moving each prediction; its mean over those that are there [b] is SD."""
        own, theirs = (_softened(z, self.temperature)[None] for z in (student, teacher.detach()))
        cost, counts = l1_cost(own, theirs), there[None].to(own)
        plan = sinkhorn(cost, counts, counts, eps=self.lam, iterations=self.iterations, stop=0.0)
        return counts.sum() * (plan * cost)[0].sum(-1)


def _softened(logits: Tensor, temperature: float) -> Tensor:
    exact = torch.promote_types(logits.dtype, torch.float32)
    return (logits / temperature).softmax(-1, dtype=exact)
