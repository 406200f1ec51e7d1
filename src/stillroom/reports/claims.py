"""Claims as tables for a terminal and as a section of a method's page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from stillroom.reports.fields import markdown
from stillroom.reports.results import number, numbers

Told = Mapping[str, Any]


def section(claims: Sequence[Told]) -> str:
    """Each claim of a method: sentence, verdict with interval, both arms' numbers, its limits."""
    parts = []
    for claim in claims:
        parts.append(f"### {claim['name']}: {claim['verdict']}")
        if claim["verdict"] == "untested":
            parts.append(f"`stillroom claim {claim['name']}` runs it.")
            continue
        words = f"{claim['sentence'].strip()} ({claim['paper']})"
        parts += [markdown(words), f"**{markdown(verdict_words(claim))}.**", _beside(claim)]
        parts += [markdown(claim["about"].strip())]
    return "\n\n".join(part for part in parts if part)


def table(claims: Sequence[Told]) -> str:
    """All claims that were tested, a line each: effect, interval, verdict, seeds, time.

    Time is CPU seconds of training: of all seeds, and of the tuning runs as the mean of their arm.
    """
    heads = ("claim", "number", "effect", "95 % interval", "claimed", "verdict", "seeds", "CPU s")
    lines = [heads, ("---",) * len(heads)]
    for claim in sorted(claims, key=lambda claim: claim["name"]):
        if claim["verdict"] == "untested":
            continue
        told, (ours, theirs) = claim["first"], claim["compare"]
        mean, low, high = (f"{told['difference'][k]:+.4g}" for k in ("mean", "low", "high"))
        sign = {"higher": ">", "lower": "<"}[claim["sign"]]
        margin = claim["margin"] * {"higher": 1, "lower": -1}[claim["sign"]] + 0.0  # no -0
        lines.append(
            (
                f"[{claim['name']}]({claim['method']}.md#{claim['name']}-"
                f"{claim['verdict'].replace(' ', '-')})",
                f"{claim['metric']}, {ours} less {theirs}",
                mean,
                f"{low} to {high}",
                f"{sign} {margin:g}",
                claim["verdict"],
                str(told["seeds"]),
                f"{sum(map(_seconds, told['arms'].values())):.0f}",
            )
        )
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _seconds(arm: Told) -> float:
    spent = arm["spent"]["cpu_seconds"]
    tried = sum(len(point["by_seed"]) for point in arm["tried"])
    return sum(spent["by_seed"]) + tried * spent["mean"]


def verdict_words(claim: Told, run: Told | None = None) -> str:
    """``held: validity of gad less that of seqkd +0.76, 95 % interval [+0.74, +0.79], ...``.

    Args:
        claim: a result file.
        run: one of its runs; the first full one by default.
    """
    told: Told = run or claim["first"]
    gap, (ours, theirs) = told["difference"], claim["compare"]
    mean, low, high = (f"{gap[name]:+.4g}" for name in ("mean", "low", "high"))
    beyond = f"more than {claim['margin']:g} " if claim["margin"] else ""
    return (
        f"{told['verdict']}: {claim['metric']} of {ours} less that of {theirs} {mean}, "
        f"95 % interval [{low}, {high}] over {told['seeds']} seeds; "
        f"claimed: {beyond}{claim['sign']}"
    )


def _beside(claim: Told) -> str:
    names = claim["compare"]
    lines = [f"| mean ± sd | {names[0]} | {names[1]} |", "| --- | ---: | ---: |"]
    for row, found in _rows([claim["first"]["arms"][name] for name in names]):
        lines.append(f"| {row} | {' | '.join(map(_mean, found))} |")
    return "\n".join(lines)


def _rows(arms: Sequence[Told]) -> Iterator[tuple[str, list[Told | None]]]:
    """Every number that either arm has, by name, then what they spent."""
    for part in ("numbers", "spent"):
        for row in dict.fromkeys(key for arm in arms for key in arm[part]):
            yield row, [arm[part].get(row) for arm in arms]


def claim_text(claim: Told, run: Told) -> Iterator[Text | Table]:
    """A run for a terminal: sentence, arms side by side, every seed, what was tried, verdict."""
    yield Text(f"{claim['sentence'].strip()}\n({claim['paper']})")
    yield _arms(claim["compare"], run)
    for arm, told in run["arms"].items():
        if told["tried"]:
            yield _tried(arm, told)
    yield Text(verdict_words(claim, run), style="bold")
    if claim["about"]:
        yield Text(claim["about"].strip())


def _arms(names: Sequence[str], run: Told) -> Table:
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("mean ± sd", no_wrap=True)
    for name in names:
        table.add_column(Text(name), justify="right")
    table.add_column(Text(f"each seed: {names[0]} | {names[1]}"), overflow="fold")
    for row, found in _rows([run["arms"][name] for name in names]):
        every = " | ".join(" ".join(numbers(told["by_seed"])) for told in found if told)
        table.add_row(row, *map(_mean, found), every)
    return table


def _mean(told: Told | None) -> str:
    if told is None or told["mean"] is None:
        return number(None)
    mean, sd = numbers([told["mean"], told["sd"]])
    return f"{mean} ± {sd}"


def _tried(arm: str, told: Told) -> Table:
    table = Table(
        title=Text(f"tried for {arm}, chosen by {told['select']} on the validation split"),
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    keys = list(told["tuned"])
    for name in (*keys, "mean", "each tuning seed"):
        table.add_column(Text(name), justify="right", overflow="fold")
    for point in told["tried"]:
        cells = [f"{point['values'][key]}" for key in keys]
        cells += [*numbers([point["mean"]]), " ".join(numbers(point["by_seed"]))]
        table.add_row(*cells, style="bold" if point["values"] == told["tuned"] else "")
    return table
