"""The results table for a terminal."""

from __future__ import annotations

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from stillroom.reports.folder import RunFolder
from stillroom.reports.results import LEGEND, Cell, results
from stillroom.reports.words import visible


def table_text(folder: RunFolder) -> Table:
    """The results of a run: models side by side, best values bold with ``*``, arrows, notes.

    Metrics stand below each other, so that the table stays narrow. Names and notes are plain
    text, never markup.
    """
    shown = results(folder.table)
    notes = [f"* {LEGEND}"] if shown.ranked else []
    table = Table(
        title=Text(visible(folder.name)),
        caption=Text(visible("\n".join([*notes, *shown.notes]))),
        caption_justify="left",
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    table.add_column("", no_wrap=True)
    for row in shown.rows:
        table.add_column(Text(visible(row.name)), justify="right", overflow="fold")
    for i, column in enumerate(shown.columns):
        head = Text(visible(f"{column.name} {column.arrow}".strip()))
        table.add_row(head, *(_value(row.cells[i]) for row in shown.rows))
    return table


def _value(cell: Cell) -> Text:
    return Text(visible(f"*{cell.text}" if cell.best else cell.text), "bold" * cell.best)
