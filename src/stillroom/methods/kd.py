"""Knowledge distillation: match softened probabilities of classes or tokens."""

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge, Gt, Le
from torch import Tensor

from stillroom.core import Needs, Paper
from stillroom.losses.divergences import forward_kl
from stillroom.losses.policy import label_logp
from stillroom.methods._bases import LogitMethod


@dataclass(frozen=True, kw_only=True)
class KD(LogitMethod):
    """Match the teacher's softened probabilities, of classes or of every next token.

    ``(1 - w) * T^2 * KL(softmax(teacher / T) || softmax(student / T)) + w * CE(label, student)``

    ``T^2`` keeps the size of the gradient when T changes (section 2). On text the mean runs over
    supervised tokens, on classes over examples.

    Differences: the paper gives the weights as examples only; here they add up to one.

    Args:
        temperature: T; higher shows more of the teacher's small probabilities. A teacher that gives
            some tokens alone (top-k with the rest as one, draws) has temperature 1.
        label_weight: w, the share of the cross-entropy with the true label (the data's token).
    """

    paper = Paper(
        "1503.02531", "Hinton, Vinyals, Dean, 2015", "Distilling the Knowledge in a Neural Network"
    )
    needs = Needs(teacher={"sparse"}, student={"logits"})
    modality = "any"
    family = "logits"

    temperature: Annotated[float, Gt(0)] = 2.0
    label_weight: Annotated[float, Ge(0), Le(1)] = 0.0

    def objective(self, student: Tensor, teacher: Tensor | None, labels: Tensor) -> Tensor:
        assert teacher is not None
        T, w = self.temperature, self.label_weight
        soft = T**2 * forward_kl(student / T, teacher / T)
        return soft if w == 0 else (1 - w) * soft - w * label_logp(student, labels)
