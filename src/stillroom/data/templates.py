"""Questions to a teacher from Jinja files: those that are shipped, or a person's own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from jinja2 import StrictUndefined, TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from stillroom.data.rows import Row
from stillroom.data.turns import question
from stillroom.failures import Failure

SHIPPED = Path(__file__).parent.parent / "templates"
SANDBOX: dict[str, Any] = {"keep_trailing_newline": True, "undefined": StrictUndefined}


def template(name: str, given: Mapping[str, str] | None = None) -> Callable[[Row], str]:
    """``fill(row) -> text`` of the template ``name``, from the columns of a row.

    ``question`` is the text of what the row asks (of messages the last turn's), whatever its form.
    A template cannot reach Python's objects, and a column that a row lacks is an error.

    Args:
        name: of a file in ``templates``, without ``.jinja``.
        given: a person's own files by name, which come first.

    Raises:
        Failure: there is no such file, it is malformed, or a row lacks a column that it needs.
    """
    file = Path((given or {}).get(name) or SHIPPED / f"{name}.jinja")
    try:
        text = file.read_text(encoding="utf-8")
        made = ImmutableSandboxedEnvironment(**SANDBOX).from_string(text.removesuffix("\n"))
    except (OSError, UnicodeDecodeError, TemplateError) as error:
        known = ", ".join(sorted(f.stem for f in SHIPPED.glob("*.jinja")))
        raise Failure(f"templates.{name}: {file}: {error}; shipped are {known}") from error

    def fill(row: Row) -> str:
        try:
            return made.render({**row, "question": asked(row)})
        except Exception as error:  # a template may raise anything that Python code may
            raise Failure(f"templates.{name}: {error}; the row has {sorted(row)}") from error

    return fill


def asked(row: Row) -> str:
    """The text of a row's question: its prompt, or its last message that is not the answer."""
    said = question(row, str(row.get("id", "row")))
    return said if isinstance(said, str) else str(said[-1]["content"])
