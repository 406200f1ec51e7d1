"""What a person sees of a collection: the price before, the bar during."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from stillroom.teachers.cached import Cached


def watched(cached: Cached) -> None:
    """Runs a collection: says on the standard error what it may cost, and shows it as it goes.

    Nothing is said where nothing is to be asked.

    Raises:
        Failure: as ``Cached.run``.
    """
    if not cached.open:
        return
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    console.print(escape("\n".join(_before(cached))))
    columns = (
        TextColumn("asking"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[says]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not sys.stderr.isatty()) as bar:
        total = len(cached.questions)
        task = bar.add_task("", total=total, completed=total - len(cached.open), says="")

        def tick(cached: Cached) -> None:
            run = cached.budget.spent - cached.before
            done = total - len(cached.open)
            faults = sum(cached.faults.values())
            says = f"spent {cached.budget.says(run)}{f', {faults} faults' if faults else ''}"
            bar.update(task, completed=done, says=says)

        cached.run(tick)


@contextmanager
def counted(doing: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar on the standard error; gives a function to call with how many more are done."""
    columns = (TextColumn(doing), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task("", total=total)
        yield lambda count: bar.update(task, advance=count)


def _before(cached: Cached) -> list[str]:
    told, budget = cached.source.identity, cached.budget
    about, most = cached.estimate()
    where = f" at {told['base_url']}" if "base_url" in told else ""
    price = budget.price.says if budget.price else "not known, so tokens are all that is told"
    bounded = all(cached.source.most(asked).answer for asked in cached.open.values())
    cost = f"about {budget.says(about)}; at most {budget.says(most)}"
    if not bounded:
        cost = f"{budget.says(about)} of prompts; the answers have no bound (--max-tokens sets one)"
    lines = [
        f"teacher: {told['model']}{where}",
        f"price: {price}",
        f"{len(cached.questions)} questions, {len(cached.found)} answered in the store, "
        f"{len(cached.open)} to ask: {cost}",
    ]
    if budget.bounded:
        bounds = [f"${budget.usd:g}" if budget.usd else "", _tokens(budget.tokens)]
        told_bounds = " and ".join(bound for bound in bounds if bound)
        lines.append(f"budget: {told_bounds}, of which {budget.says(budget.spent)} spent before")
    return lines


def _tokens(tokens: int | None) -> str:
    return f"{tokens:,} tokens" if tokens else ""
