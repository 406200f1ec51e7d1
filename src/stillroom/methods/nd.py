"""ND: the student's embedding long, and towards the teacher's mean embedding of the class."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Ge, Gt
from torch import Tensor, nn

from stillroom.core import Batch, Needs, Paper, Run, Setup, Signals, Term, Update
from stillroom.losses.divergences import forward_kl
from stillroom.losses.maps import pooled
from stillroom.losses.policy import label_logp
from stillroom.methods._bases import FeatureMethod, one_said
from stillroom.nets.centroids import Centroids


@dataclass(frozen=True, kw_only=True)
class ND(FeatureMethod):
    """Regularise norm and direction of embeddings, beside classic distillation (KD++).

    ``CE(label, student) + w_kd * ramp * T^2 * KL(softmax(teacher / T) || softmax(student / T))
    + w_nd * (1 - <s, u_y> / max(|s|, |t|))``

    s and t are the embeddings of one example, u_c the teacher's mean embedding of class c, made of
    length 1. Where s is shorter than t the gradient turns and lengthens it; else the term is
    ``1 - cos(s, u)`` and turns it alone. ``ramp = min(1, passes / ramp_passes)``.

    The means are over the whole training set, each example as it is and counting once: the teacher
    reads it before the first step. They then stay, as buffers of the player ``means``.

    Differences: where widths differ s goes through a linear layer, begun without bias; the paper
    puts batch norm and dropout before it, whose numbers would depend on how a batch is split. The
    ramp grows with every step, not with every pass.

    Args:
        nd_weight: w_nd; the paper's are 0.5 to 2. 0 leaves embeddings out.
        kd_weight: w_kd; the paper's are 1 to 4.
        temperature: T.
        ramp_passes: over how many passes the weight of KD rises; 0 gives it in full at once.
    """

    paper = Paper(
        "2305.17007", "Wang, Cheng, Duan, Wang, Feng, Kong, 2023", "Improving Knowledge "
        "Distillation via Regularizing Feature Norm and Direction"
    )  # fmt: skip
    needs = Needs(teacher={"features", "logits"}, student={"features", "logits"})
    modality = "image"
    family = "features"

    nd_weight: Annotated[float, Ge(0)] = 2.0
    kd_weight: Annotated[float, Ge(0)] = 1.0
    temperature: Annotated[float, Gt(0)] = 4.0
    ramp_passes: Annotated[float, Ge(0)] = 20.0

    def players(self, setup: Setup) -> Mapping[str, nn.Module]:
        if not self.nd_weight:
            return {}
        own, other = (pooled(said) for said in self.tried(setup))
        classes = one_said(setup).logits.shape[-1]
        made: dict[str, nn.Module] = {"means": Centroids(classes, other.shape[1])}
        if own.shape[1] != other.shape[1]:
            dtype = torch.promote_types(own.dtype, torch.float32)
            linear = nn.Linear(own.shape[1], other.shape[1], dtype=dtype)
            nn.init.zeros_(linear.bias)
            made["projector"] = linear
        return made

    def prepare(self, run: Run, batch: Batch) -> Batch:
        if not self.nd_weight:
            return batch
        means: Centroids = run.players["means"]
        if run.step == 0:
            self._read_all(run, means)
        return batch.add(direction=means.directions()[batch.labels])

    def _read_all(self, run: Run, means: Centroids) -> None:
        for batch in run.everything("train"):
            vectors = pooled(run.teacher(batch).features[self.teacher_layer])
            means.add(run.gather(vectors), run.gather(batch.labels), run.gather(batch.mask))

    def updates(self, run: Run, batch: Batch) -> Iterator[Update]:
        student, teacher = run.student(batch), run.teacher(batch)
        T, ce = self.temperature, -label_logp(student.logits, batch.labels)
        terms = [Term(ce, name="label")]
        if self.kd_weight:
            soft = T**2 * forward_kl(student.logits / T, teacher.logits / T)
            terms.append(Term(soft, weight=self.kd_weight * self._ramp(run), name="soft"))
        if self.nd_weight:
            value = self._nd(student, teacher, batch, run)
            terms.append(Term(value, weight=self.nd_weight, name="nd"))
        yield Update(terms, players=("student", *self.moving(run.players)))

    def _ramp(self, run: Run) -> float:
        passes = run.progress * run.epochs
        return min(1.0, passes / self.ramp_passes) if self.ramp_passes else 1.0

    def _nd(self, student: Signals, teacher: Signals, batch: Batch, run: Run) -> Tensor:
        """[B] the term of norm and direction."""
        s, t = self.pooled(student, teacher)
        s = run.players["projector"](s) if "projector" in run.players else s
        s = s.to(torch.promote_types(s.dtype, torch.float32))
        t, u = t.to(s), batch.direction.to(s)
        self._log(run, *(x.detach()[batch.mask > 0] for x in (s, t, u)))
        return norm_and_direction(s, t, u)

    def _log(self, run: Run, s: Tensor, t: Tensor, u: Tensor) -> None:
        """How long embeddings are beside the teacher's, and how well directed."""
        lengths, tiny = s.norm(dim=-1), torch.finfo(s.dtype).tiny
        cosine = (s * u).sum(-1) / lengths.clamp_min(tiny)
        run.log(**{"nd/length": lengths / t.norm(dim=-1).clamp_min(tiny), "nd/cosine": cosine})


def norm_and_direction(student: Tensor, teacher: Tensor, direction: Tensor) -> Tensor:
    """``1 - <s, u> / max(|s|, |t|)``: [B, d] three times -> [B]; 0 where u is 0, or s and t are.

    u has length 1. At ``|s| = |t|`` the gradient is the mean of those on both sides.

    By hand: s = (3, 4) is as long as t, and has 3 of 5 along u.

    >>> s, t, u = (torch.tensor([x]) for x in ([3.0, 4.0], [5.0, 0.0], [1.0, 0.0]))
    >>> round(float(norm_and_direction(s, t, u)), 4)
    0.4
    """
    longest = torch.maximum(student.norm(dim=-1), teacher.norm(dim=-1))
    known = (direction.square().sum(-1) > 0) & (longest > 0)
    along = (student * direction).sum(-1)
    return torch.where(known, 1 - along / torch.where(known, longest, 1.0), 0.0)
