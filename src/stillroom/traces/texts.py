"""What every step that drops rows shares: which text it looks at, what it kept, what it notes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from stillroom.data.rows import Row
from stillroom.data.turns import answer, question
from stillroom.failures import Failure


@dataclass(frozen=True)
class Dropped:
    """A row that was left out: its place in the list (from 0), one word for the reason, a sentence.

    Counts are made over the word (``kind``).
    """

    place: int
    row: Row
    kind: str
    why: str

    def told(self) -> Row:
        """The row as it came, with why it was left out in the column ``dropped``."""
        return {**self.row, "dropped": {"row": self.place, "kind": self.kind, "why": self.why}}


@dataclass(frozen=True)
class Kept:
    """Rows that stay, in their order, and those that do not."""

    rows: Sequence[Row] = field(default_factory=list)
    dropped: Sequence[Dropped] = field(default_factory=list)

    @property
    def counts(self) -> dict[str, int]:
        """How many rows were dropped by reason, the most frequent first."""
        return dict(Counter(left.kind for left in self.dropped).most_common())


Step = Callable[[Sequence[Row]], Kept]


def chained(rows: Sequence[Row], steps: Sequence[Step]) -> Kept:
    """One step after the other, each on what the one before kept; places are those of ``rows``."""
    places, dropped = [*range(len(rows))], []
    for step in steps:
        kept = step(rows)
        gone = {left.place for left in kept.dropped}
        dropped += [replace(left, place=places[left.place]) for left in kept.dropped]
        places = [place for i, place in enumerate(places) if i not in gone]
        rows = kept.rows
    return Kept(rows, sorted(dropped, key=lambda left: left.place))


def text_of(row: Row, column: str, where: str = "row") -> str:
    """The text that a step looks at.

    Args:
        row: one row.
        column: ``prompt``: the question, of ``messages`` all that the user says; ``completion``:
            the answer, of ``messages`` the last turn; else a column that holds a text.
        where: the row, for messages.

    Raises:
        Failure: there is no such text.
    """
    if column == "prompt" and ("messages" in row or "prompt" in row):
        asked = question(row, where)
        if isinstance(asked, str):
            return asked
        said = [turn.get("content") for turn in asked if turn.get("role") == "user"]
        return "\n".join(text for text in said if isinstance(text, str))
    if column == "completion" and column not in row and "messages" in row:
        return answer(row["messages"], where)
    if not isinstance(text := row.get(column), str):
        raise Failure(
            f"{where}: expected a text in {column!r}, got {type(text).__name__} among the columns "
            f"{sorted(row)}; name the column that holds it"
        )
    return text


def noted(row: Row, step: Mapping[str, Any]) -> Row:
    """The row with one more step in its provenance's list ``filtered``; all else stays."""
    before = row.get("provenance") or {}
    return {**row, "provenance": {**before, "filtered": [*before.get("filtered", ()), dict(step)]}}
