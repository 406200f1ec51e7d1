"""What a class says of itself: its docstring in parts, its fields' types and ranges."""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Iterator
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import annotated_types as at

HEADING = re.compile(r"^(Args|Raises|Returns|Notes?|Examples?):\s*$")
FIELD = re.compile(r"^(\w+)(?: \([^)]*\))?:\s*(.*)$")
BOUNDS = {at.Gt: "gt", at.Ge: "ge", at.Lt: "lt", at.Le: "le", at.MultipleOf: "multiple_of"}
BOUNDS |= {at.MinLen: "min_length", at.MaxLen: "max_length"}
SIGNS = {"gt": "> ", "ge": ">= ", "lt": "< ", "le": "<= ", "multiple_of": "multiple of "}
SIGNS |= {"min_length": "length >= ", "max_length": "length <= "}


def described(cls: type) -> list[dict[str, Any]]:
    """Fields of a dataclass: ``name type range default required says``.

    ``range`` is empty without bounds; ``default`` is the value itself.
    """
    hints = get_type_hints(cls, include_extras=True)
    told: dict[str, str] = {}
    for base in reversed(cls.__mro__):  # a field is described where it is declared
        told |= read_docstring(inspect.cleandoc(base.__doc__ or ""))[2]
    return [
        {
            "name": field.name,
            "type": type_name(hints[field.name]),
            "range": ", ".join(ranges(hints[field.name])),
            "default": _default(field),
            "required": dataclasses.MISSING is field.default is field.default_factory,
            "says": markdown(told.get(field.name, "")),
        }
        for field in dataclasses.fields(cls)
    ]


def _default(field: dataclasses.Field[Any]) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return None if field.default is dataclasses.MISSING else field.default


def read_docstring(doc: str) -> tuple[str, str, dict[str, str]]:
    """First paragraph, the rest as Markdown without ``Args``, and ``Args`` by name."""
    kept: list[str] = []
    told: dict[str, str] = {}
    section = name = ""
    for line in doc.splitlines():
        if found := HEADING.match(line):
            section = found.group(1)
            kept += [] if section == "Args" else [f"**{section}**", ""]
            continue
        section = "" if line[:1].strip() else section
        if section != "Args":
            kept.append(line.removeprefix("    ") if section else line)
        elif found := FIELD.match(line.removeprefix("    ")):
            name = found.group(1)
            told[name] = found.group(2)
        elif name and line.strip():
            told[name] += f" {line.strip()}"
    first, _, body = "\n".join(kept).strip().partition("\n\n")
    return markdown(first), markdown(body.strip()), told


def markdown(text: str) -> str:
    """Docstring as Markdown: outside of code, what looks like an HTML tag is plain text."""
    pieces = re.split(r"(`+[^`]+`+)", text)
    return "".join(
        p if p.startswith("`") else re.sub(r"<(?=[A-Za-z/!?])", "&lt;", p) for p in pieces
    )


def type_name(hint: Any) -> str:
    """A type as a reader writes it, without the annotations inside."""
    origin, args = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return type_name(args[0])
    if hint is type(None):
        return "None"
    if origin is Literal:
        return " | ".join(map(repr, args))
    if args and isinstance(origin, type) and origin.__name__ != "UnionType":
        inner = ", ".join("..." if a is ... else type_name(a) for a in args)
        return f"{origin.__name__}[{inner}]"
    if args:
        return " | ".join(map(type_name, args))
    return getattr(hint, "__name__", str(hint))


def ranges(hint: Any) -> Iterator[str]:
    """Bounds anywhere inside a type: ``> 0``, ``<= 1``, ``length >= 1``."""
    if get_origin(hint) is Annotated:
        yield from ranges(hint.__origin__)
        for mark in hint.__metadata__:
            yield from _bound(mark)
    elif get_origin(hint) is not Literal:
        for inner in get_args(hint):
            yield from ranges(inner)


def _bound(mark: Any) -> Iterator[str]:
    if isinstance(mark, at.GroupedMetadata):
        for inner in mark:
            yield from _bound(inner)
    elif (name := BOUNDS.get(type(mark))) is not None:
        yield f"{SIGNS[name]}{getattr(mark, name)}"
