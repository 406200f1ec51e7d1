"""The results table for a terminal."""

from __future__ import annotations

from rich.table import Table
from rich.text import Text

from stillroom.reports.folder import RunFolder
from stillroom.reports.results import LEGEND, results
from stillroom.reports.words import visible


def table_text(folder: RunFolder) -> Table:
    """The results of a run: best values bold with ``*``, an arrow to the better side, notes.

    Names and notes are plain text, never markup.
    """
    shown = results(folder.table)
    notes = [f"* {LEGEND}"] if shown.ranked else []
    table = Table(
        title=Text(visible(folder.name)),
        caption=Text(visible("\n".join([*notes, *shown.notes]))),
        caption_justify="left",
    )
    table.add_column("model")
    for column in shown.columns:
        table.add_column(Text(visible(f"{column.name} {column.arrow}".strip())), justify="right")
    for row in shown.rows:
        cells = [
            Text(f"* {cell.text}" if cell.best else cell.text, "bold" if cell.best else "")
            for cell in row.cells
        ]
        table.add_row(Text(visible(row.name)), *cells)
    return table
