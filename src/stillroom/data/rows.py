"""Rows of a file, and columns made from other columns."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from jinja2 import StrictUndefined, TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from stillroom.failures import Failure

Row = Mapping[str, Any]


def read_jsonl(path: Path) -> list[Row]:
    """Rows of a JSON Lines file.

    Raises:
        Failure: no such file, an empty or malformed line (file and line are named), no rows.
    """
    if not path.is_file():
        raise Failure(f"{path}: there is no such file")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise Failure(f"{path}: not UTF-8 text ({error}); save it as UTF-8") from error
    rows: list[Row] = []
    # not splitlines(): a string of JSON may hold U+2028 and other breaks that end no line
    for number, line in enumerate(text.removesuffix("\n").split("\n") if text else (), start=1):
        where = f"{path}, line {number}"
        if not line.strip():
            raise Failure(f"{where}: the line is empty; each line must be one JSON object")
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise Failure(
                f"{where}: not valid JSON ({error.msg} at column {error.colno})"
            ) from error
        if not isinstance(row, dict):
            raise Failure(f"{where}: expected a JSON object, got {type(row).__name__}")
        rows.append(row)
    if not rows:
        raise Failure(f"{path}: the file has no rows")
    return rows


def columns(templates: Mapping[str, str]) -> Callable[..., Row]:
    """``fill(row, where="row")``: a row with the columns that Jinja templates make from its others.

    Raises:
        Failure: a template is malformed, or cannot be filled from the row at ``where``.
    """
    jinja = ImmutableSandboxedEnvironment(keep_trailing_newline=True, undefined=StrictUndefined)
    try:
        made = {name: jinja.from_string(template) for name, template in templates.items()}
    except TemplateError as error:
        raise Failure(f"data.columns: {error}") from error

    def fill(row: Row, where: str = "row") -> Row:
        try:
            new = {name: template.render(dict(row)) for name, template in made.items()}
        except Exception as error:  # a template may raise anything that Python code may
            raise Failure(f"{where}: data.columns: {error}; the row has {sorted(row)}") from error
        return {**{k: v for k, v in row.items() if k != "messages" or not new}, **new}

    return fill
