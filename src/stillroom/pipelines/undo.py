"""UNDO: a teacher rewrites its rationales, round by round, for what the student gets wrong."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from annotated_types import Ge

from stillroom.core import Failure, Lesson, Needs, Paper, Pipeline, Work
from stillroom.data.matching import plain
from stillroom.data.rows import Row
from stillroom.data.templates import asked


@dataclass(frozen=True, kw_only=True)
class UNDO(Pipeline):
    """Distils reasoning in rounds: the teacher refines its rationales by the student's errors.

    1. ``r_i^0 ~ teacher(. | x_i, a_i)``, kept if its final answer is ``a_i``.
    2. The student learns round k's rationales by ``L_k = -mean_t log q(r_t | x, r_<t)``.
    3. ``E_k = {x of validation : answer(student_k(x)) != a}``, with what the student wrote.
    4. ``r_i^k ~ teacher(. | x_i, a_i, r_i^{k-1}, sample of E_k)``; where its final answer is not
       ``a_i``, or nothing came, ``r_i^{k-1}`` is kept. Then 2 again, ``rounds`` times.

    The steps of the recipe are parted equally over ``rounds + 1`` lessons, the last of which gets
    what remains; ``rounds: 0`` is fine-tuning on the first rationales. It stops early where the
    validation questions hold no error any more, or a round gained less than ``eps``: one last
    lesson then gets all steps that are left, on the rationales as they are, so that compute is
    the same. Each lesson has its own warm-up and decay of the learning rate.

    Errors are those of the validation questions, none of which may be in the training split. So
    that split has no clean estimate any more; test has.

    Differences: an item whose first rationale is wrong is dropped and not asked for again.
    Unconfirmed: that the teacher sees errors one by one and not a summary, the same ones beside
    every item of a round; the words of the templates; which student a round begins with.

    Args:
        rounds: K, how often rationales are refined.
        eps: least gain of a round, as a share of the validation questions; null goes on whatever a
            round gains.
        shown: errors that the teacher sees in a round, drawn anew in each; 0 shows none: the
            ablation.
        restart: each round begins with the recipe's student, and not with that of the round before.
        temperature: of the teacher; null leaves it to the teacher.
    """

    paper = Paper("2504.02521", "Jain, Goyal & Shridhar, 2025",
                  "UNDO: Understanding Distillation as Optimization")  # fmt: skip
    needs = Needs(teacher={"text"}, fresh=True)
    modality = "text"
    family = "reasoning"

    rounds: Annotated[int, Ge(0)] = 3
    eps: Annotated[float, Ge(0)] | None = 0.0
    shown: Annotated[int, Ge(0)] = 8
    restart: bool = False
    temperature: Annotated[float, Ge(0)] | None = None

    def questions(self, work: Work) -> int:
        return (1 + self.rounds) * len(work.rows)

    def run(self, work: Work) -> Lesson:
        self._check(work)
        rows = work.right(work.ask("answer_given", work.rows, temperature=self.temperature))
        part, start, before = work.steps // (self.rounds + 1), None, None
        for done in range(self.rounds if rows else 0):
            folder = work.teach(Lesson(f"round {done}", rows, part, start=start))
            start = None if self.restart else folder
            errors, score = _errors(work, folder)
            gain = None if before is None else score - before
            work.tell(f"round {done}, of validation", solved=score, errors=len(errors))
            if not errors or (gain is not None and self.eps is not None and gain < self.eps):
                return Lesson("the rest", rows, work.steps - part * (done + 1), start=start)
            draw = random.Random(f"{work.seed} {done}")
            errors = draw.sample(errors, min(self.shown, len(errors)))
            rows, before = self._refined(work, rows, errors, done + 1), score
        return Lesson("last round", rows, work.steps - part * self.rounds, start=start)

    def _check(self, work: Work) -> None:
        if not self.rounds:
            return
        if work.steps <= self.rounds:
            raise Failure(
                f"train.steps: {work.steps} steps are too few for {self.rounds + 1} lessons; give "
                "more, or lower pipeline.rounds"
            )
        if not work.validation:
            raise Failure(
                "undo: the student's errors are those of the validation questions, and there are "
                "none: give data.validation or data.hold_out, or rounds: 0"
            )
        learned = {plain(asked(row)) for row in work.rows}
        both = [row for row in work.validation if plain(asked(row)) in learned]
        if both:
            raise Failure(
                f"undo: {len(both)} of {len(work.validation)} validation questions are in the "
                f"training split too, the first {asked(both[0])!r:.100}: errors would be of what "
                "was learned; take them out of one of the two"
            )

    def _refined(self, work: Work, rows: Sequence[Row], errors: Sequence[Row], k: int) -> list[Row]:
        """The rows with new rationales, or the old one where the new one is not right."""
        told = [{**row, "solution": row["completion"], "errors": errors} for row in rows]
        new = work.ask("undo.refine", told, temperature=self.temperature)
        right = {row["id"]: row for row in work.right(new)}
        made = [_replaced(row, right.get(row["id"])) for row in rows]
        changed = sum(a["completion"] != b["completion"] for a, b in zip(rows, made, strict=True))
        work.tell(f"refined in round {k}", changed=changed, kept_old=len(rows) - len(right))
        return made


def _errors(work: Work, student: Path) -> tuple[list[Row], float]:
    """What a student gets wrong of the validation questions, and the share that it gets right.

    Where it wrote nothing it is wrong, too.
    """
    wrote = work.verified(work.write(student, work.validation))
    found = {row["id"]: row for row in wrote}
    right = {id for id, row in found.items() if row["provenance"]["verified"]["right"]}
    errors: list[Row] = [
        {
            "question": asked(row),
            "gold": row.get("gold"),
            "wrote": found[row["id"]]["completion"] if row["id"] in found else "",
        }
        for row in work.validation
        if row["id"] not in right
    ]
    return errors, len(right) / len(work.validation)


def _replaced(row: Row, new: Row | None) -> Row:
    """A row with another rationale, and where that came from; itself where it is the same."""
    if new is None or new["completion"] == row["completion"]:
        return row
    return {**row, "completion": new["completion"], "provenance": new["provenance"]}
