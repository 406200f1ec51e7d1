"""New instructions that a teacher writes from given ones: asked for, read, sieved, none twice."""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from stillroom.core import Work
from stillroom.data.rows import Row
from stillroom.data.templates import asked
from stillroom.data.turns import question
from stillroom.traces.decontamination import decontaminated
from stillroom.traces.duplicates import unlike
from stillroom.traces.filtering import LION, filtered
from stillroom.traces.texts import Dropped, Kept, chained

COPIES = 4
"""New instructions that are asked of one given one at a time, at most."""
_LABEL = re.compile(
    r"^[\s*#]*(?:(?:(?:new|created)\s+)?(?:task|instruction))[\s*#]*:[\s*#]*", re.IGNORECASE
)
_ECHO = re.compile(r"^[\s*#]*(?:given task|written already)[\s*#]*:", re.IGNORECASE | re.MULTILINE)


class Writer:
    """Asks a teacher for new instructions, and remembers what it wrote of each given one.

    It is shown that, so that no question is put to it twice; a given one of which nothing could be
    read is not asked about again.

    Args:
        work: of the pipeline.
        alike: the highest ROUGE-L against the pool of an instruction that is kept.
        min_words: of a new instruction.
        tries: times that it is asked for what is still missing.
        temperature: of the teacher.
    """

    def __init__(
        self, work: Work, *, alike: float, min_words: int, tries: int, temperature: float | None
    ) -> None:
        self.work, self.tries, self.temperature = work, tries, temperature
        self.alike, self.rules = alike, replace(LION, min_words=min_words)
        self.held = [asked(row) for row in work.validation]
        self._written: dict[tuple[str, str], list[str]] = {}

    def write(
        self, kind: str, given: Sequence[Row], wanted: int, pool: Sequence[Row], k: int
    ) -> list[Row]:
        """At most ``wanted`` new rows, through the template ``lion.KIND``, in round ``k``."""
        kept, dropped, unparsed = list[Row](), Counter[str](), 0
        for attempt in range(self.tries):
            draw = random.Random(f"{self.work.seed} {k} {kind} {attempt}")
            said = self._asked(kind, given, wanted - len(kept), draw)
            rows = [_new(row, kind, k) for row in said if row["text"]]
            unparsed += len(said) - len(rows)
            found = self._sieved(rows, [*pool, *kept])
            dropped.update(found.counts)
            kept = [*kept, *found.rows][:wanted]
            if len(kept) == wanted:
                break
        self.work.tell(f"{kind} in round {k}", kept=len(kept), unparsed=unparsed, **dropped)
        return [{**row, "id": f"lion/{k}/{kind}/{i}"} for i, row in enumerate(kept)]

    def _asked(
        self, kind: str, given: Sequence[Row], missing: int, draw: random.Random
    ) -> list[Row]:
        """Replies to some of the given rows, each with its ``text``, empty where it has none."""
        open_ = [row for row in given if self._written.get((kind, row["id"]), [""])]
        seeds = draw.sample(open_, min(missing, len(open_)))
        if not seeds:
            return []
        told = [{**row, "written": self._written.get((kind, row["id"]), [])} for row in seeds]
        copies = min(COPIES, missing // len(seeds))
        said = self.work.ask(f"lion.{kind}", told, n=copies, temperature=self.temperature)
        found: list[Row] = [{**row, "text": parsed(row["completion"])} for row in said]
        for row in seeds:
            self._written.setdefault((kind, row["id"]), [])
        for row in found:
            if row["text"]:
                self._written[kind, row["id"]].append(row["text"])
        return found

    def _sieved(self, rows: Sequence[Row], pool: Sequence[Row]) -> Kept:
        before = [asked(row) for row in pool]
        steps = [
            partial(filtered, rules=self.rules, column="prompt"),
            partial(_unseen, seen=before),
            partial(unlike, pool=before, most=self.alike),
        ]
        if self.held:
            steps.append(partial(decontaminated, against={"validation": self.held}))
        return chained(rows, steps)


def parsed(reply: str) -> str:
    r"""The instruction of a reply: without label or quotes; empty where it tells the prompt again.

    >>> parsed('**New task:** "Add 3 and 5."'), parsed("Given task: Add 3 and 5.")
    ('Add 3 and 5.', '')
    """
    if _ECHO.search(reply):
        return ""
    text = _LABEL.sub("", reply.strip())
    if len(text) > 1 and (text[0], text[-1]) in (('"', '"'), ("\u201c", "\u201d")):
        text = text[1:-1]
    return text.strip()


def _new(row: Row, kind: str, k: int) -> Row:
    """A row that asks the new text in the form of the given one; of its turns the system's stay."""
    made = {"made": {"template": f"lion.{kind}", "from": row["id"], "round": k}}
    if isinstance(turns := question(row), str):
        return {"prompt": row["text"], "provenance": made}
    system = [turn for turn in turns if turn["role"] == "system"]
    said = [*system, {"role": "user", "content": row["text"]}]
    return {"messages": said, "provenance": made}


def _unseen(rows: Sequence[Row], seen: Sequence[str]) -> Kept:
    """Rows whose very text was not there before; ROUGE-L cannot tell texts that differ in signs."""
    told, kept, dropped = set(seen), [], []
    for place, row in enumerate(rows):
        if (text := asked(row)) in told:
            dropped.append(Dropped(place, row, "same", "the same text was there before"))
        else:
            told.add(text)
            kept.append(row)
    return Kept(kept, dropped)
