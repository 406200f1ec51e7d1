"""Lion: a student's weak spots tell a teacher which new instructions to write, round by round."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le, Lt

from stillroom.core import Failure, Lesson, Needs, Paper, Pipeline, Work
from stillroom.data.rows import Row
from stillroom.data.templates import asked
from stillroom.pipelines._instructions import Writer
from stillroom.traces.judge_prompts import Pair
from stillroom.traces.judging import judged

Gaps = dict[tuple[str, str], float | None]
"""The d of an instruction's id and a student's answer; None where no reply told it."""


@dataclass(frozen=True, kw_only=True)
class Lion(Pipeline):
    """Adversarial distillation of a text-only teacher: imitate, discriminate, generate, repeat.

    With a train pool X_A and a cache pool X_B, which both begin as the training questions (seeds):

    1. Imitation: ``L = -mean_t log q(y_t | x, y_<t)`` for x in X_A, y the teacher's answer.
    2. Discrimination: for x in X_B teacher and student answer, and the teacher as referee scores
       both from 1 to 10, in both orders: ``d(x) = mean over orders of s(y_T) - s(y_S)``. Hard is
       what has ``d >= tau``, easy the rest. Equal answers have d = 0, and nobody is asked.
       Where a reply cannot be parsed x is neither, in this round.
    3. Generation: the teacher writes new instructions, of the kind of a hard one and, as many, of
       the domain of an easy one with rarer content. Kept are those that pass the rules of
       ``traces.filtering.LION``, are no validation question (``traces.decontamination``), and
       whose highest ROUGE-L against X_B is at most ``alike``. They become X_A, and join X_B.

    The steps of the recipe are parted over ``rounds + 1`` lessons, each of which begins with the
    student of the one before and has its own warm-up and decay. Where no instruction is hard the
    round has easy ones alone, and the other way round; where nothing new is left, one last lesson
    gets the steps that remain, on X_A as it is.

    The test split is out of reach here: hold it against the training questions beforehand.

    Differences: new instructions of a kind are as many as pass, then cut to 1:1; the same text is
    never taken twice, whatever ``alike`` is; the teacher sees what it already wrote of a given
    instruction; there is no limit to the length of a new one but the teacher's own. Unconfirmed:
    that X_A is the new instructions alone; that ROUGE-L is taken against all of X_B.

    Args:
        rounds: of discrimination and generation; 0 is imitation of the seeds alone.
        new: instructions of a round, both kinds together.
        pick: what new ones are made from: ``hard-easy`` is the paper's; ``hard`` makes hard ones
            alone; ``random`` draws from all of X_B, half by each template, without a referee.
        tau: the least d of a hard instruction.
        alike: the highest ROUGE-L of a new instruction against the pool. It sees words and numbers
            alone: of formulas 1 is apt.
        min_words: of a new instruction.
        tries: times that the teacher is asked in a round for instructions that are still missing.
        share: of the steps that the seeds get; null parts all steps by the numbers of rows, so that
            each row is seen equally often.
        temperature: of the teacher's answers; null leaves it to the teacher.
        judge_temperature: of the referee.
        generator_temperature: of new instructions.
        sample_temperature: of the student's answers.
    """

    paper = Paper(
        "2305.12870", "Jiang, Chan, Chen & Wang, 2023",
        "Lion: Adversarial Distillation of Proprietary Large Language Models",
    )  # fmt: skip
    needs = Needs(teacher={"text"}, fresh=True)
    modality = "text"
    family = "adversarial"

    rounds: Annotated[int, Ge(0)] = 3
    new: Annotated[int, Ge(2)] = 6000
    pick: Literal["hard-easy", "hard", "random"] = "hard-easy"
    tau: Annotated[float, Gt(0), Le(9)] = 1.0
    alike: Annotated[float, Ge(0), Le(1)] = 0.7
    min_words: Annotated[int, Ge(1)] = 4
    tries: Annotated[int, Ge(1)] = 3
    share: Annotated[float, Gt(0), Lt(1)] | None = None
    temperature: Annotated[float, Ge(0)] | None = None
    judge_temperature: Annotated[float, Ge(0)] | None = 0.2
    generator_temperature: Annotated[float, Ge(0)] | None = 1.0
    sample_temperature: Annotated[float, Ge(0)] = 0.0

    def questions(self, work: Work) -> int:
        pools = [len(work.rows) + k * self.new for k in range(self.rounds + 1)]
        judged = 0 if self.pick == "random" else 2 * sum(pools[:-1])
        return pools[-1] + judged + self.rounds * self.tries * (self.new + 1)

    def run(self, work: Work) -> Lesson:
        steps = self._parted(work)
        told = {"alike": self.alike, "min_words": self.min_words, "tries": self.tries}
        writer = Writer(work, **told, temperature=self.generator_temperature)
        train = self._answered(work, work.rows)
        cache, gaps, start = [*train], Gaps(), None
        for k in range(self.rounds if train else 0):
            start = work.teach(Lesson(f"round {k}", train, steps[k], start=start))
            seeds = self._seeds(work, start, cache, gaps, k)
            new = self._answered(work, self._made(writer, seeds, cache, k))
            if not new:
                return Lesson("the rest", train, sum(steps[k + 1 :]), start=start)
            train, cache = new, [*cache, *new]
            work.tell(f"pools after round {k}", train=len(train), cache=len(cache))
        return Lesson("last round", train, steps[-1], start=start)

    def _parted(self, work: Work) -> list[int]:
        """Steps of each lesson; the first gets what remains."""
        if work.steps <= self.rounds:
            raise Failure(
                f"train.steps: {work.steps} steps are too few for {self.rounds + 1} lessons; give "
                "more, or lower pipeline.rounds"
            )
        share = self.share or len(work.rows) / (len(work.rows) + self.rounds * self.new)
        later = max(1, int((1 - share) * work.steps / max(1, self.rounds)))
        return [work.steps - self.rounds * later, *[later] * self.rounds]

    def _answered(self, work: Work, rows: Sequence[Row]) -> list[Row]:
        return work.ask("answer", rows, temperature=self.temperature)

    def _seeds(
        self, work: Work, student: Path, cache: Sequence[Row], gaps: Gaps, k: int
    ) -> dict[str, list[Row]]:
        """What new instructions of each kind are made from."""
        if self.pick == "random":
            return {"hard": [*cache], "easy": [*cache]}
        wrote = work.write(student, cache, temperature=self.sample_temperature)
        own = {row["id"]: row["completion"] for row in wrote}
        said = [(row, own.get(row["id"], "")) for row in cache]
        self._judge(work, [(r, s) for r, s in said if (r["id"], s) not in gaps], gaps)
        found = [(row, gaps[row["id"], s]) for row, s in said]
        hard = [row for row, gap in found if gap is not None and gap >= self.tau]
        easy = [row for row, gap in found if gap is not None and gap < self.tau]
        told = {"hard": len(hard), "easy": len(easy), "unparsed": len(cache) - len(hard + easy)}
        work.tell(f"discrimination in round {k}", **told, hard_share=len(hard) / len(cache))
        return {"hard": hard, "easy": easy} if self.pick == "hard-easy" else {"hard": hard}

    def _judge(self, work: Work, said: Sequence[tuple[Row, str]], gaps: Gaps) -> None:
        """Writes into ``gaps`` the d of each instruction and answer of the student."""
        pairs = [Pair(asked(row), row["completion"], own) for row, own in said]
        orders = [
            {**row, "first": first, "second": second}
            for (row, _), pair in zip(said, pairs, strict=True)
            if not pair.same
            for first, second in ((pair.a, pair.b), (pair.b, pair.a))
        ]
        told = [{**row, "place": i} for i, row in enumerate(orders)]
        came = work.ask("judge.scores", told, temperature=self.judge_temperature)
        replies = {row["place"]: row["completion"] for row in came}
        found = judged(pairs, [replies.get(i) for i in range(len(told))], "scores")
        gaps.update({(r["id"], s): one.gap for (r, s), one in zip(said, found, strict=True)})

    def _made(
        self, writer: Writer, seeds: dict[str, list[Row]], cache: Sequence[Row], k: int
    ) -> list[Row]:
        """New instructions of each kind, as many of one as of the other where there are both."""
        wanted, made = ceil(self.new / len(seeds)), list[list[Row]]()
        for kind, given in seeds.items():
            before = [*cache, *(row for rows in made for row in rows)]
            made.append(writer.write(kind, given, wanted, before, k))
        fewest = min((len(rows) for rows in made if rows), default=0)
        return [row for rows in made for row in rows[:fewest]]
