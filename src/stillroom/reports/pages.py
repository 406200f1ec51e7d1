"""Method pages in Markdown, generated from the classes; ``python -m stillroom.reports.pages DIR``.

A page holds what the file of the method says: docstring, fields with ranges, needs, paper, and
the verdict of its claims. The index orders methods by what the teacher must give.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stillroom import catalogue, outcomes
from stillroom.reports import claims
from stillroom.reports.fields import described, markdown, read_docstring


def write_pages(directory: Path | str) -> list[Path]:
    """Write a page for every name of the catalogue, and ``README.md`` as their index."""
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    rows = catalogue.rows()
    texts = {f"{row['name']}.md": method_page(row, catalogue.load(row["name"])) for row in rows}
    texts["README.md"] = index(rows)
    for name, text in texts.items():
        (directory / name).write_text(text, encoding="utf-8")
    return [directory / name for name in texts]


def method_page(row: Mapping[str, Any], cls: type) -> str:
    """The page of one class.

    Args:
        row: its row of the catalogue.
        cls: a dataclass with a Google-style docstring; ``Args`` describes its fields.
    """
    first, body, _ = read_docstring(inspect.getdoc(cls) or "")
    parts = [f"# {row['name']}", first, _paper(row["paper"]), body]
    parts += ["## Fields", _field_table(cls)]
    said = {"method": needs, "pipeline": asks}.get(row["kind"], reads)
    parts += ["## Needs", "\n".join(f"- {line}" for line in said(row["needs"]))]
    parts += ["## Claims", f"Verdict: **{row['verdict']}**."]
    parts += [claims.section(outcomes.claims().get(row["name"], []))]
    parts += [f"Kind: {row['kind']}. Family: {row['family']}. Modality: {row['modality']}."]
    return "\n\n".join(part for part in parts if part) + "\n"


def _paper(paper: Mapping[str, str] | None) -> str:
    if not paper:
        return ""
    title = f", *{paper['title']}*" if paper.get("title") else ""
    return f"Paper: {paper['authors']}{title} ([{paper['id']}]({paper['url']}))"


def _field_table(cls: type) -> str:
    lines = ["| field | type | range | default | |", "| --- | --- | --- | --- | --- |"]
    for field in described(cls):
        code = {part: f"`{field[part]}`" for part in ("name", "type")}
        value = field["default"]
        shown = float(f"{value:.6g}") if isinstance(value, float) else value
        default = "required" if field["required"] else f"`{shown!r}`"
        cells = (code["name"], code["type"], field["range"], default, field["says"])
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) if len(lines) > 2 else "None."


def needs(told: Mapping[str, Any]) -> list[str]:
    """What the method asks for, in sentences."""
    streams = ", ".join(f"`{name}`" for name in told["streams"]) or "none: it is data-free"
    lines = [
        f"of the teacher: {_signals(told['teacher'])}",
        f"of the student: {_signals(told['student'])}",
        f"streams of data: {streams}",
    ]
    if len(told["teachers"]) > 1:
        lines.append(f"teachers of these names: {', '.join(f'`{n}`' for n in told['teachers'])}")
    if told["metrics"]:
        numbers = ", ".join(f"`{name}`" for name in told["metrics"])
        lines.append(f"of the validation split, while it trains: {numbers}")
    if told["texts"]:
        lines.append(f"a column of each training row: {', '.join(f'`{n}`' for n in told['texts'])}")
    flags = {
        "rollouts": "samples of the student while it trains",
        "fresh": "a live teacher: it asks about sequences that the data do not hold",
        "whole": "whole batches: it compares the samples of a batch",
        "planned": "the number of steps beforehand: `train.steps`, not `train.cpu_seconds`",
    }
    return lines + [says for name, says in flags.items() if told[name]]


def asks(told: Mapping[str, Any]) -> list[str]:
    """What a pipeline asks for before and between its trainings, in sentences."""
    lines = [
        f"of the teacher: {_signals(told['teacher'])}",
        "streams of data: " + ", ".join(f"`{name}`" for name in told["streams"]),
        "the number of steps beforehand: `train.steps`, of all trainings of the student together",
    ]
    fresh = "a teacher that answers: it is asked new questions; what it said before is kept"
    return lines + [fresh] * told["fresh"]


def reads(told: Mapping[str, Any]) -> list[str]:
    """What the runs must have had that a diagnostic reads, in sentences."""
    return [
        f"of the teacher of the runs: {_signals(told['teacher'])}",
        f"numbers that they recorded: {', '.join(f'`{name}`' for name in told['metrics'])}",
    ]


def _signals(names: Sequence[str]) -> str:
    return "; ".join(f"`{n}` ({catalogue.SIGNALS[n]})" for n in names) or "nothing"


def index(rows: Sequence[Mapping[str, Any]]) -> str:
    """Names by the most demanding signal that they ask of the teacher."""
    order = ["", *catalogue.SIGNALS]
    groups: dict[str, list[Mapping[str, Any]]] = {signal: [] for signal in order}
    studies = [row for row in rows if row["kind"] == "diagnostic"]
    systems = [row for row in rows if row["kind"] == "pipeline"]
    for row in (row for row in rows if row["kind"] == "method"):
        groups[max(row["needs"]["teacher"], key=order.index, default="")].append(row)
    parts = ["# What can be done with the teacher at hand"]
    parts += ["Each method stands under the most demanding signal that it asks of its teacher."]
    for signal, found in groups.items():
        if found:
            title = (
                f"The teacher gives `{signal}`: {catalogue.SIGNALS[signal]}"
                if signal
                else "No teacher"
            )
            parts += [f"## {title}", _index_table(found)]
    if systems:
        told = (
            "A recipe names one as `pipeline`. Its page says what it asks of the teacher. What the "
            "teacher answered and each training are kept, and done once."
        )
        parts += ["## Systems of several trainings", told, _index_table(systems)]
    if studies:
        told = (
            "`stillroom diagnose NAME DIR` reads the folders of finished runs, and trains nothing."
        )
        parts += ["## What explains runs", told, _index_table(studies)]
    told = "`stillroom claim NAME` tests one again; it costs what its CPU seconds of training say."
    tested = [claim for found in outcomes.claims().values() for claim in found]
    parts += ["## Claims that were tested", told, claims.table(tested)]
    return "\n\n".join(parts) + "\n"


def _index_table(rows: Sequence[Mapping[str, Any]]) -> str:
    lines = ["| name | what it does | family | modality | claims |", "| --- " * 5 + "|"]
    for row in rows:
        link = f"[{row['name']}]({row['name']}.md)"
        cells = (link, row["summary"], row["family"], row["modality"], row["verdict"])
        lines.append("| " + " | ".join(markdown(c).replace("|", "\\|") for c in cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    write_pages(sys.argv[1] if len(sys.argv) > 1 else "docs/methods")
