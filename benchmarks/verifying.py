"""How our extraction and verdict agree with what is recorded of a teacher's real answers.

The rationales of GPT-3 (``teacher-rationales`` in the folder that ``STILLROOM_DATA`` names) come
with the answer that their makers extracted and the gold answer. Prints a table, and the answers on
which the two disagree, all of those behind the phrase, and a seeded sample of those without it.
"""

from __future__ import annotations

import argparse
import os
import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from stillroom.data.rows import Row, read_rows
from stillroom.traces.numbers import value
from stillroom.traces.verifying import Verdict, Verify

NUMBER = Verify(
    kind="numeric", after=["the answer (arabic numerals) is"], column="gold_answer"
)  # fmt: skip
YES_NO = Verify(
    kind="choice",
    after=["the answer (Yes or No) is"],
    options=["yes", "no"],
    letters=False,
    column="gold_answer",
)
FILES = {"gsm8k": NUMBER, "multiarith": NUMBER, "svamp": NUMBER, "strategyqa": YES_NO}
TAIL = 120
"""Characters of an answer's end that are printed."""


@dataclass(frozen=True)
class Pair:
    """A row with our verdict: what was recorded was extracted, and right, or not."""

    file: str
    row: Row
    ours: Verdict

    @property
    def same_answer(self) -> bool:
        recorded, ours = self.row["teacher_answer"], self.ours.answer
        if self.file == "strategyqa":
            return (ours or "") == recorded
        return value(ours or "") == value(recorded)

    @property
    def same_verdict(self) -> bool:
        return self.ours.right == (self.row["teacher_answer"] == self.row["gold_answer"])


def pairs(file: str, verify: Verify) -> Iterator[Pair]:
    """All answers of a file."""
    folder = os.environ.get("STILLROOM_DATA")
    if folder is None:
        raise SystemExit("set STILLROOM_DATA to the folder that holds teacher-rationales/")
    place = Path(folder) / "teacher-rationales" / f"{file}.gpt3-zero-shot-cot.jsonl"
    for where, row in read_rows(place):
        yield Pair(file, row, verify.verdict(row, row["teacher_response"], where))


def main() -> None:
    """Both ways of looking for the answer, file by file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--show", type=int, default=50, help="disagreements to print")
    parser.add_argument("--seed", type=int, default=0, help="of the sample")
    told = parser.parse_args()
    behind = _table("behind the phrase", phrase=True)
    without = _table("no phrase given", phrase=False)
    print(f"\nall {len(behind)} disagreements behind the phrase")
    _show(behind)
    shown = {pair.row["question"] for pair in behind}
    without = [pair for pair in without if pair.row["question"] not in shown]
    count = min(len(without), max(0, told.show - len(behind)))
    print(f"\n{count} of {len(without)} further ones without it, seed {told.seed}")
    _show(random.Random(told.seed).sample(without, count))


def _table(title: str, *, phrase: bool) -> list[Pair]:
    print(
        f"\n{title}\n| file | rows | same answer | same verdict | right, recorded | right, ours |"
    )
    print("| --- | --- | --- | --- | --- | --- |")
    apart = []
    for file, verify in FILES.items():
        every = list(pairs(file, verify if phrase else replace(verify, after=None)))
        answers, verdicts = (
            sum(pair.same_answer for pair in every),
            sum(pair.same_verdict for pair in every),
        )
        recorded = sum(p.row["teacher_answer"] == p.row["gold_answer"] for p in every)
        ours = sum(p.ours.right is True for p in every)
        print(f"| {file} | {len(every)} | {answers} | {verdicts} | {recorded} | {ours} |")
        apart += [p for p in every if not (p.same_answer and p.same_verdict)]
    return apart


def _show(apart: list[Pair]) -> None:
    for i, pair in enumerate(apart, start=1):
        row, ours = pair.row, pair.ours
        print(
            f"{i:3} {pair.file}: recorded {row['teacher_answer']!r}, ours {ours.answer!r}, gold "
            f"{row['gold_answer']!r}; answer {'same' if pair.same_answer else 'differs'}, verdict "
            f"{'same' if pair.same_verdict else 'differs'}: {row['teacher_response'][-TAIL:]!r}"
        )


if __name__ == "__main__":
    main()
