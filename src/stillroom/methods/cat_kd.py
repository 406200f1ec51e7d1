"""Class attention transfer: match class activation maps."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from annotated_types import Ge
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d

from stillroom.core import Batch, Failure, Needs, Paper, Setup, Signals, Term
from stillroom.losses.maps import class_maps
from stillroom.losses.policy import label_logp
from stillroom.methods._bases import FeatureMethod, one_said
from stillroom.models.taps import MAP


@dataclass(frozen=True, kw_only=True)
class CATKD(FeatureMethod):
    """Match class activation maps: at which places the evidence for each class stands.

    ``w_l * CE(label, student) + beta * mean_cij (u(pool(A_s))_cij - u(pool(A_t))_cij)^2``

    ``A_c = sum_d W_cd F_d`` is the map of class c [h, w], with the last feature map F and the
    classifier's weights W; its mean over places is the logit. ``pool`` is average pooling to
    ``resolution`` by ``resolution``, and ``u(A) = A / ||A||`` for each class of an example; a map
    of zeros stays. Both sides have the same classes, so no projector is trained, and the maps may
    differ in size. With label_weight 0 this is CAT, which learns from the maps alone.

    Both networks must pool by the mean and classify without a bias (kind ``cnn`` with ``head_bias:
    false``): this is tried on a first example, and refused where the maps' mean is not the logit.

    Differences: the paper sums squares over classes, here the mean over classes and places is
    taken, as in the authors' code, so that beta has its size. Their code leaves ``u`` out for most
    pairs of one family, with beta from 0.7 to 15; with it beta is from 15 to 600. Of classes with
    equal logits the code drops or keeps all; here ``classes`` is always how many are kept.

    Args:
        student_layer: the last feature map [B, d, h, w], as the classifier's mean reads it.
        teacher_layer: the same of the teacher.
        beta: weight of the maps; to be tuned anew with resolution and ``normalised``.
            Unconfirmed: one value for all pairs.
        resolution: r, places a side after pooling.
        normalised: whether each class's map is divided by its length (``u``).
        binary: whether the teacher's map is 1 where it is above its mean absolute value, else 0.
        classes: of each example, how many classes' maps are matched; None matches all.
        ranked: which ones: of the teacher's ``highest`` or ``lowest`` logits.
        label_weight: w_l.
    """

    paper = Paper(
        "2304.12777", "Guo, Yan, Li, Lin, 2023", "Class Attention Transfer Based Knowledge "
        "Distillation"
    )  # fmt: skip
    needs = Needs(teacher={"maps", "weights"}, student={"maps", "logits"})
    modality = "image"
    family = "features"

    student_layer: str = MAP
    teacher_layer: str = MAP
    beta: Annotated[float, Ge(0)] = 15.0
    resolution: Annotated[int, Ge(1)] = 2
    normalised: bool = True
    binary: bool = False
    classes: Annotated[int, Ge(1)] | None = None
    ranked: Literal["highest", "lowest"] = "highest"
    label_weight: Annotated[float, Ge(0)] = 1.0

    def players(self, setup: Setup) -> Mapping[str, nn.Module]:
        """None; tries whether the maps of both networks explain their logits."""
        _check("student", one_said(setup), self.student_layer)
        _check("teacher", one_said(setup, "teacher"), self.teacher_layer)
        return {}

    def loss(
        self, student: Signals, teacher: Signals, batch: Batch, nets: Mapping[str, Any]
    ) -> Sequence[Term]:
        own, other = self.said(student, teacher)
        own = class_maps(own, student.head.weight)
        other = class_maps(other, teacher.head.weight.detach())
        if self.binary:
            other = (other > other.abs().mean((2, 3), keepdim=True)).to(other)
        if self.classes is not None:
            kept = min(self.classes, other.shape[1])
            chosen = teacher.logits.topk(kept, largest=self.ranked == "highest").indices
            own, other = _of(own, chosen), _of(other, chosen)
        gap = (self._seen(own) - self._seen(other)).square().mean((1, 2, 3))
        terms = [Term(gap, weight=self.beta, name="maps")]
        if self.label_weight:
            ce = -label_logp(student.logits, batch.labels)
            terms.append(Term(ce, weight=self.label_weight, name="label"))
        return terms

    def _seen(self, maps: Tensor) -> Tensor:
        """[B, C, r, r] maps as they are compared."""
        pooled = adaptive_avg_pool2d(maps, self.resolution)
        if not self.normalised:
            return pooled
        length = torch.linalg.vector_norm(pooled, dim=(2, 3), keepdim=True)
        return pooled / length.masked_fill(length == 0, 1.0)  # by 1e-12 gradients would explode


def _of(maps: Tensor, chosen: Tensor) -> Tensor:
    """Maps [B, k, h, w] of the classes [B, k] of each example."""
    return maps.gather(1, chosen[:, :, None, None].expand(-1, -1, *maps.shape[2:]))


def _check(who: str, said: Signals, layer: str) -> None:
    """Raises Failure where the mean of the class activation maps is not the logit."""
    if "head" not in said or said.head.bias is not None:
        raise Failure(
            f"CATKD: the {who} must end in a linear classifier without a bias, so that the mean of "
            "a class activation map is the logit: take kind: cnn with head_bias: false"
        )
    found, logits = None, said.logits
    if layer in said.features:
        found = class_maps(said.features[layer], said.head.weight).mean((2, 3))
    size = max(1.0, float(logits.abs().max()))
    if found is None or found.shape != logits.shape or (found - logits).abs().max() > 1e-3 * size:
        raise Failure(
            f"CATKD: the mean over places of the {who}'s class activation maps is not its logit, "
            f"so its layer {layer!r} is not what is averaged and classified: name the last "
            "feature map of a network that pools by the mean"
        )
