"""Two tokenizers beside each other: tables for the terminal and a page."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from stillroom.data.coverage import Coverage, Side
from stillroom.reports import html
from stillroom.reports.results import DASH, number
from stillroom.reports.words import visible

LOST = 12
"""How many texts that do not come back are shown of each."""
SPACES = str.maketrans({" ": "␣", "\n": "⏎", "\t": "⇥"})
LEGEND = (
    "␣ is a space, ⏎ a line feed, ⇥ a tab; \\x.. and \\u.. are parts of characters or unseen ones"
)


def rows(told: Coverage) -> list[tuple[str, str, list[str]]]:
    """The numbers: name, what it means, of both sides."""
    every = [
        (name, says, [text(side) for side in told.sides])
        for name, says, text in (
            ("vocabulary", "tokens that stand for text", lambda s: number(s.vocabulary)),
            ("in common", "of these, by their bytes", lambda s: _of(s.common, s.vocabulary)),
            ("tokens", "in all texts", lambda s: number(s.tokens)),
            ("bytes a token", "in all texts", lambda s: _number(s.bytes_a_token)),
            ("covered", "tokens of the texts that the other has too", lambda s: _share(s.covered)),
            ("one to one", "tokens of aligned texts that are one token of the other too",
             lambda s: _share(s.single)),
            ("tokens a chunk", "between places where both have a boundary, mean",
             lambda s: _number(s.tokens_a_chunk)),
            ("not given back", "texts that differ from what their ids stand for",
             lambda s: number(len(s.lost))),
            ("mass in common", "probability, by the model, of tokens that the other has too",
             lambda s: _share(s.mass[0] if s.mass else math.nan)),
            ("mass as first words", "of those that the other has as a first word, a space left out",
             lambda s: _share(s.mass[1] if s.mass else math.nan)),
        )
    ]  # fmt: skip
    return every if any(side.mass for side in told.sides) else every[:-2]


def sentence(told: Coverage) -> str:
    """Whether ids stand for the same, and how many texts were compared."""
    same = "Both have the same tokens with the same ids."
    how = same if told.difference is None else f"They differ: {told.difference}."
    return (
        f"{how} {told.aligned:,} of {told.texts:,} texts are spelled with the same bytes by both, "
        f"in {told.chunks:,} chunks."
    )


def spoken(told: Coverage) -> list[Any]:
    """The same for a terminal, as what ``rich`` prints."""
    numbers = _table("tokenizers", told, ((name, *cells) for name, _, cells in rows(told)))
    habits = _table("what they add", told, ((what, *both) for what, both in told.habits.items()))
    longest = _table("longest chunks", told, ((w, *map(" | ".join, x)) for w, x in worst(told)))
    drawn = [longest, Text(LEGEND, "dim")] if told.worst else []
    lost = [Text(visible(f"{s.name}: {line}")) for s in told.sides for line in s.lost[:LOST]]
    return [Text(visible(sentence(told))), numbers, habits, *drawn, *lost]


def plain(told: Coverage) -> dict[str, Any]:
    """The same as numbers and texts, for JSON; a share of nothing is None."""
    sides = [{k: None if v != v else v for k, v in asdict(side).items()} for side in told.sides]
    return {**asdict(told), "sides": sides, "worst": worst(told)}


def worst(told: Coverage) -> list[tuple[str, list[list[str]]]]:
    """The longest chunks: where, and the tokens of both sides as a reader sees them."""
    return [(c.where, [[shown(word) for word in side] for side in c.words]) for c in told.worst]


def shown(word: bytes) -> str:
    """Bytes as text; spaces, parts of characters and what is not seen are made visible."""
    text = word.decode(errors="backslashreplace").translate(SPACES)
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def write_page(told: Coverage, data: str, out: Path) -> Path:
    """Write the comparison as one self-contained page, and say where it is."""
    text = html.page(
        "tokenizers.html.jinja",
        name=" and ".join(labels(told.sides)),
        told=told,
        labels=labels(told.sides),
        data=data,
        sentence=sentence(told),
        rows=rows(told),
        worst=worst(told),
        legend=LEGEND,
        shown=LOST,
    )
    out.write_text(text, encoding="utf-8")
    return out


def labels(sides: Sequence[Side]) -> list[str]:
    """The last part of both names; where these are alike, the names."""
    short = [Path(side.name).name for side in sides]
    return short if len({*short}) == len(short) else [side.name for side in sides]


def _table(title: str, told: Coverage, lines: Iterable[tuple[str, ...]]) -> Table:
    table = Table(title=title, box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("")
    for label in labels(told.sides):
        table.add_column(Text(visible(label)), overflow="fold")
    for line in lines:
        table.add_row(*(Text(visible(cell)) for cell in line))
    return table


def _number(value: float) -> str:
    return DASH if math.isnan(value) else f"{value:.2f}"


def _share(value: float) -> str:
    return DASH if math.isnan(value) else f"{100 * value:.1f} %"


def _of(part: int, whole: int) -> str:
    return f"{part:,} ({_share(part / whole if whole else math.nan)})"
