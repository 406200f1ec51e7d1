"""``stillroom verify``: which answers of a file are right, beside the gold ones or by running."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from stillroom.cli.common import check_out, write_rows
from stillroom.failures import Failure


def verify(
    rows: Annotated[str, typer.Argument(help="Rows with answers and gold answers.")],
    out: Annotated[Path, typer.Option(help="JSON Lines to write: the rows with provenance.")],
    kind: Annotated[
        Literal["exact", "numeric", "choice", "pattern", "sql", "python"],
        typer.Option(help="How answers are compared; python: run under bwrap alone."),
    ],
    way: Annotated[
        Literal["rest", "number", "choice", "boxed", "hashes", "code", "pattern"] | None,
        typer.Option(help="How the answer is found in the text; the kind's own if none."),
    ] = None,
    after: Annotated[
        list[str] | None, typer.Option(help="Phrase that the answer stands behind; several.")
    ] = None,
    marked: Annotated[
        bool, typer.Option("--marked", help="A text without the phrase has no answer.")
    ] = False,
    pattern: Annotated[
        str | None, typer.Option(help="Regular expression that finds it; with --way pattern.")
    ] = None,
    option: Annotated[
        list[str] | None, typer.Option(help="Text of a choice; several, in order of letters.")
    ] = None,
    letters: Annotated[bool, typer.Option(help="Whether choices have letters.")] = True,
    gold_column: Annotated[str, typer.Option(help="Where the gold answer is.")] = "gold",
    text_column: Annotated[str, typer.Option(help="Where the answer is.")] = "completion",
    tests_column: Annotated[str, typer.Option(help="Where unit tests are.")] = "tests",
    percent: Annotated[bool, typer.Option("--percent", help="50% is 0.5, and not 50.")] = False,
    relative: Annotated[float, typer.Option(min=0, help="Tolerance, a share of the gold.")] = 0.0,
    absolute: Annotated[float, typer.Option(min=0, help="Tolerance.")] = 0.0,
    database: Annotated[Path | None, typer.Option(help="SQLite file, only read.")] = None,
    seconds: Annotated[float, typer.Option(min=0.01, help="For a query or program.")] = 5.0,
    memory_mb: Annotated[int, typer.Option(min=64, help="MiB of a program's process.")] = 512,
    keep: Annotated[
        Literal["all", "right", "wrong"], typer.Option(help="Which rows are written.")
    ] = "all",
) -> None:
    """Say of each answer whether it is right, in its provenance: {right, answer, why}.

    Programs run under bubblewrap, without network, files or environment, or not at all.
    """
    check_out(out)
    from stillroom.data.rows import read_rows
    from stillroom.traces.verifying import Verify, verified

    told: dict[str, Any] = {"way": way, "after": after, "marked": marked, "pattern": pattern}
    told |= {"options": option, "letters": letters, "percent": percent}
    told |= {"relative": relative, "absolute": absolute, "seconds": seconds}
    told |= {"column": gold_column, "tests": tests_column, "memory_mb": memory_mb}
    how = Verify(kind=kind, database=None if database is None else str(database), **told)
    read = read_rows(rows)
    done = verified(read.rows, how, text_column, [where for where, _ in read])
    wanted = {"right": (True,), "wrong": (False,), "all": (True, False, None)}[keep]
    kept = [row for row in done if _of(row)["right"] in wanted]
    _tell(done)
    if not kept:
        raise Failure(f"no answer is {keep}, so {out} is not written")
    write_rows(out, kept)
    typer.echo(f"{out}: {len(kept)} of {len(done)} rows")


def _of(row: Any) -> dict[str, Any]:
    return row["provenance"]["verified"]


def _tell(done: list[Any]) -> None:
    """Counts by verdict and why; what stands behind a colon differs from answer to answer."""
    names = {True: "right", False: "wrong", None: "unknown"}
    counts = Counter((_of(r)["right"], _of(r)["why"].partition(":")[0]) for r in done)
    for (right, why), count in sorted(counts.items(), key=lambda told: -told[1]):
        name = names[right]
        typer.echo(f"{name if why in (name, 'right') else f'{name}, {why}'}: {count}")
