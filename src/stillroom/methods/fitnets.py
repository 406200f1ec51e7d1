"""FitNets: a thin, deep student first learns to predict a middle layer of its teacher."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Gt, Lt
from torch import Tensor, nn

from stillroom.core import Batch, Needs, Paper, Run, Setup, Signals, Term, Update
from stillroom.losses.divergences import forward_kl
from stillroom.losses.maps import places
from stillroom.losses.policy import label_logp
from stillroom.methods._bases import FeatureMethod
from stillroom.nets.projectors import Regressor

NONLINEARITIES: Mapping[str, Callable[[Tensor], Tensor]] = {
    "none": lambda x: x,
    "relu": torch.relu,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
}


@dataclass(frozen=True, kw_only=True)
class FitNets(FeatureMethod):
    """Learn a hint, then distil: the student's guided layer predicts a middle layer of the teacher.

    Stage 1, the first ``hint_share`` of the steps, trains a regressor r and what of the student
    stands before its guided layer v, to reach the teacher's hint layer u:

    ``1/2 * |u(x) - r(v(x))|^2``, the mean over places where there are some

    Stage 2 drops r and trains the whole student, with an optimiser that begins afresh:

    ``CE(label, student) + lambda * KL(softmax(teacher / T) || softmax(student / T))``

    lambda falls on a line from ``soft_weight`` in the first step of stage 2 to ``soft_weight_end``
    in the last. r is one linear layer or one convolution, whose kernel brings the student's map to
    the size of the teacher's; more would do the student's work. Layers behind the guided one have
    no gradient in stage 1; running averages of norms there follow what they read.

    Differences: stage 1 ends after a share of the steps, not when a validation loss stalls; all
    layers have one learning rate in stage 2; KL stands for the cross-entropy with the teacher,
    which has the same gradient.

    Args:
        student_layer: the guided layer; the paper takes the student's middle. A deeper one
            regularises more.
        teacher_layer: the hint layer; the paper takes the teacher's middle.
        hint_share: of the steps, stage 1; 0 leaves it out.
        nonlinearity: after the regressor; the paper gives it the hint layer's own.
        soft_weight: lambda at the start of stage 2.
        soft_weight_end: lambda at its end.
        temperature: T, of stage 2.
        scaled: whether the teacher's part is multiplied by ``T^2``; not in the paper.
    """

    paper = Paper(
        "1412.6550", "Romero, Ballas, Kahou, Chassang, Gatta, Bengio, 2015", "FitNets: Hints for "
        "Thin Deep Nets"
    )  # fmt: skip
    needs = Needs(teacher={"features", "logits"}, student={"features", "logits"}, planned=True)
    modality = "image"
    family = "features"

    hint_share: Annotated[float, Ge(0), Lt(1)] = 0.3
    nonlinearity: Literal["none", "relu", "sigmoid", "tanh"] = "none"
    soft_weight: Annotated[float, Ge(0)] = 4.0
    soft_weight_end: Annotated[float, Ge(0)] = 1.0
    temperature: Annotated[float, Gt(0)] = 3.0
    scaled: bool = False

    def players(self, setup: Setup) -> Mapping[str, nn.Module]:
        return {"regressor": Regressor(*self.tried(setup))} if self.hint_share else {}

    def hinted(self, steps: int) -> int:
        """Steps of stage 1, of so many; at least one is left for stage 2."""
        return int(self.hint_share * steps)

    def soft(self, step: int, steps: int) -> float:
        """The weight lambda of a step, counted from 0 over both stages."""
        first = self.hinted(steps)
        share = (step - first) / max(1, steps - 1 - first)
        return self.soft_weight + share * (self.soft_weight_end - self.soft_weight)

    def prepare(self, run: Run, batch: Batch) -> Batch:
        if run.step == self.hinted(run.steps) > 0:
            run.reset("student")  # moments of the hint's loss say nothing of the next
        return batch

    def updates(self, run: Run, batch: Batch) -> Iterator[Update]:
        student, teacher = run.student(batch), run.teacher(batch)
        if run.step < self.hinted(run.steps):
            said, wanted = self.said(student, teacher)
            guess = NONLINEARITIES[self.nonlinearity](run.players["regressor"](said))
            yield Update(Term(hint(guess, wanted), name="hint"), players=("student", "regressor"))
        else:
            yield Update(self._distilled(student, teacher, batch, run))

    def _distilled(self, student: Signals, teacher: Signals, batch: Batch, run: Run) -> list[Term]:
        ce, T = -label_logp(student.logits, batch.labels), self.temperature
        soft = forward_kl(student.logits / T, teacher.logits / T) * (T**2 if self.scaled else 1.0)
        weight = self.soft(run.step, run.steps)
        return [Term(ce, name="label"), Term(soft, weight=weight, name="soft")]


def hint(guess: Tensor, wanted: Tensor) -> Tensor:
    """``1/2 * |u - r|^2`` summed over channels, the mean over places: two of a shape -> [B].

    By hand: a difference of 3 and 4 in two channels.

    >>> float(hint(torch.tensor([[3.0, 4.0]]), torch.zeros(1, 2)))
    12.5
    """
    apart = (guess - wanted.to(guess)).square()
    apart = apart if apart.dim() == 2 else places(apart).mean(1)
    return apart.sum(-1) / 2
