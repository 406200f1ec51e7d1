"""``stillroom show``: a method's page, two tokenizers beside each other, a network's layers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from stillroom.cli import layering
from stillroom.cli.common import Json, quiet, tokenizer
from stillroom.failures import Failure

TOKENIZERS, LAYERS = "tokenizers", "layers"
"""What ``show`` is told instead of a method's name."""
Names = Annotated[
    list[str] | None,
    typer.Argument(
        help="Two tokenizers, or a recipe or model: hub name, folder, GGUF, package:NAME."
    ),
]
Data = Annotated[str | None, typer.Option(help="Rows to compare tokenizers on.")]
Mass = Annotated[bool, typer.Option("--mass", help="The first is a model: what it thinks likely.")]
Out = Annotated[Path | None, typer.Option(help="A page about the tokenizers, an .html file.")]


def show(
    name: Annotated[str, typer.Argument(help=f"A method, '{TOKENIZERS}' or '{LAYERS}'.")],
    names: Names = None,
    data: Data = None,
    mass: Mass = False,
    out: Out = None,
    as_json: Json = False,
) -> None:
    """Show one method (formula, needs, fields, verdict), two tokenizers, or a network's layers."""
    if name == TOKENIZERS:
        return tokenizers(names or [], data, mass=mass, out=out, as_json=as_json)
    if name == LAYERS and not (data or mass or out):
        quiet()
        return layering.layers(names or [], as_json=as_json)
    if names or data or mass or out:
        raise Failure(f"show {name}: more words and options go with 'show {TOKENIZERS}' alone")
    quiet()
    from stillroom import catalogue, outcomes
    from stillroom.reports import fields, pages

    cls = catalogue.load(name)
    row = catalogue.row(name)
    if as_json:
        told = {"fields": fields.described(cls), "claims": outcomes.claims().get(name, [])}
        typer.echo(json.dumps({**row, **told}, indent=2))
        return
    from rich.console import Console
    from rich.markdown import Markdown

    Console().print(Markdown(pages.method_page(row, cls)))


def tokenizers(
    names: Sequence[str], data: str | None, *, mass: bool, out: Path | None, as_json: bool
) -> None:
    """Compare two tokenizers on the texts of a file: a table, and a page where ``out`` says."""
    if len(names) != 2 or data is None:
        raise Failure(
            f"show {TOKENIZERS}: give two tokenizers and a file of rows: stillroom show "
            f"{TOKENIZERS} A B --data FILE; got {', '.join(names) or 'no tokenizer'} and "
            f"{f'--data {data}' if data else 'no --data'}"
        )
    if out is not None and (out.suffix != ".html" or not out.absolute().parent.is_dir()):
        raise Failure(f"--out: {out} must be an .html file in a folder that exists")
    quiet()
    from rich.console import Console

    from stillroom.data.coverage import coverage, texts_of
    from stillroom.data.forms import shaped
    from stillroom.data.rows import read_rows
    from stillroom.reports.tokenizers import plain, spoken, write_page

    rows = shaped(read_rows(data))[1]
    pair = [tokenizer(name) for name in names]
    told = coverage(names, pair, texts_of(rows))
    if mass:
        a, b = told.sides
        told = replace(told, sides=(replace(a, mass=_mass(names[0], pair, rows)), b))
    if as_json:
        typer.echo(json.dumps(plain(told), indent=2, ensure_ascii=False))
    else:
        Console().print(*spoken(told), sep="\n")
    if out is not None:
        typer.echo(f"page: {write_page(told, data, out)}", err=as_json)


def _mass(name: str, pair: Sequence[Any], rows: Sequence[Any]) -> tuple[float, float]:
    from stillroom.engine.parallel import Processes
    from stillroom.models import text
    from stillroom.models.sources import resolved
    from stillroom.teachers.mass import mass

    model = text.load(resolved(name)).to(Processes().device)
    return mass(model, pair[0], pair[1], rows)
