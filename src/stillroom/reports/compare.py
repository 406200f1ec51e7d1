"""Several finished runs as one: a page and a table of their arms, and how their recipes differ."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from string import ascii_uppercase
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from stillroom.failures import Failure
from stillroom.reports import html, words
from stillroom.reports.folder import Arm, Record, RunFolder, read_folder
from stillroom.reports.results import DASH, number

ARMS = ("method", "baseline")
"""Kinds of rows that stand for an arm; the others (start, teacher) were there before."""
NO_DIFFERENCE = {"name", "about", "run.out"}
COSTS = {
    "steps": {"label": "optimiser steps"},
    "tokens": {"label": "tokens trained on, generated and asked of the teacher, together"},
    "cpu_seconds": {"label": "CPU seconds of training, all threads"},
}


@dataclass(frozen=True)
class Comparison:
    """``folder``: all arms as if of one run, named ``run/arm``; ``sentences``: each run in one.

    ``differences``: what the recipes, data and machines tell differently, a text an arm.
    """

    folder: RunFolder
    sentences: Mapping[str, str]
    differences: Sequence[tuple[str, Sequence[str]]]


def compared(paths: Sequence[Path | str]) -> Comparison:
    """Reads run folders for comparison.

    Runs measured on different test data, or on data that a run does not tell the hash of, are put
    in groups, which the table's notes explain and within which alone it ranks.

    Raises:
        Failure: a folder is given twice, or is no finished run.
    """
    if len({Path(p).resolve() for p in paths}) < len(paths):
        raise Failure(f"compare: a folder is given twice: {', '.join(map(str, paths))}")
    runs = dict(zip(_labels(paths), map(read_folder, paths), strict=True))
    arms = {
        _label(run, name, folder): arm
        for run, folder in runs.items()
        for name, arm in folder.arms.items()
    }
    folder = RunFolder(
        path=Path(),
        recipe={"name": ", ".join(runs)},
        recipe_text="",
        environment={},
        table=_table(runs),
        arms={name: replace(arm, name=name) for name, arm in arms.items()},
    )
    sentences = {run: html.sentence(folder) for run, folder in runs.items()}
    return Comparison(folder, sentences, _differences(runs, arms))


def write_page(told: Comparison, out: Path) -> Path:
    """Write the comparison as one self-contained page, and say where it is."""
    more = {"sentences": told.sentences, "differences": told.differences}
    out.write_text(html.render(told.folder, "compare.html.jinja", **more), encoding="utf-8")
    return out


def spoken(told: Comparison) -> dict[str, Any]:
    """The table with what each arm cost, for a terminal."""
    rows = [dict(row) for row in told.folder.table["rows"]]
    for row in rows:
        if arm := told.folder.arms.get(row["name"]):
            row["values"] = {**(row.get("values") or {}), **_cost(arm)}
    return {**told.folder.table, "rows": rows, "columns": told.folder.table["columns"] | COSTS}


def differences_text(told: Comparison) -> Table:
    """What differs, for a terminal: a line a key, a column an arm."""
    table = Table(title="what differs", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("", no_wrap=True)
    for name in told.folder.arms:
        table.add_column(Text(words.visible(name)), overflow="fold")
    for key, values in told.differences:
        table.add_row(*(Text(words.visible(text)) for text in (key, *values)))
    return table


def _cost(arm: Arm) -> dict[str, Any]:
    tokens = arm.result.get("tokens") or {}
    spent = {"tokens": sum(tokens.values()) if isinstance(tokens, Mapping) else tokens}
    return {k: v for k in COSTS if (v := {**arm.result, **spent}.get(k)) is not None}


def _labels(paths: Sequence[Path | str]) -> list[str]:
    """The folders' own names; where two are alike, the paths as given."""
    names = [Path(path).resolve().name for path in paths]
    return names if len(set(names)) == len(names) else [str(path) for path in paths]


def _label(run: str, arm: str, folder: RunFolder) -> str:
    return run if len(folder.arms) == 1 else f"{run}/{arm}"


def _test_data(run: str, folder: RunFolder) -> tuple[str, str]:
    """What tells a run's test data from others', and how they are called in a note."""
    ledger = next(iter(folder.arms.values())).ledger
    rows = f"{number((ledger.get('rows') or {}).get('test'))} rows"
    digest = (ledger.get("sha256") or {}).get("test")
    return (digest, f"{rows}, sha256 {digest[:12]}") if digest else (run, f"{rows}, no hash told")


def _table(runs: Mapping[str, RunFolder]) -> dict[str, Any]:
    """One table of all runs; a start or teacher that is the same in all stands once."""
    data = {run: _test_data(run, folder) for run, folder in runs.items()}
    keys = list(dict.fromkeys(key for key, _ in data.values()))
    letters = {key: ascii_uppercase[i % 26] * (i // 26 + 1) for i, key in enumerate(keys)}
    groups = {run: letters[key] if len(keys) > 1 else "" for run, (key, _) in data.items()}
    rows = list(_rows(runs, groups))
    order = {"start": 0, "method": 1, "baseline": 1, "teacher": 2}
    columns = {k: v for folder in runs.values() for k, v in folder.table["columns"].items()}
    notes = [f"{run}: {note}" for run, f in runs.items() for note in f.table.get("notes", ())]
    return {
        "rows": sorted(rows, key=lambda row: order.get(str(row.get("kind")), 1)),
        "columns": columns,
        "notes": [*_group_notes(data, groups), *notes],
    }


def _rows(runs: Mapping[str, RunFolder], groups: Mapping[str, str]) -> Iterator[Record]:
    told = [(run, row) for run, folder in runs.items() for row in folder.table["rows"]]
    distinct = {(row["name"], _same(row, groups[run])) for run, row in told}
    shown: set[tuple[str, str]] = set()
    for run, row in told:
        name, key = row["name"], (row["name"], _same(row, groups[run]))
        if row.get("kind") in ARMS:
            yield {**row, "name": _label(run, name, runs[run]), "group": groups[run]}
        elif key not in shown:
            alone = [other for other, _ in distinct].count(name) == 1
            yield {**row, "name": name if alone else f"{run}/{name}", "group": groups[run]}
            shown.add(key)


def _same(row: Record, group: str) -> str:
    return json.dumps([row.get("values"), group], sort_keys=True)


def _group_notes(data: Mapping[str, tuple[str, str]], groups: Mapping[str, str]) -> list[str]:
    """Which runs share their test data, where not all do."""
    if not any(groups.values()):
        return []
    told = ["Test data differ: numbers on different data are not ranked against each other."]
    for group in dict.fromkeys(groups.values()):
        members = [run for run in groups if groups[run] == group]
        told.append(f"Data {group} ({data[members[0]][1]}): {', '.join(members)}.")
    return told


def _differences(
    runs: Mapping[str, RunFolder], arms: Mapping[str, Arm]
) -> list[tuple[str, Sequence[str]]]:
    machines = [f.environment for f in runs.values() for _ in f.arms]
    told = []
    for arm, machine in zip(arms.values(), machines, strict=True):
        hashes = {f"sha256 of {f['file']}": f.get("sha256") for f in arm.ledger.get("files") or ()}
        told.append(dict(words.flat({**arm.recipe, "environment": machine, **hashes})))
    keys = [k for k in dict.fromkeys(k for one in told for k in one) if k not in NO_DIFFERENCE]
    values = {key: [one.get(key, DASH) for one in told] for key in keys}
    return [(key, texts) for key, texts in values.items() if len(set(texts)) > 1]
