"""``stillroom pair``: rows with a chosen and a rejected answer to the same question."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from stillroom.cli.common import check_out, write_rows
from stillroom.failures import Failure


def pair(
    rows: Annotated[str, typer.Argument(help="Answers; the teacher's where --student is given.")],
    out: Annotated[Path, typer.Option(help="JSON Lines to write: the pairs.")],
    student: Annotated[
        str | None, typer.Option(help="The student's answers, which are rejected.")
    ] = None,
    by: Annotated[
        Literal["verified", "vote"], typer.Option(help="Without --student: what tells right.")
    ] = "verified",
    pick: Annotated[
        Literal["first", "all"], typer.Option(help="One pair a question, or all up to --most.")
    ] = "first",
    most: Annotated[int, typer.Option(min=1, help="Pairs a question, with --pick all.")] = 8,
    shared: Annotated[
        str | None,
        typer.Option(help="What ends a step: put the steps that both begin with in the prompt."),
    ] = None,
) -> None:
    """Pair the teacher's answers with the student's, or right ones with wrong ones.

    The rows have completion (chosen) and rejected, which the method preference learns from.
    """
    check_out(out)
    from stillroom.data.rows import read_rows
    from stillroom.traces.pairing import right_over_wrong, teacher_over_student
    from stillroom.traces.prefixes import shared_prefix

    read = read_rows(rows).rows
    if student is not None:
        done = teacher_over_student(read, read_rows(student).rows, pick=pick, most=most)
    else:
        done = right_over_wrong(read, by=by, pick=pick, most=most)
    told = ", ".join(f"{n} {why}" for why, n in done.without.items()) or "none"
    if not done.rows:
        raise Failure(f"{rows}: no question has a pair; without one: {told}")
    write_rows(out, done.rows if shared is None else shared_prefix(done.rows, shared))
    typer.echo(f"{out}: {len(done.rows)} pairs; questions without one: {told}")
