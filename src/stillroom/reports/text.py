"""The results table for a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console, ConsoleOptions
from rich.table import Table
from rich.text import Text

from stillroom.reports.folder import RunFolder
from stillroom.reports.results import LEGEND, Cell, Column, Row, results
from stillroom.reports.words import visible

NAME = 10
"""Characters of a model's name that stand side by side; a longer one may be folded."""

MARGIN = 3
"""Blanks at the sides of a table."""


def table_text(folder: RunFolder) -> TextTable:
    """The results of a run."""
    return TextTable(folder.name, folder.table)


@dataclass(frozen=True)
class TextTable:
    """A ``table.json``: models side by side, best values bold with ``*``, arrows, notes.

    Metrics stand below each other, so that the table stays narrow; models that find no room go
    into another table below, since a number must never be folded. Names and notes are plain text,
    never markup.
    """

    name: str
    told: Mapping[str, Any]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Any]:
        shown = results(self.told)
        heads = [f"{column.name} {column.arrow}".strip() for column in shown.columns]
        first = max(map(len, heads), default=0)
        yield Text(visible(self.name), "italic")
        for rows in _fitting(shown.rows, options.max_width - first):
            yield _table(shown.columns, rows)
        for note in [*([f"* {LEGEND}"] if shown.ranked else []), *shown.notes]:
            yield Text(visible(note), "dim")


def _fitting(rows: Sequence[Row], room: int) -> list[list[Row]]:
    """Models in sets that are each no wider than ``room``; at least one in each."""
    sets: list[list[Row]] = [[]]
    used = MARGIN
    for row in rows:
        width = max(_widest(row), min(len(row.name), NAME)) + 1
        if sets[-1] and used + width > room:
            sets.append([])
            used = MARGIN
        sets[-1].append(row)
        used += width
    return sets


def _widest(row: Row) -> int:
    return max((len(cell.text) + cell.best for cell in row.cells), default=0)


def _table(columns: Sequence[Column], rows: Sequence[Row]) -> Table:
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("", no_wrap=True)
    for row in rows:
        head = Text(visible(row.name + (f"\ndata {row.group}" if row.group else "")))
        table.add_column(head, justify="right", overflow="fold", min_width=_widest(row))
    for i, column in enumerate(columns):
        head = Text(visible(f"{column.name} {column.arrow}".strip()))
        table.add_row(head, *(_value(row.cells[i]) for row in rows))
    return table


def _value(cell: Cell) -> Text:
    return Text(visible(f"*{cell.text}" if cell.best else cell.text), "bold" * cell.best)
