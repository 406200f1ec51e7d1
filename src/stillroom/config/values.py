"""Plain values to checked dataclasses: strict types, ranges from annotations, nearest names."""

from __future__ import annotations

import dataclasses
import json
import keyword
import typing
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from stillroom.catalogue import nearest
from stillroom.core import Failure

T = TypeVar("T")


def checked(cls: type[T], values: Any, path: str) -> T:
    """An instance of a dataclass from plain values.

    Raises:
        Failure: every unknown key (with the nearest known), wrong type and value out of range,
            each with its path, what it got and what is allowed.
    """
    if not isinstance(values, Mapping):
        raise Failure(f"{path}: expected a mapping of {_fields(cls)}, got {values!r}")
    _forbid_unknown(cls)
    try:
        told = json.dumps(_renamed(values), default=_plain)
        return TypeAdapter(cls).validate_json(told, strict=True)
    except ValidationError as error:
        raise Failure("\n".join(_sentences(cls, error, path))) from error


@contextmanager
def within(path: str) -> Iterator[None]:
    """Puts ``path`` before what a Failure of the block says; it keeps its kind."""
    try:
        yield
    except Failure as error:
        error.args = (f"{path}: {error}",)
        raise


def plain(value: Any) -> Any:
    """A dataclass as mappings, lists and scalars, defaults filled in."""
    return _renamed(json.loads(json.dumps(dataclasses.asdict(value), default=_plain)), back=True)


def _renamed(tree: Any, *, back: bool = False) -> Any:
    """A key that Python keeps for itself (``from``) is a field with an underscore (``from_``)."""
    if isinstance(tree, list | tuple):
        return [_renamed(value, back=back) for value in tree]
    if not isinstance(tree, Mapping):
        return tree
    names = {f"{word}_": word for word in keyword.kwlist}
    names = names if back else {word: name for name, word in names.items()}
    return {names.get(k, k): _renamed(v, back=back) for k, v in tree.items()}


def _plain(value: Any) -> Any:
    raise Failure(f"a recipe holds text, numbers, lists and mappings, not {value!r}")


def _fields(cls: Any) -> list[str]:
    return [f.name for f in dataclasses.fields(cls)]


def _dataclasses_in(kind: Any) -> list[Any]:
    if dataclasses.is_dataclass(kind):
        return [kind]
    return [found for part in typing.get_args(kind) for found in _dataclasses_in(part)]


def _forbid_unknown(cls: Any) -> None:
    """Pydantic lets unknown keys of standard dataclasses pass unless the class says otherwise."""
    cls.__pydantic_config__ = {"extra": "forbid"}
    for kind in typing.get_type_hints(cls).values():
        for inner in _dataclasses_in(kind):
            if "__pydantic_config__" not in vars(inner):
                _forbid_unknown(inner)


def _sentences(cls: Any, error: ValidationError, path: str) -> list[str]:
    """One sentence a place. Of a union's several complaints the one furthest inside is kept."""
    places: dict[str, tuple[int, str]] = {}
    for found in error.errors(include_url=False):
        names, owner = _names(cls, found["loc"])
        where = ".".join([path, *names]) if path else ".".join(names)
        depth = len(names) * 2 + (not found["type"].endswith("_type"))
        field = names[0] if names else ""
        before, told = places.get(field, (-1, ""))
        if depth > before:
            places[field] = (depth, _sentence(where, found, owner))
        elif (
            depth == before and told.startswith(f"{where}: must be ") and _wanted(found) not in told
        ):
            either = f"{where}: must be {_wanted(found)} or "
            places[field] = (depth, told.replace(f"{where}: must be ", either, 1))
    return [text for _, text in places.values()]


def _sentence(where: str, found: Any, owner: Any) -> str:
    kind, got = found["type"], found["input"]
    if kind == "unexpected_keyword_argument":
        known = _fields(owner)
        hint = nearest(where.rpartition(".")[2], known) or f"; it has {', '.join(known) or 'none'}"
        return f"{where}: {owner.__name__} has no such field{hint}"
    if kind == "missing":
        return f"{where}: missing, and it has no default"
    if kind == "value_error":  # the class's own words
        told = str(found["ctx"]["error"])
        return told if told.startswith(f"{where}.") else f"{where}: {told}"
    return f"{where}: must be {_wanted(found)}, got {got!r}"


def _wanted(found: Any) -> str:
    """``a valid number`` of ``Input should be a valid number``; JSON's words are made YAML's."""
    told = found["msg"].removeprefix("Input should be ")
    return told.replace("an object", "a mapping").replace("a valid array", "a list")


def _names(cls: Any, loc: tuple[int | str, ...]) -> tuple[list[str], Any]:
    """The path without pydantic's names of union members, and the dataclass at its end."""
    names: list[str] = []
    owner, kind = cls, cls
    for part in loc:
        if dataclasses.is_dataclass(kind):
            owner = kind
            names.append(str(part))
            kind = _or_none(typing.get_type_hints(kind).get(str(part), Any))
        elif found := [k for k in _dataclasses_in(kind) if k.__name__ in str(part)]:
            owner = found[0]  # a member of a union: Rate, or list[Rate] and the like
            kind = owner if owner.__name__ == part else kind
        elif isinstance(part, int) or (str(part).isidentifier() and part not in _SCALARS):
            names.append(str(part))
    return names, owner


def _or_none(kind: Any) -> Any:
    """The one kind beside None, of which pydantic names no member; else the kind as it is."""
    others = [part for part in typing.get_args(kind) if part is not type(None)]
    alone = len(others) == 1 and dataclasses.is_dataclass(others[0])
    return others[0] if alone and type(None) in typing.get_args(kind) else kind


_SCALARS = {"float", "int", "str", "bool", "constrained"}
