"""What the commands share that put questions to a teacher through a store."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from stillroom.cli.common import OPENAI, quiet
from stillroom.failures import Failure

if TYPE_CHECKING:
    from stillroom.teachers.asking import Source
    from stillroom.teachers.cached import Cached

Price = Annotated[
    str | None, typer.Option(help="IN,OUT: dollars a million tokens of prompt and of answer.")
]


def source(teacher: str, base_url: str | None, asked: dict[str, Any]) -> Source:
    """The teacher that ``--teacher`` names; ``asked`` tells an ``Api`` how to ask.

    Raises:
        Failure: there is an address, but no server, or a model cannot be loaded.
    """
    if teacher.startswith(OPENAI):
        from stillroom.teachers.api import Api

        return Api(model=teacher.removeprefix(OPENAI), base_url=base_url, **asked)
    if base_url is not None:
        raise Failure(f"--base-url goes with --teacher openai:MODEL, not with {teacher!r}")
    quiet()
    from stillroom.teachers.writing import writer

    return writer(teacher)


def asked(cached: Cached) -> None:
    """Tells the price, asks and shows how it goes; an interrupt says that what came is kept."""
    from stillroom.teachers.watching import watched

    try:
        watched(cached)
    except KeyboardInterrupt:
        arrived = sum(outcome.arrived for outcome in cached.outcomes.values())
        told = f"stopped; {arrived} of {len(cached.questions)} answers are in the store"
        typer.echo(f"{told}; the same command goes on", err=True)
        raise SystemExit(130) from None
