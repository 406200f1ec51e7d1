"""Reinforcement distillation: wrong rationales of a teacher are learned from, too."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Le, Lt

from stillroom.core import Failure, Lesson, Needs, Paper, Pipeline, Work
from stillroom.data.rows import Row
from stillroom.methods.preference import Preference
from stillroom.methods.seqkd import SeqKD
from stillroom.traces.pairing import right_over_wrong


@dataclass(frozen=True, kw_only=True)
class REDI(Pipeline):
    """Learns right rationales first, then right and wrong ones in pairs, without a reference model.

    Stage 1, for ``share`` of the steps: ``-mean_t log q(o_t | x, o_<t)`` on right rationales. Stage
    2, on the first right and the first wrong rationale of each question that has both: ``L =
    -ell(y_w | x) + alpha ell(y_l | x)``, ``ell(y) = (1 / |y|) sum_t log q(y_t | x, y_<t)``, the
    mean over pairs. alpha 0 is fine-tuning on the right ones; alpha 1, symmetric, is what SimPO
    becomes for a small beta, up to scale. The second term has no lower bound: where both
    ``preference/chosen`` and ``preference/rejected`` fall fast, the student collapses.

    Differences: a rationale is right if the verifier of the recipe says so, where the paper asks a
    judge as well. The steps of both stages come from one budget. The option of the authors' code
    that weighs a wrong rationale by its own likelihood is left out.

    Args:
        n: rationales of the teacher to each question.
        temperature: of these; null leaves it to the teacher.
        share: of the steps that stage 1 gets.
        rate: learning rates of stage 2, as a share of those of stage 1.
        loss: of stage 2; ``dpo`` (sums, stage 1's student as reference) and ``simpo`` (means, no
            reference) are what the paper compares with, ``sft`` learns right rationales on, as a
            control: as many as stage 1 has.
        alpha: weight of the wrong rationale.
        beta: of ``dpo`` and ``simpo``.
        gamma: the margin of ``simpo``.
    """

    paper = Paper(
        "2505.24850", "Xu, Peng, Long, Xu, Chu & Qi, 2025", "Harnessing Negative Signals: "
        "Reinforcement Distillation from Teacher Data for LLM Reasoning",
    )  # fmt: skip
    needs = Needs(teacher={"text"}, fresh=True)
    modality = "text"
    family = "reasoning"

    n: Annotated[int, Ge(1)] = 4
    temperature: Annotated[float, Ge(0)] | None = None
    share: Annotated[float, Gt(0), Lt(1)] = 0.75
    rate: Annotated[float, Gt(0)] = 0.02
    loss: Literal["redi", "dpo", "simpo", "sft"] = "redi"
    alpha: Annotated[float, Ge(0), Le(1)] = 0.8
    beta: Annotated[float, Gt(0)] = 2.0
    gamma: Annotated[float, Ge(0)] = 1.0

    def questions(self, work: Work) -> int:
        return self.n * len(work.rows)

    def run(self, work: Work) -> Lesson:
        asked = work.verified(work.ask("answer", work.rows, n=self.n, temperature=self.temperature))
        right = {row["id"]: row for row in reversed(asked) if _right(row)}
        good = [right[row["id"]] for row in work.rows if row["id"] in right]
        paired = right_over_wrong(asked)
        work.tell(
            "pairs of a right and a wrong rationale", pairs=len(paired.rows), **paired.without
        )
        if self.loss != "sft" and not paired.rows:
            raise Failure(
                "redi: no question has both a right and a wrong rationale "
                f"({paired.without}): raise pipeline.n, or take loss: sft"
            )
        first = round(self.share * work.steps)
        start = work.teach(Lesson("right rationales", good, first, SeqKD()))
        rest = work.steps - first
        if self.loss == "sft":
            return Lesson("right ones again", good, rest, SeqKD(), start, rate=self.rate)
        return Lesson("pairs", paired.rows, rest, self.method, start, rate=self.rate)

    @property
    def method(self) -> Preference:
        """The loss of stage 2."""
        if self.loss == "dpo":
            return Preference(beta=self.beta)
        told: dict[str, Any] = {"reference": False, "mean": True}
        if self.loss == "simpo":
            return Preference(**told, beta=self.beta, margin=self.gamma)
        return Preference(**told, shape="linear", beta=1.0, alpha=self.alpha)


def _right(row: Row) -> bool:
    return row["provenance"]["verified"]["right"] is True
