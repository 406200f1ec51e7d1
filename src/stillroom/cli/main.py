"""Commands. Each imports only its room, so that listing starts at once."""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer

from stillroom.cli import (
    claiming,
    collecting,
    comparing,
    decontaminating,
    diagnosing,
    evaluating,
    exporting,
    filtering,
    judging,
    mixing,
    pairing,
    showing,
    starting,
    verifying,
)
from stillroom.cli.common import Changes, Json
from stillroom.cli.common import quiet as _quiet
from stillroom.failures import Failure

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Distil any teacher that you can reach into a student that you can ship.",
)
Tiny = Annotated[bool, typer.Option("--tiny", help="A few steps only, to see that it works.")]


app.command("claim")(claiming.claim)
app.command("collect")(collecting.collect)
app.command("compare")(comparing.compare)
app.command("decontaminate")(decontaminating.decontaminate)
app.command("diagnose")(diagnosing.diagnose)
app.command("eval")(evaluating.eval_)
app.command("export")(exporting.export)
app.command("filter")(filtering.filter_)
app.command("init")(starting.init)
app.command("judge")(judging.judge)
app.command("mix")(mixing.mix)
app.command("pair")(pairing.pair)
app.command("show")(showing.show)
app.command("verify")(verifying.verify)


@app.callback()
def _common(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
) -> None:
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # read when torch first allocates: large tensors in large pages, a tenth of the time of a step
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    if debug:
        os.environ["STILLROOM_DEBUG"] = "1"


@app.command()
def run(
    recipe: Annotated[str, typer.Argument(help="A YAML file, or a packaged recipe's name.")],
    changes: Changes = None,
    out: Annotated[Path | None, typer.Option(help="Run folder; runs/<recipe> by default.")] = None,
    tiny: Tiny = False,
) -> None:
    """Run a recipe; the same folder takes it up again where it stopped."""
    _quiet()
    from stillroom import api
    from stillroom.config.recipe import read
    from stillroom.engine.parallel import Processes

    told = read(recipe, changes or [], tiny=tiny)
    folder = out or Path("runs") / (f"{told.name}-tiny" if tiny else told.name)
    done = api.run(told, folder, progress=sys.stderr.isatty() or "CI" not in os.environ)
    if not Processes().main:
        return
    if not any(result.fresh for result in done.results.values()):
        typer.echo(f"{folder} holds this run already, finished.")
    _show_table(folder)
    _show_ledgers(folder)
    typer.echo(f"report: {done.report}")


@app.command("list")
def list_(
    as_json: Json = False,
    teacher: Annotated[str | None, typer.Option(help="What the teacher gives: text ...")] = None,
    family: Annotated[str | None, typer.Option(help="logits, on-policy, adversarial ...")] = None,
    modality: Annotated[str | None, typer.Option(help="text, image ...")] = None,
) -> None:
    """List what there is, and what fits the teacher that you have."""
    from stillroom import catalogue

    every = catalogue.rows()
    families, modalities = ({row[what] for row in every} for what in ("family", "modality"))
    _known("--teacher", teacher, catalogue.SIGNALS)
    _known("--family", family, families)
    _known("--modality", modality, modalities)
    rows = [
        row
        for row in every
        if (family is None or row["family"] == family)
        and (modality is None or row["modality"] in (modality, "any"))
        and (teacher is None or set(row["needs"]["teacher"]) <= catalogue.closure({teacher}))
    ]
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
        return
    heads = ("name", "kind", "family", "modality", "needs", "paper", "verdict")
    lines = [heads, *(_cells(row) for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(heads))]
    for line in lines:
        cells = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        typer.echo("  ".join(cells).rstrip())


def _known(option: str, given: str | None, known: Iterable[str]) -> None:
    from stillroom.catalogue import nearest

    if given is not None and given not in known:
        near = nearest(given, list(known)) or "."
        _fail(f"{option}: there is no {given!r}{near} There is {', '.join(sorted(known))}")


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    needs, paper = row["needs"], row["paper"] or {}
    asks = [*needs["teacher"], *(["rollouts"] if needs["rollouts"] else [])]
    cells = (row["name"], row["kind"], row["family"], row["modality"], " ".join(asks) or "nothing")
    return (*cells, paper.get("id", ""), row["verdict"])


@app.command()
def check(
    recipe: Annotated[str, typer.Argument(help="A YAML file, or a packaged recipe's name.")],
    changes: Changes = None,
    show_tokens: Annotated[
        bool, typer.Option("--show-tokens", help="Print examples token by token.")
    ] = False,
    live: Annotated[
        bool, typer.Option("--live", help="Ask a served teacher, and test what it says.")
    ] = False,
    tiny: Tiny = False,
) -> None:
    """Build everything that a recipe names, and take no step."""
    _quiet()
    from stillroom.cli import checking
    from stillroom.config.recipe import read

    checking.check(read(recipe, changes or [], tiny=tiny), show_tokens=show_tokens, live=live)


@app.command()
def report(folder: Path) -> None:
    """Write the report of a finished run folder anew, and print its table."""
    from stillroom.reports.html import write_report

    page = write_report(folder)
    _show_table(folder)
    typer.echo(f"report: {page}")


def _show_table(folder: Path) -> None:
    from rich.console import Console

    from stillroom.reports.folder import read_folder
    from stillroom.reports.text import table_text

    Console().print(table_text(read_folder(folder)))


def _show_ledgers(folder: Path) -> None:
    """What pipelines asked and taught, arm by arm."""
    from stillroom.reports.folder import read_folder
    from stillroom.reports.ledgers import lines

    for name, arm in read_folder(folder).arms.items():
        for what, says in lines(arm.ledger):
            typer.echo(f"{name}: {what}: {says}")


def _fail(message: str) -> None:
    typer.echo(f"error: {message}", err=True)
    raise SystemExit(2)


def main() -> None:
    """Runs the command line; what a person can mend is one message and exit code 2."""
    try:
        app()
    except KeyboardInterrupt:
        typer.echo("stopped; the same command goes on from the last checkpoint", err=True)
        raise SystemExit(130) from None
    except Exception as error:
        if os.environ.get("STILLROOM_DEBUG"):
            traceback.print_exc()
        elif not isinstance(error, OSError | Failure):
            typer.echo("an error of stillroom itself; --debug shows where", err=True)
        _fail(str(error))
