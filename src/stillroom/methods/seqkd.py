"""Sequence-level knowledge distillation: learn the teacher's written answers."""

from dataclasses import dataclass

from torch import Tensor

from stillroom.core import Needs, Paper
from stillroom.losses.policy import label_logp
from stillroom.methods._bases import LogitMethod


@dataclass(frozen=True, kw_only=True)
class SeqKD(LogitMethod):
    """Learn the teacher's written answers by cross-entropy (supervised fine-tuning on them).

    ``- log p_student(y_k | x, y_<k)``, the mean over the tokens of the teacher's answers y, the
    end of the answer included.

    Differences: the paper decodes y by beam search (the teacher's mode); here y is whatever the
    teacher wrote, recorded in the data. Its sequence-level interpolation (the best of a beam by
    similarity to a reference) is a choice of data, not of the loss, and is not made here.
    """

    paper = Paper("1606.07947", "Kim, Rush, 2016", "Sequence-Level Knowledge Distillation")
    needs = Needs(teacher={"text"}, student={"logits"})
    modality = "text"
    family = "sequence"

    def objective(self, student: Tensor, teacher: Tensor | None, labels: Tensor) -> Tensor:
        return -label_logp(student, labels)
