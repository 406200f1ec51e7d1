"""``stillroom diagnose``: what a study finds in the folders of finished runs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stillroom.cli.common import Json
from stillroom.failures import Failure

if TYPE_CHECKING:
    from stillroom.core import Findings

Words = Annotated[
    list[str], typer.Argument(help="Folders of finished runs, and fields, like window=0.5.")
]


def diagnose(
    name: Annotated[str, typer.Argument(help="A diagnostic ('stillroom list').")],
    words: Words,
    as_json: Json = False,
) -> None:
    """Explain finished runs: a study reads their numbers, and says what follows from them."""
    folders, fields = _parted(words)
    if not folders:
        raise Failure(f"diagnose: name the folder of a finished run; got only {', '.join(words)}")
    from rich.console import Console

    from stillroom.catalogue import load
    from stillroom.config.values import checked
    from stillroom.reports.compare import compared
    from stillroom.reports.folder import read_folder
    from stillroom.reports.text import TextTable

    study = checked(load(name, "diagnostics"), fields, name)
    alone = len(folders) == 1  # then arms keep their names
    read = read_folder(folders[0]) if alone else compared(folders).folder
    found = study.read(list(read.arms.values()))
    if as_json:
        typer.echo(json.dumps(asdict(found), indent=2))
    else:
        Console().print(TextTable(name, _table(found)))


def _parted(words: Sequence[str]) -> tuple[list[Path], dict[str, Any]]:
    """Folders, and fields with their values; what is a folder is one, whatever its name."""
    from stillroom.config.recipe import overridden

    folders: list[Path] = []
    fields: Mapping[str, Any] = {}
    for word in words:
        if "=" in word and not Path(word).is_dir():
            fields = overridden(fields, word)
        else:
            folders.append(Path(word))
    return folders, dict(fields)


def _table(found: Findings) -> dict[str, Any]:
    """As a run's ``table.json``; a column that no run has a number of is left out."""
    columns = {
        name: {"label": label, "better": better}
        for name, (label, better) in found.columns.items()
        if any(row.get(name) is not None for row in found.rows.values())
    }
    rows = [
        {"name": name, "kind": "method", "values": {k: row.get(k) for k in columns}}
        for name, row in found.rows.items()
    ]
    return {"rows": rows, "columns": columns, "notes": list(found.sentences)}
