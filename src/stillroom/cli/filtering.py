"""``stillroom filter``: rows that a rule or a near-duplicate speaks against are set aside."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from stillroom.cli.common import check_out, quiet, tokenizer, write_rows
from stillroom.failures import Failure

if TYPE_CHECKING:
    from stillroom.traces.texts import Kept, Step

Count = Annotated[int | None, typer.Option(min=0)]
Share = Annotated[float | None, typer.Option(min=0, max=1)]


def filter_(
    rows: Annotated[str, typer.Argument(help="Rows: JSON Lines, JSON, Parquet or hf:ORG/NAME.")],
    out: Annotated[Path, typer.Option(help="JSON Lines to write: the rows that stay.")],
    column: Annotated[
        str, typer.Option(help="completion, prompt, or a column with a text.")
    ] = "completion",
    min_words: Count = None,
    max_words: Count = None,
    min_characters: Count = None,
    max_characters: Count = None,
    min_tokens: Count = None,
    max_tokens: Count = None,
    tokens_of: Annotated[
        str | None, typer.Option(help="A tokenizer's name or folder, for the two before.")
    ] = None,
    ended: Annotated[
        bool, typer.Option("--ended", help="Drop texts without a mark at their end.")
    ] = False,
    max_repetition: Annotated[
        float | None, typer.Option(min=0, max=1, help="Share of 4-grams of words seen before.")
    ] = None,
    max_line_run: Annotated[
        int | None, typer.Option(min=1, help="Times that one line may follow itself.")
    ] = None,
    refusals: Annotated[
        bool, typer.Option("--refusals", help="Drop what begins as refusals do.")
    ] = False,
    patterns: Annotated[
        Path | None, typer.Option(help="A file of regular expressions: drop what begins so.")
    ] = None,
    min_letters: Share = None,
    min_ascii: Share = None,
    max_copied: Annotated[
        float | None, typer.Option(min=0, max=1, help="Share of 4-grams that the prompt holds.")
    ] = None,
    plain_start: Annotated[
        bool, typer.Option("--plain-start", help="Drop texts that begin with a mark or non-ASCII.")
    ] = False,
    without: Annotated[list[str] | None, typer.Option(help="Drop texts with this word.")] = None,
    max_jaccard: Annotated[
        float | None, typer.Option(min=0, max=1, help="Drop from this overlap of 3-grams on.")
    ] = None,
    max_rouge: Annotated[
        float | None, typer.Option(min=0, max=1, help="Drop above this ROUGE-L with earlier rows.")
    ] = None,
    pool: Annotated[
        str | None, typer.Option(help="Rows that must not come again, for the last two.")
    ] = None,
) -> None:
    """Drop rows by rules on one of their texts; without a rule nothing is dropped.

    The dropped rows, each with its first reason, stand in OUT.dropped.jsonl.
    """
    given = {**locals(), "patterns": _expressions(patterns), "without": tuple(without or ())}
    check_out(out)
    quiet()
    from stillroom.data.rows import read_rows
    from stillroom.traces.duplicates import unlike, without_duplicates
    from stillroom.traces.filtering import Filter, filtered
    from stillroom.traces.texts import chained

    if pool is not None and max_jaccard is None and max_rouge is None:
        raise Failure("--pool is read by --max-jaccard and --max-rouge: give one of them")
    rules = Filter(**{name: given[name] for name in Filter.__dataclass_fields__})
    tokenize = tokenizer(tokens_of).tokenize if tokens_of else None
    texts = _texts(pool, column)
    steps: list[Step] = [lambda rows: filtered(rows, rules, column, tokenize)]
    if (least := max_jaccard) is not None:
        steps.append(lambda rows: without_duplicates(rows, texts, least=least, column=column))
    if (most := max_rouge) is not None:
        steps.append(lambda rows: unlike(rows, texts, most=most, column=column))
    write_kept(out, chained(read_rows(rows).rows, steps))


def write_kept(out: Path, kept: Kept) -> None:
    """The rows that stay, beside them those that do not, and what is told of both."""
    beside = out.with_name(f"{out.name}.dropped.jsonl")
    beside.unlink(missing_ok=True)
    if kept.dropped:
        write_rows(beside, [left.told() for left in kept.dropped])
    counts = ", ".join(f"{count} {kind}" for kind, count in kept.counts.items()) or "none"
    if not kept.rows:
        raise Failure(
            f"no row is left, so {out} is not written; dropped: {counts}; {beside} says why"
        )
    write_rows(out, kept.rows)
    every = len(kept.rows) + len(kept.dropped)
    typer.echo(f"{out}: {len(kept.rows)} of {every} rows; dropped: {counts}")
    if kept.dropped:
        typer.echo(f"dropped rows: {beside}")


def _expressions(file: Path | None) -> tuple[str, ...]:
    if file is None:
        return ()
    if not file.is_file():
        raise Failure(f"--patterns: there is no file {file}")
    lines = file.read_text(encoding="utf-8").splitlines()
    return tuple(line for line in lines if line.strip())


def _texts(pool: str | None, column: str) -> list[str]:
    if pool is None:
        return []
    from stillroom.data.rows import read_rows
    from stillroom.traces.texts import text_of

    return [text_of(row, column, where) for where, row in read_rows(pool)]
