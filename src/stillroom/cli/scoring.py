"""``stillroom collect --signals``: scores of a model for answers that are there."""

from __future__ import annotations

from pathlib import Path

import typer

from stillroom.cli.common import OPENAI, quiet
from stillroom.failures import Failure


def scores(prompts: str, teacher: str, store: Path, signals: str, out: Path | None) -> None:
    """Writes a model's scores of rows, or of a recipe's rows, into a store; says what is there.

    Raises:
        Failure: ``out`` is told as well, or the teacher is none in this process.
    """
    if out is not None:
        raise Failure("--out goes with answers; scores are kept in --store alone")
    if teacher.startswith(OPENAI):
        raise Failure(f"--signals {signals} takes a model in this process, not {teacher!r}")
    quiet()
    from stillroom.config.scored import scored
    from stillroom.config.specs import TeacherSpec
    from stillroom.teachers.stored import Stored

    told = TeacherSpec(model=teacher, store=str(store), signals=signals)
    for name, found in scored(prompts, told):
        assert isinstance(found, Stored)
        size = found.arrays.nbytes / max(1, found.rows)
        typer.echo(
            f"{name}: {signals} of {len(found.arrays)} sequences in {found.arrays.folder}, "
            f"{found.rows:,} tokens, {size:,.1f} bytes each"
        )
