"""Explanation-enhanced distillation: the same answers, for the same reasons."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Gt
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import interpolate

from stillroom.core import Batch, Failure, Needs, Paper, Run, Signals, Term, Update
from stillroom.losses.divergences import forward_kl
from stillroom.losses.policy import label_logp
from stillroom.methods._bases import FeatureMethod
from stillroom.models.taps import MAP


@dataclass(frozen=True, kw_only=True)
class E2KD(FeatureMethod):
    """Match explanations too: saliency maps of the class that the teacher finds likeliest.

    ``T^2 * KL(softmax(teacher / T) || softmax(student / T)) + w_e * (1 - cos(E_t, E_s))
    + w_l * CE(label, student)``

    E explains the score z_c of the teacher's likeliest class c, in both networks. ``grad_cam``:
    ``E = relu(sum_d a_d F_d)`` with the feature map F [d, h, w] and ``a_d = mean_hw dz_c / dF_d``,
    resized to the image. ``input_gradient``: ``E = dz_c / dx``, in the image's own shape. The
    student's E keeps its graph, so the loss reaches its weights by second derivatives.

    The cosine has no value where a map is zero everywhere (Grad-CAM where no channel speaks for
    the class): such an example adds 0, and ``zero_maps`` records their share.

    Differences: B-cos networks explain themselves by weights that are held fixed in the backward
    pass, which is not offered here; their plain input gradient is. Maps are made anew in each step,
    none are stored; ``data.views`` with ``teacher: clean`` compares with those of the unchanged
    image, as stored ones would be. Batch norm mixes the examples of a batch, and so their
    gradients; it is not corrected for.

    Args:
        student_layer: the feature map [B, d, h, w] that Grad-CAM reads.
        teacher_layer: the same of the teacher.
        explanation: how a network explains a score.
        temperature: T.
        explanation_weight: w_e; 0 is kd.
        every: steps between two that compare explanations; 1 compares in each.
        label_weight: w_l, of the cross-entropy with the true label.
    """

    paper = Paper(
        "2402.03119", "Parchami-Araghi, Boehle, Rao, Schiele, 2024", "Good Teachers Explain: "
        "Explanation-Enhanced Knowledge Distillation"
    )  # fmt: skip
    needs = Needs(teacher={"logits", "maps", "gradient"}, student={"logits", "maps", "gradient"})
    modality = "image"
    family = "interpretability"

    student_layer: str = MAP
    teacher_layer: str = MAP
    explanation: Literal["grad_cam", "input_gradient"] = "grad_cam"
    temperature: Annotated[float, Gt(0)] = 1.0
    explanation_weight: Annotated[float, Ge(0)] = 1.0
    every: Annotated[int, Ge(1)] = 1
    label_weight: Annotated[float, Ge(0)] = 0.0

    def layers(self) -> Mapping[str, Sequence[str]]:
        return super().layers() if self.explanation == "grad_cam" else {}

    def updates(self, run: Run, batch: Batch) -> Iterator[Update]:
        if not self.explanation_weight or run.step % self.every:
            yield Update(self._answers(run.student(batch), run.teacher(batch), batch))
            return
        mine = _watched(batch, "x")
        theirs = _watched(batch, "x_teacher" if "x_teacher" in batch else "x")
        with sdpa_kernel(SDPBackend.MATH):  # of attention the only one with a second derivative
            student, teacher = run.student(mine), run.teacher(theirs, grad=True)
        chosen = teacher.logits.argmax(-1)
        own = self._explained(student, self.student_layer, mine.x, chosen, learns=True)
        at = theirs.get("x_teacher", theirs.x)
        goal = self._explained(teacher, self.teacher_layer, at, chosen, learns=False).detach()
        if self.explanation == "grad_cam":
            own, goal = (_resized(maps, batch.x) for maps in (own, goal))
        unlike, void = _unlike(own, goal)
        run.log(zero_maps=void)
        explained = Term(unlike, weight=self.explanation_weight, name="explanation")
        yield Update([*self._answers(student, teacher, batch), explained])

    def _answers(self, student: Signals, teacher: Signals, batch: Batch) -> list[Term]:
        T, w = self.temperature, self.label_weight
        soft = T**2 * forward_kl(student.logits / T, teacher.logits.detach() / T)
        ce = [Term(-label_logp(student.logits, batch.labels), weight=w, name="label")] if w else []
        return [Term(soft, name="answers"), *ce]

    def _explained(
        self, said: Signals, layer: str, x: Tensor, chosen: Tensor, *, learns: bool
    ) -> Tensor:
        """Map [B, 1, h, w], or [B, ...] in the image's shape, of the score of each chosen class."""
        score = said.logits.gather(1, chosen[:, None]).sum()  # of each example its own alone
        if self.explanation == "input_gradient":
            return torch.autograd.grad(score, x, create_graph=learns, retain_graph=True)[0]
        features = said.features.get(layer)
        if features is None or features.dim() != 4:
            told = "nothing" if features is None else list(features.shape)
            raise Failure(
                "E2KD: Grad-CAM reads a feature map [B, channels, height, width], and layer "
                f"{layer!r} says {told}: name another, or take explanation: input_gradient"
            )
        (slope,) = torch.autograd.grad(score, features, create_graph=learns, retain_graph=True)
        return (slope.mean((2, 3), keepdim=True) * features).sum(1, keepdim=True).relu()


def _watched(batch: Batch, name: str) -> Batch:
    """The batch with an input whose gradient can be asked for."""
    return batch.add(**{name: batch[name].detach().clone().requires_grad_()})


def _resized(maps: Tensor, x: Tensor) -> Tensor:
    """Maps [B, 1, h, w] at the size of the images, bilinearly; a signal is an image of height 1."""
    size = x.shape[-2:] if x.dim() == 4 else (1, x.shape[-1])
    return interpolate(maps, size=size, mode="bilinear", align_corners=False)


def _unlike(own: Tensor, goal: Tensor) -> tuple[Tensor, Tensor]:
    """[B] ``1 - cos`` of maps, 0 where one of them is zero, and [B] whether one is."""
    if own.shape != goal.shape:
        raise Failure(
            f"E2KD: the teacher reads inputs of shape {list(goal.shape[1:])} and the student of "
            f"{list(own.shape[1:])}, so input gradients cannot be compared: take explanation: "
            "grad_cam"
        )
    a, b = own.flatten(1), goal.flatten(1)
    lengths = [torch.linalg.vector_norm(m, dim=1) for m in (a, b)]
    void = (lengths[0] == 0) | (lengths[1] == 0)
    a, b = (
        m / torch.where(void, 1.0, length)[:, None]
        for m, length in zip((a, b), lengths, strict=True)
    )
    return (1 - (a * b).sum(1)).masked_fill(void, 0.0), void.double()
