"""``stillroom compare``: several runs beside each other, on one page and in one table."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from stillroom.failures import Failure


def compare(
    folders: Annotated[list[Path], typer.Argument(help="Folders of finished runs.")],
    out: Annotated[Path, typer.Option(help="The page, an .html file.")] = Path("compare.html"),
) -> None:
    """Put finished runs beside each other: numbers, cost, curves, and how their recipes differ."""
    if out.suffix != ".html" or not out.absolute().parent.is_dir():
        raise Failure(f"--out: {out} must be an .html file in a folder that exists")
    from stillroom.reports.compare import compared, differences_text, spoken, write_page
    from stillroom.reports.text import TextTable

    runs = compared(folders)
    Console().print(TextTable(runs.folder.name, spoken(runs)), differences_text(runs))
    typer.echo(f"page: {write_page(runs, out)}")
