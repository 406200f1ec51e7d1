"""Universal logit distillation: the teacher's probabilities in falling order, token for token."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt
from torch import Tensor

from stillroom.core import Batch, Method, Needs, Paper, Signals, Term
from stillroom.losses.per_row import per_row
from stillroom.losses.policy import nll
from stillroom.losses.transport import sorted_distance


@dataclass(frozen=True, kw_only=True)
class ULD(Method):
    """Cross-tokenizer distillation: match how sure the teacher is, whatever its vocabulary.

    ``L = CE(y) + weight * mean_x 1/T' sum_{t <= T'} sum_i |p_t,(i) - q_t,(i)|``, with the
    probabilities of student and teacher in falling order, the shorter vector filled up with zeros,
    and ``T' = min(T_student, T_teacher)``: the t-th token of the student's answer goes with the
    t-th of the teacher's, each in its own tokenizer and template, whatever they stand for. Which
    token is likely is learned from the text alone.

    Differences: an answer's end counts as one of its tokens. ``pairing: bytes`` is not the
    paper's.

    Args:
        weight: of the distance, the paper's lambda.
        temperature: of both distributions.
        pairing: ``index`` is the paper's; ``bytes`` pairs places after the same bytes, and leaves
            out those where one side is within a token.
        largest: probabilities that are compared, the rest of each being one more; null compares
            all, which takes a sort of the whole vocabulary.
    """

    paper = Paper(
        "2402.12030", "Boizard et al., 2024", "Towards Cross-Tokenizer Distillation: the Universal "
        "Logit Distillation Loss for LLMs"
    )  # fmt: skip
    needs = Needs(teacher={"spans"}, student={"logits"})
    modality = "text"
    family = "cross-tokenizer"

    weight: Annotated[float, Ge(0)] = 1.5
    temperature: Annotated[float, Gt(0)] = 1.0
    pairing: Literal["index", "bytes"] = "index"
    largest: Annotated[int, Ge(1)] | None = None

    def loss(
        self, student: Signals, teacher: Signals, batch: Batch, nets: Mapping[str, Any]
    ) -> list[Term]:
        told = teacher[self.pairing]
        counted, owner = told.paired * batch.mask, batch.owner
        tokens = counted.new_zeros(batch.size).index_add(0, owner, counted)
        share = counted / tokens.clamp_min(1)[owner]
        far = per_row(self._distance, student, told, None, foreign=True, share=share)
        each = far.new_zeros(batch.size).index_add(0, owner, far)
        text = per_row(nll, student, None, batch.labels)
        return [
            Term(text, name="text"),
            Term(each, over="examples", weight=self.weight, name="distance"),
        ]

    def _distance(self, student: Tensor, teacher: Tensor, labels: None, share: Tensor) -> Tensor:
        both = student / self.temperature, teacher / self.temperature
        return share * sorted_distance(*both, largest=self.largest)
