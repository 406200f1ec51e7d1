"""Values that the annotation of a field allows, and values just outside."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import annotated_types as at

from stillroom.core import Method


def hints(cls: type[Method]) -> dict[str, Any]:
    """Types of the fields with their ranges; what the class says of itself is left out."""
    told = get_type_hints(cls, include_extras=True)
    return {field.name: told[field.name] for field in dataclasses.fields(cls)}


def members(hint: Any) -> Iterator[tuple[Any, list[Any]]]:
    """Each plain type inside a hint with its bounds: ``(float, [Ge(0), Le(1)])``."""
    if get_origin(hint) is Annotated:
        marks = [m for g in hint.__metadata__ for m in (g if is_group(g) else [g])]
        yield hint.__origin__, marks
    elif get_origin(hint) in (Union, UnionType):
        for part in get_args(hint):
            yield from members(part)
    else:
        yield hint, []


def is_group(mark: Any) -> bool:
    return isinstance(mark, at.GroupedMetadata)


def refused(hint: Any) -> Iterator[Any]:
    """Values just outside of what a hint allows."""
    for kind, marks in members(hint):
        tiny = 1 if kind is int else 1e-6
        for mark in marks:
            if isinstance(mark, at.Gt | at.Lt):
                yield mark.gt if isinstance(mark, at.Gt) else mark.lt
            elif isinstance(mark, at.Ge | at.Le):
                yield mark.ge - tiny if isinstance(mark, at.Ge) else mark.le + tiny
        if kind is float and marks:
            yield math.nan
        if kind in (int, float, bool):
            yield "much"
        if get_origin(kind) is Literal:
            yield "no such choice"


def edges(hint: Any) -> Iterator[Any]:
    """The values at the closed ends of a range, which are allowed."""
    for _, marks in members(hint):
        for mark in marks:
            if isinstance(mark, at.Ge | at.Le):
                yield mark.ge if isinstance(mark, at.Ge) else mark.le
    for kind, _ in members(hint):
        if get_origin(kind) is Literal:
            yield from get_args(kind)


def inside(kind: Any, marks: list[Any], default: Any) -> Any:
    """Another value than the default, within the range where there is one."""
    low = [m.ge if isinstance(m, at.Ge) else m.gt for m in marks if isinstance(m, at.Ge | at.Gt)]
    high = [m.le if isinstance(m, at.Le) else m.lt for m in marks if isinstance(m, at.Le | at.Lt)]
    if kind is bool:
        return not default
    if get_origin(kind) is Literal:
        return get_args(kind)[-1]
    if kind is int and low:
        return low[0] + 1
    if kind is float and low:
        return (low[0] + high[0]) / 2 if high else low[0] + 0.5
    return default
