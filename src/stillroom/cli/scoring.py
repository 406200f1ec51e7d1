"""``stillroom collect --signals``: scores of a model or server for answers that are there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer

from stillroom.cli.common import OPENAI, quiet
from stillroom.failures import Failure


def scores(
    prompts: str, teacher: str, store: Path, signals: str, out: Path | None, **server: Any
) -> None:
    """Writes a teacher's scores of rows, or of a recipe's rows, into a store; says what is there.

    ``server``: what else ``TeacherSpec`` needs to ask one.

    Raises:
        Failure: ``out`` is told as well; a tokenizer or an address goes with a server alone.
    """
    if out is not None:
        raise Failure("--out goes with answers; scores are kept in --store alone")
    if not teacher.startswith(OPENAI) and (server["base_url"] or server["tokenizer"]):
        raise Failure(
            f"--base-url and --tokenizer go with --teacher openai:MODEL, not with {teacher!r}"
        )
    quiet()
    from stillroom.config.scored import scored
    from stillroom.config.specs import TeacherSpec
    from stillroom.teachers.stored import Stored

    served = teacher.startswith(OPENAI)
    named: dict[str, Any] = {"api": teacher, **server} if served else {"model": teacher}
    told = TeacherSpec(store=str(store), signals=signals, **named)
    for name, found in scored(prompts, told):
        assert isinstance(found, Stored)
        size = found.arrays.nbytes / max(1, found.rows)
        typer.echo(
            f"{name}: {signals} of {len(found.arrays)} sequences in {found.arrays.folder}, "
            f"{found.rows:,} tokens, {size:,.1f} bytes each"
        )
