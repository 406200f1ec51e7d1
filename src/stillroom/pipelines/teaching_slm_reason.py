"""Chain-of-thought distillation: a small model learns from a teacher's filtered rationales."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge

from stillroom.core import Lesson, Needs, Paper, Pipeline, Work


@dataclass(frozen=True, kw_only=True)
class TeachingSLMReason(Pipeline):
    """Fine-tunes a small model on a large one's rationales, of which the wrong ones are dropped.

    ``r ~ teacher(. | x, y)``, kept if its final answer is y; then ``L = -mean_t log q(o_t | x,
    o_<t)`` of the rationale o that ends with the answer, the prompt masked.

    The teacher is shown the gold answer (``given``), so that its rationale leads there: it may then
    also put that answer at the end of one that does not. The filter reads the final answer alone.

    Differences: the templates have no worked examples; give a file of your own (``templates``) that
    has. Unconfirmed: how many samples a question; the paper's are greedy, one each.

    Args:
        n: rationales of the teacher to each question.
        temperature: of these; null leaves it to the teacher.
        given: whether the teacher is shown the gold answer.
        keep_wrong: learns from all rationales, the wrong ones too: the ablation.
        most: rationales kept of a question, the first ones.
    """

    paper = Paper(
        "2212.08410", "Magister, Mallinson, Adamek, Malmi & Severyn, 2023",
        "Teaching Small Language Models to Reason",
    )  # fmt: skip
    needs = Needs(teacher={"text"}, fresh=True)
    modality = "text"
    family = "reasoning"

    n: Annotated[int, Ge(1)] = 1
    temperature: Annotated[float, Ge(0)] | None = None
    given: bool = True
    keep_wrong: bool = False
    most: Annotated[int, Ge(1)] = 1

    def questions(self, work: Work) -> int:
        return self.n * len(work.rows)

    def run(self, work: Work) -> Lesson:
        what = "answer_given" if self.given else "answer"
        asked = work.ask(what, work.rows, n=self.n, temperature=self.temperature)
        kept = asked if self.keep_wrong else work.right(asked)
        counts: dict[str, int] = {}
        rows = []
        for row in kept:
            counts[row["id"]] = counts.get(row["id"], 0) + 1
            if counts[row["id"]] <= self.most:
                rows.append(row)
        return Lesson("rationales", rows, work.steps)
