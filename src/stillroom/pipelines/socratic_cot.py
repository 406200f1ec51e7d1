"""Socratic CoT: one small model asks sub-questions, another answers them, in turn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Lt, MinLen

from stillroom.core import Failure, Lesson, Needs, Paper, Pipeline, Work
from stillroom.data.matching import plain
from stillroom.data.rows import Row
from stillroom.traces.subquestions import Steps, steps_of

DECOMPOSE = "socratic_cot.decompose"


@dataclass(frozen=True, kw_only=True)
class SocraticCoT(Pipeline):
    """Distils reasoning as sub-questions and answers, into a decomposer and a solver.

    The teacher tells problem P as ``(q_1, s_1) .. (q_n, s_n)``, kept if ``s_n`` has the right final
    answer. Each target is a row of its own, what stands before it is its prompt, so that the loss
    is on targets alone:

    - decomposer: ``L = -mean log p_Q(q_j | P, q_<j, s_<j)``, and after the last one the end mark;
      ``plan: at_once`` learns ``log p_Q(q_1 .. q_n | P)``;
    - solver: ``L = -mean log p_A(s_j | P, q_<=j, s_<j)``.

    At test time they work in turn, until the decomposer says that it ends, says nothing, or
    ``turns`` are over; the answer is all that they wrote. The last answer holds the final one.

    The solver is the run's student, and the decomposer is shipped beside it. Both are the recipe's
    network, so one that is to be as large as both together has twice the weights of either. They
    share the steps of the recipe, and a step has as many rows, but rows are shorter than those of
    one model.

    Differences: sub-questions come from the teacher alone, where the paper can also condition them
    on the equations or on their number. Unconfirmed: that the decomposer sees earlier answers.

    Args:
        system: ``two`` models; ``unified``: one learns ``log p(q_1, s_1 .. q_n, s_n | P)``;
            ``chain``: the same data with hidden questions, ``log p(s_1 .. s_n | P)``, which is
            chain-of-thought distillation.
        plan: whether sub-questions are asked one by one, each after the answers so far, or all
            before the first answer.
        asked_by: who asks sub-questions at test time: the decomposer, or the ``teacher``, as an
            upper bound: it then reads each problem that is answered, beside those told beforehand.
        share: of the steps that the decomposer gets, the others are the solver's.
        turns: sub-questions of a problem, at most; the problem and twice as many answers of full
            length must fit the student's context.
        checked: validation problems that the teacher tells too, to see how often the decomposer's
            next sub-question is the teacher's own, word by word; 0 does not look.
        asks: what stands before a sub-question.
        answers: what stands before its answer.
        end: what the decomposer writes where no sub-question is left.
        temperature: of the teacher; null leaves it to the teacher.
    """

    paper = Paper(
        "2212.00193", "Shridhar, Stolfo & Sachan, 2023",
        "Distilling Reasoning Capabilities into Smaller Language Models",
    )  # fmt: skip
    needs = Needs(teacher={"text"}, fresh=True)
    modality = "text"
    family = "reasoning"

    system: Literal["two", "unified", "chain"] = "two"
    plan: Literal["stepwise", "at_once"] = "stepwise"
    asked_by: Literal["decomposer", "teacher"] = "decomposer"
    share: Annotated[float, Gt(0), Lt(1)] = 0.5
    turns: Annotated[int, Ge(1)] = 12
    checked: Annotated[int, Ge(0)] = 0
    asks: Annotated[str, MinLen(1)] = "\nQ: "
    answers: Annotated[str, MinLen(1)] = "\nA: "
    end: Annotated[str, MinLen(1)] = "Done."
    temperature: Annotated[float, Ge(0)] | None = None

    def questions(self, work: Work) -> int:
        return len(work.rows) + min(self.checked, len(work.validation))

    def run(self, work: Work) -> Lesson:
        told = self._told(work, work.rows)
        if self.system != "two":
            rows = [self._row(row, row["prompt"], self._whole(steps)) for row, steps in told]
            return Lesson(self.system, rows, work.steps)
        first = round(self.share * work.steps)
        if not 0 < first < work.steps:
            raise Failure(
                f"socratic_cot.share: of {work.steps} steps it gives {first} to the decomposer; "
                "each of the two needs some: give more steps, or another share"
            )
        solver = [one for row, steps in told for one in self.solver_rows(row, steps)]
        if not solver:
            return Lesson("solver", [], work.steps)
        asking = [one for row, steps in told for one in self.decomposer_rows(row, steps)]
        decomposer = work.teach(Lesson("decomposer", asking, first))
        if self.checked:
            self._look(work, decomposer)
        written = partial(self._written, work, decomposer)
        beside = {"decomposer": decomposer}
        return Lesson("solver", solver, work.steps - first, beside=beside, written=written)

    def decomposer_rows(self, row: Row, steps: Steps) -> list[Row]:
        """What the decomposer learns of a problem: each sub-question once, and the end."""
        problem = row["prompt"]
        if self.plan == "at_once":
            told = self.asks.join(q for q, _ in steps)
            return [self._row(row, problem + self.asks, told)]
        targets = [*(q for q, _ in steps), self.end]
        before = [problem + self.text(steps[:j]) + self.asks for j in range(len(targets))]
        return [self._row(row, p, q) for p, q in zip(before, targets, strict=True)]

    def solver_rows(self, row: Row, steps: Steps) -> list[Row]:
        """What the solver learns of a problem: each answer once, its sub-question given."""
        return [
            self._row(row, row["prompt"] + self.text(steps[:j]) + self._open(q), s)
            for j, (q, s) in enumerate(steps)
        ]

    def text(self, steps: Steps) -> str:
        """Sub-questions and answers as both models read them."""
        return "".join(self._open(q) + s for q, s in steps)

    def _open(self, question: str) -> str:
        return self.asks + question + self.answers

    def _whole(self, steps: Steps) -> str:
        if self.system == "chain":
            return "".join(self.answers + s for _, s in steps)
        return self.text(steps)

    @staticmethod
    def _row(row: Row, prompt: str, completion: str) -> Row:
        return {**row, "prompt": prompt, "completion": completion}

    def _told(self, work: Work, rows: Sequence[Row]) -> list[tuple[Row, Steps]]:
        """Problems with the teacher's steps, of those whose last answer is right."""
        if odd := [row["id"] for row in rows if "messages" in row]:
            raise Failure(
                f"socratic_cot: {odd[0]} is a conversation, and both models go on from plain text: "
                "data.columns makes a prompt of it"
            )
        asked = work.ask(DECOMPOSE, rows, temperature=self.temperature)
        parsed = [(row, steps_of(row["completion"])) for row in asked]
        good = [(row, steps) for row, steps in parsed if steps and self._clean(steps)]
        work.tell("decompositions", parsed=len(good), unparsed=len(asked) - len(good))
        right = work.right([{**row, "completion": steps[-1][1]} for row, steps in good])
        kept = {row["id"] for row in right}
        return [(row, steps) for row, steps in good if row["id"] in kept]

    def _clean(self, steps: Steps) -> bool:
        """Whether no text holds a mark, by which texts are told apart, or is the end."""
        marks = self.asks, self.answers
        return not any(m in text for step in steps for text in step for m in marks) and not any(
            plain(q) == plain(self.end) for q, _ in steps
        )

    def _look(self, work: Work, decomposer: Path) -> None:
        """How often the next sub-question is the teacher's, where all before is the teacher's."""
        told = self._told(work, work.validation[: self.checked])
        rows = [
            {**one, "target": one["completion"]}
            for row, steps in told
            for one in self.decomposer_rows(row, steps)
        ]
        wrote = work.write(decomposer, rows)
        hits = sum(plain(one["completion"]) == plain(one["target"]) for one in wrote)
        work.tell("sub-questions of validation", asked=len(rows), as_the_teacher=hits)

    def _written(
        self, work: Work, decomposer: Path, solver: Any, prompts: Sequence[str]
    ) -> list[str]:
        """What the two write to problems, in turn."""
        done: list[list[tuple[str, str]]] = [[] for _ in prompts]
        plans = self._plans(work, decomposer, prompts)
        going = list(range(len(prompts)))
        for turn in range(self.turns):
            before = {i: prompts[i] + self.text(done[i]) for i in going}
            if plans is None:
                said = work.reply(decomposer, [before[i] + self.asks for i in going])
                asked = dict(zip(going, map(str.strip, said), strict=True))
            else:
                asked = {i: plans[i][turn] for i in going if turn < len(plans[i])}
            going = [i for i, q in asked.items() if q and q != self.end.strip()]
            if not going:
                break
            said = work.reply(solver, [before[i] + self._open(asked[i]) for i in going])
            for i, s in zip(going, said, strict=True):
                done[i].append((asked[i], s.strip()))
        return [self.text(steps) for steps in done]

    def _plans(
        self, work: Work, decomposer: Path, prompts: Sequence[str]
    ) -> list[list[str]] | None:
        """All sub-questions of each problem, where they are known before the first answer."""
        if self.asked_by == "teacher":
            rows = [{"id": i, "prompt": prompt} for i, prompt in enumerate(prompts)]
            found = {row["id"]: steps_of(row["completion"]) for row in work.ask(DECOMPOSE, rows)}
            return [[q for q, _ in found.get(i, ())] for i in range(len(prompts))]
        if self.plan == "stepwise":
            return None
        said = work.reply(decomposer, [prompt + self.asks for prompt in prompts])
        return [[q.strip() for q in text.split(self.asks) if q.strip()] for text in said]
