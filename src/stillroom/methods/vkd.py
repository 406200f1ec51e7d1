"""V_kD: match the teacher's features through a projector that can only turn the student's."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Gt
from torch import Tensor, nn
from torch.nn import functional

from stillroom.core import Batch, Failure, Needs, Paper, Run, Setup, Signals, Term, Update
from stillroom.losses.divergences import forward_kl
from stillroom.losses.maps import pooled
from stillroom.losses.policy import label_logp
from stillroom.losses.whitening import moments, standardised, whitened
from stillroom.methods._bases import FeatureMethod
from stillroom.nets.projectors import Orthogonal


@dataclass(frozen=True, kw_only=True)
class VkD(FeatureMethod):
    """Match normalised features of the teacher through an orthogonal projector.

    ``w_l * CE(label, student) + g * T^2 * KL(softmax(teacher / T) || softmax(student / T))
    + a * mean_k d((P z_s)_k, n(z_t)_k)``

    z are features, the mean over places where there are some; ``P^T P = I`` (``P P^T = I`` where
    the teacher's are narrower). P keeps all lengths and angles of the student's features, so it
    cannot learn in their place: all that the loss asks for, they must do themselves.

    n is what the task decides: ``layer``, each example's features with mean 0 and variance 1, for
    classes; ``standardise``, each channel over the batch; ``whiten``, ``(z - m)(C + e I)^(-1/2)``
    with mean m and covariance C of the batch, for generation: its targets are as diverse as they
    can be. The teacher's statistics are taken over all micro-batches and processes of a step, and
    need no gradient, so a batch may be split.

    Differences: the paper's transformers have a head of their own for the teacher's scores; here
    both are learned by the one head. Only the teacher's side is normalised, as in the authors' code
    for classes; for detection it standardises the student's too. Variances are divided by the
    number of examples. P comes from a skew-symmetric matrix by the Cayley map, not the exponential:
    nearly the same matrices at a tenth of the time. Unconfirmed: how the covariance is estimated
    for whitening.

    Args:
        feature_weight: a; 0 leaves the features and their projector out.
        soft_weight: g; the paper's is 1.
        label_weight: w_l.
        temperature: T.
        distance: d, of each entry: ``smooth_l1`` (Huber, half of the square below 1) or ``l2``.
        norm: n.
        eps: of the mean variance, added to each that is divided by (``standardise``, ``whiten``);
            whitening a batch of no more examples than the teacher has channels depends on it.
        projector: ``orthogonal``; for comparison ``linear``, any matrix, trained, and ``fixed``, an
            orthogonal one that stays as it was drawn.
    """

    paper = Paper(
        "2403.06213", "Miles, Elezi, Deng, 2024", "VkD: Improving Knowledge Distillation using "
        "Orthogonal Projections"
    )  # fmt: skip
    needs = Needs(teacher={"features", "logits"}, student={"features", "logits"})
    modality = "image"
    family = "features"

    feature_weight: Annotated[float, Ge(0)] = 1.0
    soft_weight: Annotated[float, Ge(0)] = 1.0
    label_weight: Annotated[float, Ge(0)] = 1.0
    temperature: Annotated[float, Gt(0)] = 1.0
    distance: Literal["smooth_l1", "l2"] = "smooth_l1"
    norm: Literal["none", "layer", "standardise", "whiten"] = "layer"
    eps: Annotated[float, Gt(0)] = 1e-3
    projector: Literal["orthogonal", "fixed", "linear"] = "orthogonal"

    def __post_init__(self) -> None:
        if not (self.feature_weight or self.soft_weight or self.label_weight):
            raise Failure("feature_weight, soft_weight and label_weight are 0: nothing is learned")

    def players(self, setup: Setup) -> Mapping[str, nn.Module]:
        if not self.feature_weight:
            return {}
        own, other = (pooled(said) for said in self.tried(setup))
        width, wanted = own.shape[1], other.shape[1]
        if self.projector == "linear":
            dtype = torch.promote_types(own.dtype, torch.float32)
            return {"projector": nn.Linear(width, wanted, bias=False, dtype=dtype)}
        learns = self.projector == "orthogonal"
        return {"projector": Orthogonal(width, wanted).requires_grad_(learns)}

    def prepare(self, run: Run, batch: Batch) -> Batch:
        teacher = run.teacher(batch)
        wanted = pooled(teacher.features[self.teacher_layer])
        if self.norm == "layer":
            wanted = functional.layer_norm(wanted, wanted.shape[-1:])
        elif self.norm != "none":
            to = whitened if self.norm == "whiten" else standardised
            wanted = to(wanted, *moments(run.gather(wanted), run.gather(batch.mask)), self.eps)
        return batch.add(wanted=wanted, scores=teacher.logits)

    def updates(self, run: Run, batch: Batch) -> Iterator[Update]:
        terms = self._terms(run.student(batch), batch, run.players)
        yield Update(terms, players=("student", *self.moving(run.players)))

    def _terms(self, student: Signals, batch: Batch, nets: Mapping[str, nn.Module]) -> list[Term]:
        T, terms = self.temperature, []
        if self.label_weight:
            ce = -label_logp(student.logits, batch.labels)
            terms.append(Term(ce, weight=self.label_weight, name="label"))
        if self.soft_weight:
            soft = T**2 * forward_kl(student.logits / T, batch.scores / T)
            terms.append(Term(soft, weight=self.soft_weight, name="soft"))
        if self.feature_weight:
            own = nets["projector"](pooled(student.features[self.student_layer]))
            value = self._apart(own, batch.wanted)
            terms.append(Term(value, weight=self.feature_weight, name="features"))
        return terms

    def _apart(self, own: Tensor, wanted: Tensor) -> Tensor:
        """[B] mean distance of entries."""
        between = functional.mse_loss if self.distance == "l2" else functional.smooth_l1_loss
        return between(own, wanted.to(own), reduction="none").mean(-1)
