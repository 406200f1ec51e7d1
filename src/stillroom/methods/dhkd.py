"""Distillation of raw logits by an auxiliary head that is dropped after training (dual head)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from annotated_types import Ge, Gt
from torch import Tensor, nn

from stillroom.core import Batch, Method, Needs, Paper, Run, Setup, Signals, Term
from stillroom.losses.binary import binary_kl_norm
from stillroom.losses.policy import label_logp
from stillroom.methods._bases import one_said
from stillroom.models.taps import LAST


@dataclass(frozen=True, kw_only=True)
class DHKD(Method):
    """Teach the teacher's raw logits to an auxiliary head, the labels to the student's own.

    ``w CE(label, W h + b) + v T^2 sum_c KL(Bernoulli(1/2) || Bernoulli(sigmoid((aux(h)_c -
    teacher_c) / T)))``

    h is what the student's classifier reads. Both losses reach the layers below it, and the
    classifier is moved by the labels alone; the auxiliary head is no part of the student that is
    shipped. A sum over classes: v scales with their number.

    ``align: true`` (gradient alignment) takes from the logits' gradient ``g2``, where it points
    against the labels' ``g1``, its part along it: ``g2 - min(0, <g2, g1>) / |g1|^2 g1``, over all
    parameters. With the labels' gradient added that is ``(1 + c) g1 + g2`` with
    ``c = max(0, -<g2, g1>) / |g1|^2``, and so a weight of the labels. It is found once a step, from
    the batch as a whole and of all processes, by one more forward and two more backward passes
    (dropout draws anew in them); afterwards the batch may be split. The cosine of both gradients is
    logged as ``cosine``.

    Differences: of the authors' head (``mlp``) the dropout is left out and the batch norm is a
    layer norm, so that a split batch gives the same numbers.

    Args:
        head: ``linear``; ``mlp``: a hidden layer between; ``shared``: the student's own head learns
            both, which is the failure that the paper sets out from.
        hidden: width of that layer.
        temperature: T.
        label_weight: w (gamma in the paper).
        logit_weight: v (alpha); the paper takes 1 with 100 classes, 0.1 with 1000.
        align: whether gradients are aligned; a step then takes nearly twice as long.
    """

    paper = Paper(
        "2411.08937", "Yang, Zong, Huang, Feng, An, 2024", "Dual-Head Knowledge Distillation: "
        "Enhancing Logits Utilization with an Auxiliary Head"
    )  # fmt: skip
    needs = Needs(teacher={"logits"}, student={"features", "logits"})
    modality = "image"
    family = "logits"

    head: Literal["linear", "mlp", "shared"] = "linear"
    hidden: Annotated[int, Ge(1)] = 200
    temperature: Annotated[float, Gt(0)] = 2.0
    label_weight: Annotated[float, Ge(0)] = 1.0
    logit_weight: Annotated[float, Ge(0)] = 1.0
    align: bool = False

    def layers(self) -> Mapping[str, Sequence[str]]:
        return {} if self.head == "shared" else {"student": [LAST]}

    def players(self, setup: Setup) -> Mapping[str, nn.Module]:
        if self.head == "shared":
            return {}
        said = one_said(setup)
        width, classes = said.features[LAST].shape[-1], said.logits.shape[-1]
        if self.head == "linear":
            return {"auxiliary": nn.Linear(width, classes, dtype=said.logits.dtype)}
        into, out = nn.Linear(width, self.hidden), nn.Linear(self.hidden, classes)
        made = nn.Sequential(into, nn.LayerNorm(self.hidden), nn.ReLU(), out)
        return {"auxiliary": made.to(said.logits.dtype)}

    def prepare(self, run: Run, batch: Batch) -> Batch:
        if not self.align:
            return batch
        labels, logits = self._slopes(run, batch)
        product, size = labels @ logits, labels @ labels
        run.log(cosine=torch.cosine_similarity(labels, logits, 0))
        more = (-product).clamp_min(0) / size.clamp_min(torch.finfo(size.dtype).tiny)
        return batch.add(label_scale=(1 + more).expand(batch.size))

    def loss(
        self, student: Signals, teacher: Signals, batch: Batch, nets: Mapping[str, Any]
    ) -> Sequence[Term]:
        T, own = self.temperature, student.logits
        if self.head != "shared":
            own = nets["auxiliary"](student.features[LAST])
        label = -label_logp(student.logits, batch.labels)
        if "label_scale" in batch:
            label = batch.label_scale * label
        logit = T**2 * binary_kl_norm(own / T, teacher.logits.detach() / T)
        return [
            Term(label, weight=self.label_weight, name="label"),
            Term(logit, weight=self.logit_weight, name="logit"),
        ]

    def _slopes(self, run: Run, batch: Batch) -> tuple[Tensor, Tensor]:
        """Gradients of both losses for the student's parameters, flat, of all processes' batches.

        Both are of sums, not means: what they are divided by is the same and leaves ``c`` alone.
        """
        network = run.players["student"]
        moving = [p for p in network.parameters() if p.requires_grad]
        kept = [b.clone() for b in network.buffers()]  # statistics of a batch norm move once a step
        with torch.enable_grad():
            terms = self.loss(run.student(batch), run.teacher(batch), batch, run.players)
            totals = [term.weight * (term.value * batch.mask).sum() for term in terms]
        found = [
            torch.autograd.grad(
                total, moving, retain_graph=True, allow_unused=True, materialize_grads=True
            )
            for total in totals
        ]
        for buffer, before in zip(network.buffers(), kept, strict=True):
            buffer.copy_(before)
        flat = [torch.cat([slope.flatten() for slope in slopes]) for slopes in found]
        labels, logits = (run.gather(one[None]).sum(0) for one in flat)
        return labels, logits
