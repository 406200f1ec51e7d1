"""``stillroom mix``: one file of several, by shares or by caps."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from stillroom.cli.common import check_out, write_rows
from stillroom.failures import Failure


def mix(
    sources: Annotated[
        list[str], typer.Argument(help="FILE=SHARE, or with --caps FILE=ROWS; FILE alone is 1.")
    ],
    out: Annotated[Path, typer.Option(help="JSON Lines to write: the mixed rows.")],
    rows: Annotated[
        int | None, typer.Option(min=1, help="Of the mix; as many as the shares allow if none.")
    ] = None,
    caps: Annotated[
        bool, typer.Option("--caps", help="The numbers are the most rows of each file.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Of what is drawn, and of the order.")] = 0,
    repeat: Annotated[
        bool, typer.Option("--repeat", help="Give rows of a small file again.")
    ] = False,
) -> None:
    """Mix files of rows in exact proportions, without repeating a row unless told to."""
    check_out(out)
    from stillroom.data.rows import read_rows
    from stillroom.traces.mixing import capped, mixed

    told = _told(sources)
    read = {name: read_rows(name).rows for name in told}
    if not caps:
        done = mixed(read, told, rows, seed=seed, repeat=repeat)
    elif rows is not None or repeat:
        raise Failure("--caps says how many rows come of each file: leave --rows and --repeat out")
    elif odd := [name for name, cap in told.items() if cap != int(cap)]:
        raise Failure(f"--caps: {odd[0]} must have a whole number of rows, got {told[odd[0]]:g}")
    else:
        done = capped(read, {name: int(cap) for name, cap in told.items()}, seed=seed)
    write_rows(out, done.rows)
    counts = ", ".join(f"{count} of {name}" for name, count in done.counts.items())
    typer.echo(f"{out}: {len(done.rows)} rows: {counts}")


def _told(sources: list[str]) -> dict[str, float]:
    told: dict[str, float] = {}
    for source in sources:
        name, equals, number = source.rpartition("=")
        if not equals:
            name, number = source, "1"
        if name in told:
            raise Failure(f"{name} is named twice: once is enough, with the sum of its numbers")
        try:
            told[name] = float(number)
        except ValueError:
            raise Failure(f"expected FILE=NUMBER, got {source!r}") from None
    return told
