"""The results table as text: one rounding, one dash, one rule for the best, for every output."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median_high
from typing import Any, TypeGuard

DASH = "—"
ARROWS = {"lower": "↓", "higher": "↑"}
LEGEND = "best student by this number; a teacher is not ranked"


@dataclass(frozen=True)
class Column:
    """``better`` is ``lower``, ``higher`` or None (a number that is neither good nor bad)."""

    name: str
    label: str
    better: str | None

    @property
    def arrow(self) -> str:
        return ARROWS.get(self.better or "", "")


@dataclass(frozen=True)
class Cell:
    """A value as text, and whether it is the best of its column."""

    text: str
    best: bool = False


@dataclass(frozen=True)
class Row:
    """One model; ``cells`` go with the columns; ``group`` names its test data where they differ."""

    name: str
    kind: str
    cells: tuple[Cell, ...]
    group: str


@dataclass(frozen=True)
class Results:
    """The whole table, ready to print."""

    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...]

    @property
    def ranked(self) -> bool:
        return any(cell.best for row in self.rows for cell in row.cells)


def results(table: Mapping[str, Any]) -> Results:
    """``table.json`` as rows of text cells.

    Best = lowest or highest finite value of a column among all rows but teachers, where at least
    two have one; values that round to the same text share the mark. Rows that name another
    ``group`` were measured on other data and are not ranked against each other.
    """
    columns, rows = _columns(table), table["rows"]
    sides = [_column(column, rows) for column in columns]
    return Results(
        columns=tuple(columns),
        rows=tuple(
            Row(
                str(row["name"]),
                str(row.get("kind", "")),
                tuple(side[i] for side in sides),
                str(row.get("group", "")),
            )
            for i, row in enumerate(rows)
        ),
        notes=tuple(str(note) for note in table.get("notes", ())),
    )


def _columns(table: Mapping[str, Any]) -> list[Column]:
    told = table["columns"]
    names = dict.fromkeys([*told, *(name for row in table["rows"] for name in _values(row))])
    return [
        Column(name, str(told.get(name, {}).get("label", "")), told.get(name, {}).get("better"))
        for name in names
    ]


def _values(row: Mapping[str, Any]) -> Mapping[str, Any]:
    return row.get("values") or {}


def _column(column: Column, rows: Sequence[Mapping[str, Any]]) -> list[Cell]:
    values = [_values(row).get(column.name) for row in rows]
    texts = numbers(values)
    groups: dict[Any, dict[int, float]] = {}
    for i, value in enumerate(values):
        if _finite(value) and rows[i].get("kind") != "teacher":
            groups.setdefault(rows[i].get("group"), {})[i] = value
    marked: set[int] = set()
    for ranked in groups.values():
        if column.better in ARROWS and len(ranked) > 1:
            pick = min if column.better == "lower" else max
            best = texts[pick(ranked, key=lambda i: ranked[i])]
            marked |= {i for i in ranked if texts[i] == best}
    return [Cell(text, i in marked) for i, text in enumerate(texts)]


def _finite(value: Any) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and math.isfinite(value)


def numbers(values: Sequence[Any]) -> list[str]:
    """Values of one column with the same decimals: four digits of their median, at most 4."""
    sizes = [abs(v) for v in values if _finite(v) and v]
    if all(size == int(size) for size in sizes):
        decimals = 0
    else:
        decimals = min(4, max(0, 3 - math.floor(math.log10(median_high(sizes)))))
    return [number(value, decimals) for value in values]


def number(value: Any, decimals: int = 0) -> str:
    """A value as text: a dash for what is absent, thousands apart, large ones as powers."""
    if value is None:
        return DASH
    if not isinstance(value, int | float) or isinstance(value, bool):
        return str(value)
    if not math.isfinite(value) or abs(value) >= 1e12:
        return f"{value:.3g}"
    return f"{value:,.{decimals}f}"
