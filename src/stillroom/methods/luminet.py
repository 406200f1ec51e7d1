"""LumiNet: match how an example stands out from its batch, class by class."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any

from annotated_types import Ge, Gt

from stillroom.core import Batch, Method, Needs, Paper, Run, Signals, Term, Update
from stillroom.losses.divergences import forward_kl
from stillroom.losses.perception import perception
from stillroom.losses.policy import label_logp


@dataclass(frozen=True, kw_only=True)
class LumiNet(Method):
    """Match logits that are standardised over the batch, so that a teacher's scale is nothing.

    ``a CE(label, student) + w r KL(softmax(h_teacher / T) || softmax(h_student / T))`` with
    ``h_bc = (z_bc - mean_b z_bc) / sqrt(var_b z_bc + eps)`` of each side for itself: how much an
    example stands out from the others of its batch in each class. The gradient flows through the
    student's mean and variance. ``r = min(pass / W, 1)``, passes over the data counted from 1.

    A teacher that is too sure, or shifted or scaled in some classes, teaches the same. The loss is
    0 where the two h are the same, which logits need not be. There is no ``T^2``: w stands for it,
    and is large because what is softened has a deviation of 1; the more classes, the larger.
    Batches must be shuffled, and large enough for the mean of each class to mean something. Where
    a class hardly varies in a batch its gradient is large: clip.

    Differences: as the authors' code, which standardises by class alone where the paper speaks of
    two perceptions. Mean and variance are those of the batch of all processes; their code has
    those of each process. w is given itself, where their settings give its square root.

    Args:
        temperature: T, of the standardised logits.
        weight: w; the code's are 33 to 75 squared on CIFAR-100, 2 squared on ImageNet.
        label_weight: a, of the cross-entropy with the label.
        warmup: W, passes until the second part has its whole weight; 0 gives it at once.
        eps: is added to the variance.
    """

    paper = Paper(
        "2310.03669", "Hossain, Elahi, Ramasinghe, Cheraghian, Rahman, Mohammed, Rahman, 2023",
        "LumiNet: The Bright Side of Perceptual Knowledge Distillation"
    )  # fmt: skip
    needs = Needs(teacher={"logits"}, student={"logits"}, whole=True)
    modality = "image"
    family = "logits"

    temperature: Annotated[float, Gt(0)] = 4.0
    weight: Annotated[float, Ge(0)] = 33.0**2
    label_weight: Annotated[float, Ge(0)] = 1.0
    warmup: Annotated[int, Ge(0)] = 20
    eps: Annotated[float, Gt(0)] = 1e-5

    def loss(
        self, student: Signals, teacher: Signals, batch: Batch, nets: Mapping[str, Any]
    ) -> Sequence[Term]:
        own, theirs = (perception(said.logits, eps=self.eps) for said in (student, teacher))
        soft = forward_kl(own / self.temperature, theirs / self.temperature)
        return [
            Term(-label_logp(student.logits, batch.labels), weight=self.label_weight, name="label"),
            Term(soft, weight=self.weight, name="perception"),
        ]

    def updates(self, run: Run, batch: Batch) -> Iterator[Update]:
        student, teacher = run.student(batch), run.teacher(batch)
        label, soft = self.loss(student, teacher, run.gather(batch), run.players)
        risen = min((run.epoch + 1) / self.warmup, 1.0) if self.warmup else 1.0
        yield Update([label, replace(soft, weight=risen * soft.weight)])
