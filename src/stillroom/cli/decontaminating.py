"""``stillroom decontaminate``: rows that hold a text of an evaluation set are set aside."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from stillroom.cli.common import check_out
from stillroom.cli.filtering import write_kept
from stillroom.failures import Failure


def decontaminate(
    rows: Annotated[str, typer.Argument(help="Rows: JSON Lines, JSON, Parquet or hf:ORG/NAME.")],
    against: Annotated[list[str], typer.Option(help="Rows of an evaluation set; may be repeated.")],
    out: Annotated[Path, typer.Option(help="JSON Lines to write: the rows that stay.")],
    column: Annotated[
        str, typer.Option(help="prompt, completion, or a column with a text.")
    ] = "prompt",
    against_column: Annotated[
        str | None,
        typer.Option(help="The same of the evaluation sets; without it 'prompt' or 'question'."),
    ] = None,
    threshold: Annotated[
        float | None, typer.Option(min=0.01, max=1, help="Share of n-grams that is too much.")
    ] = None,
    n: Annotated[int | None, typer.Option(min=1, help="Words of an n-gram.")] = None,
    least: Annotated[int | None, typer.Option(min=1, help="n-grams to be shared at least.")] = None,
) -> None:
    """Drop rows that share too many n-grams with a text of an evaluation set.

    Case, punctuation, number words, names, the order of sentences and a missing one do not hide a
    text; other words do. What was dropped, with what it is like, stands in OUT.dropped.jsonl.
    """
    check_out(out)
    from stillroom.data.rows import read_rows
    from stillroom.traces.decontamination import Rule, decontaminated

    told = {"threshold": threshold, "n": n, "least": least}
    rule = Rule(**{name: value for name, value in told.items() if value is not None})
    texts = {name: _texts(name, against_column) for name in against}
    write_kept(out, decontaminated(read_rows(rows).rows, texts, rule, column))


def _texts(name: str, column: str | None) -> list[str]:
    from stillroom.data.rows import read_rows
    from stillroom.traces.texts import text_of

    read = read_rows(name)
    first = read.rows[0]
    if column is None:
        known = ["prompt"] if {"prompt", "messages"} & set(first) else ["question"]
        if not {"prompt", "messages", "question"} & set(first):
            raise Failure(
                f"{name}: which column holds the text? Give --against-column, one of "
                f"{sorted(first)}"
            )
        column = known[0]
    return [text_of(row, column, where) for where, row in read]
