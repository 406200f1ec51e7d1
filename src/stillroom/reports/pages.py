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
    parts += ["## Needs", "\n".join(f"- {line}" for line in needs(row["needs"]))]
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

    def signals(names: Sequence[str]) -> str:
        return "; ".join(f"`{n}` ({catalogue.SIGNALS[n]})" for n in names) or "nothing"

    streams = ", ".join(f"`{name}`" for name in told["streams"]) or "none: it is data-free"
    lines = [
        f"of the teacher: {signals(told['teacher'])}",
        f"of the student: {signals(told['student'])}",
        f"streams of data: {streams}",
    ]
    if told["texts"]:
        lines.append(f"a column of each training row: {', '.join(f'`{n}`' for n in told['texts'])}")
    flags = {
        "rollouts": "samples of the student while it trains",
        "fresh": "a live teacher: it asks about sequences that the data do not hold",
        "whole": "whole batches: it compares the samples of a batch",
        "planned": "the number of steps beforehand: `train.steps`, not `train.cpu_seconds`",
    }
    return lines + [says for name, says in flags.items() if told[name]]


def index(rows: Sequence[Mapping[str, Any]]) -> str:
    """Names by the most demanding signal that they ask of the teacher."""
    order = ["", *catalogue.SIGNALS]
    groups: dict[str, list[Mapping[str, Any]]] = {signal: [] for signal in order}
    for row in rows:
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
