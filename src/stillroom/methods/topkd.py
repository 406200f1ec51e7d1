"""TopKD: the teacher's largest logits, scaled up, matched by cosines and by contrast."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from annotated_types import Ge, Gt
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from stillroom.core import Batch, Method, Needs, Paper, Signals, Term
from stillroom.losses.divergences import forward_kl
from stillroom.losses.policy import label_logp
from stillroom.losses.top_scaled import parted_cosine, top_scaled


@dataclass(frozen=True, kw_only=True)
class TopKD(Method):
    """Reconstruction: scale the teacher's top-K logits up, match by cosines, contrast in the batch.

    Made from a summary of the paper, for which no code was found: the parts are the paper's, exact
    scales and weights are ours (Unconfirmed, below).

    ``w_l CE(label, s) + w_m TDL(s, t') + w_c CON(s, t)``. t' is the teacher with its K largest
    logits times ``1 + g (1 - (rank - 1) / K)`` (divided where negative) plus
    ``g shift (mean of them - mean of the rest)``; where the teacher errs, the label comes
    ``margin`` above all. ``TDL = 1 - a cos(P) - b cos(N) - cos(rest)``, over the K largest positive
    logits of t', its K smallest negative ones, and the rest; it may be negative. ``CON`` is the
    mean of the cross-entropies of the rows and of the columns of ``s_i . t_j / tau``, where i
    belongs to i.

    Cosines see no scale, but see a number added to all logits of a side, which a softmax does not;
    ``centred`` takes it away.

    Unconfirmed: the three weights, g, shift, margin, a, b and tau; that vectors are normalised;
    that the contrast reads t and not t'; that K is the same in both places.

    Differences: a negative logit in the top is divided by its factor, which would sink it
    otherwise. Empty parts are left out. Equal logits share a rank, so the order of the classes is
    nothing.

    Args:
        top: K; 0 scales nothing, and takes one cosine over all classes.
        gain: g; 0 leaves the teacher as it is, its mistakes included.
        shift: how far the top is moved up, in units of g times its lead.
        margin: by how much the label leads where the teacher errs.
        match: ``tdl``, or ``kl``: ``T^2 KL(softmax(t' / T) || softmax(s / T))`` instead, the scaled
            teacher in plain distillation.
        temperature: T of ``kl``.
        positive: a.
        negative: b.
        centred: whether each side's logits are centred over classes before all else.
        contrast_temperature: tau.
        normalised: whether the contrast compares vectors of length 1.
        label_aware: whether others of the same class are left out of the contrast; without, they
            are pushed away.
        label_weight: w_l.
        match_weight: w_m.
        contrast_weight: w_c.
    """

    paper = Paper("2508.04539", "Wang, Zhou, 2025", "TopKD: Top-scaled Knowledge Distillation")
    needs = Needs(teacher={"logits"}, student={"logits"}, whole=True)
    modality = "image"
    family = "logits"

    top: Annotated[int, Ge(0)] = 5
    gain: Annotated[float, Ge(0)] = 0.5
    shift: Annotated[float, Ge(0)] = 0.2
    margin: Annotated[float, Ge(0)] = 0.1
    match: Literal["tdl", "kl"] = "tdl"
    temperature: Annotated[float, Gt(0)] = 4.0
    positive: Annotated[float, Ge(0)] = 1.0
    negative: Annotated[float, Ge(0)] = 1.0
    centred: bool = False
    contrast_temperature: Annotated[float, Gt(0)] = 0.1
    normalised: bool = True
    label_aware: bool = False
    label_weight: Annotated[float, Ge(0)] = 1.0
    match_weight: Annotated[float, Ge(0)] = 1.0
    contrast_weight: Annotated[float, Ge(0)] = 1.0

    def loss(
        self, student: Signals, teacher: Signals, batch: Batch, nets: Mapping[str, Any]
    ) -> Sequence[Term]:
        own, theirs = student.logits, teacher.logits
        if self.centred:
            own, theirs = (z - z.mean(-1, keepdim=True) for z in (own, theirs))
        terms = [Term(-label_logp(own, batch.labels), weight=self.label_weight, name="label")]
        if self.match_weight:
            value = self.matched(own, theirs, batch.labels)
            terms.append(Term(value, weight=self.match_weight, name="match"))
        if self.contrast_weight:
            value = self.contrast(own, theirs, batch)
            terms.append(Term(value, weight=self.contrast_weight, name="contrast"))
        return terms

    def matched(self, own: Tensor, theirs: Tensor, labels: Tensor) -> Tensor:
        """[B] distance to the scaled teacher."""
        told = {"gain": self.gain, "shift": self.shift, "margin": self.margin}
        target, T = top_scaled(theirs, labels, self.top, **told), self.temperature
        if self.match == "kl":
            return T**2 * forward_kl(own / T, target / T)
        return parted_cosine(own, target, self.top, positive=self.positive, negative=self.negative)

    def contrast(self, own: Tensor, theirs: Tensor, batch: Batch) -> Tensor:
        """[B] cross-entropy of finding one's own teacher among the batch's, and it its student."""
        exact = torch.promote_types(own.dtype, torch.float32)
        s, t = own.to(exact), theirs.to(exact)
        if self.normalised:
            s, t = normalize(s, dim=-1), normalize(t, dim=-1)
        alike = s @ t.T / self.contrast_temperature
        itself = torch.arange(len(alike), device=alike.device)
        out = (batch.mask == 0).expand(len(alike), -1)  # an example that does not count
        if self.label_aware:
            out = out | (batch.labels.unsqueeze(1) == batch.labels)
        out = out & (itself.unsqueeze(1) != itself)
        both = [m.masked_fill(out, -torch.inf) for m in (alike, alike.T)]
        found, told = (cross_entropy(m, itself, reduction="none") for m in both)
        return (found + told) / 2
