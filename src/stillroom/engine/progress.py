"""The bar that a person watches: steps, loss, speed, time left."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from stillroom.engine.run import Run

Tick = Callable[[Mapping[str, float], float], None]


@contextmanager
def progress_bar(name: str, run: Run, *, show: bool) -> Iterator[Tick]:
    """Gives a function to call after each step, with its numbers and the seconds so far."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[says]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, disable=not show) as bar:
        counted = "tokens" if run.streams["train"].data.longest else "examples"
        task = bar.add_task(name, total=run.steps, completed=run.step, says="")

        def tick(log: Mapping[str, float], seconds: float) -> None:
            loss = [0.0, *(v for k, v in log.items() if k.startswith("loss/"))][-1]
            rate = run.tokens["trained"] / max(seconds, 1e-9)
            says = f"loss {loss:.4f}  {rate:,.0f} {counted}/s"
            bar.update(task, advance=1, total=run.steps, says=says)

        yield tick
