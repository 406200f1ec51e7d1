"""What a pipeline did: asked, verified, taught; what it cost beside what was estimated."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stillroom.reports.results import number

Line = tuple[str, str]


def lines(ledger: Mapping[str, Any]) -> list[Line]:
    """(what, numbers in words) of each thing that a run's pipeline did; none without one."""
    return [(str(entry["what"]), _says(entry)) for entry in ledger.get("pipeline") or ()]


def _says(entry: Mapping[str, Any]) -> str:
    told = [(name, value) for name, value in entry.items() if name != "what" and value not in ({},)]
    return "; ".join(f"{name.replace('_', ' ')} {_value(value)}" for name, value in told)


def _value(value: Any) -> str:
    if isinstance(value, Mapping):
        parts = [f"{_value(inner)} {name.replace('_', ' ')}" for name, inner in value.items()]
        return ", ".join(parts)
    return f"{value:,.6g}" if isinstance(value, float) else number(value)
