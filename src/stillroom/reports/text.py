"""The results table for a terminal."""

from __future__ import annotations

from rich.table import Table
from rich.text import Text

from stillroom.reports.folder import RunFolder
from stillroom.reports.results import LEGEND, Results, results
from stillroom.reports.words import visible


def table_text(folder: RunFolder) -> Table:
    """The results of a run: best values bold with ``*``, an arrow to the better side, notes.

    Many metrics stand below each other, so that the table stays narrow. Names and notes are
    plain text, never markup.
    """
    shown = results(folder.table)
    notes = [f"* {LEGEND}"] if shown.ranked else []
    table = Table(
        title=Text(visible(folder.name)),
        caption=Text(visible("\n".join([*notes, *shown.notes]))),
        caption_justify="left",
    )
    grid = _grid(shown)
    if len(shown.columns) > len(shown.rows):
        grid = [list(line) for line in zip(*grid, strict=True)]
    for i, head in enumerate(grid[0]):
        table.add_column(head, justify="right" if i else "left", overflow="fold")
    for line in grid[1:]:
        table.add_row(*line)
    return table


def _grid(shown: Results) -> list[list[Text]]:
    heads = [visible(f"{column.name} {column.arrow}".strip()) for column in shown.columns]
    grid = [[Text("", "bold"), *map(Text, heads)]]
    for row in shown.rows:
        cells = [
            Text(visible(f"* {cell.text}" if cell.best else cell.text), "bold" * cell.best)
            for cell in row.cells
        ]
        grid.append([Text(visible(row.name)), *cells])
    return grid
