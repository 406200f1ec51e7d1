"""Names, rows and classes of everything that the toolkit ships. There is no registry.

A name is a file's name. Rows are read with ``ast``, so that listing imports nothing; only
``load`` imports, and only the one file.
"""

from __future__ import annotations

import ast
import difflib
import importlib
import importlib.util
import re
from collections.abc import Mapping, Sequence, Set
from functools import cache
from pathlib import Path
from typing import Any

from stillroom.failures import Failure
from stillroom.outcomes import claims, counted

ROOMS = {"methods": "method", "pipelines": "pipeline", "diagnostics": "diagnostic"}
"""Folders that hold one class a file, and what that class is called."""
TOLD = ("paper", "needs", "modality", "family")
"""Literals that the class body of each file states."""
NO_NEEDS = {
    "teacher": [],
    "student": ["logits"],
    "rollouts": False,
    "fresh": False,
    "whole": False,
    "planned": False,
    "texts": [],
    "teachers": ["teacher"],
    "metrics": [],
    "streams": ["train"],
    "several": False,
    "many_labels": False,
}


SIGNALS = {
    "text": "answers as text",
    "logprobs": "log-probabilities of its own words",
    "topk": "the k largest log-probabilities",
    "sampled": "tokens sampled from its distribution",
    "sparse": "probabilities of some tokens at least: topk, sampled, or logits of all",
    "logits": "scores of every token or class, for given inputs",
    "spans": "scores of its own tokens for the same text, whatever the student's tokenizer",
    "hidden": "the last state and the head that reads it",
    "features": "states of named layers",
    "maps": "states of named layers by place: pixels of a map, or tokens",
    "attention": "attention maps",
    "gradient": "gradients through to its input",
    "weights": "its parameters",
}
_IMPLIES = {
    "hidden": {"logits"},
    "maps": {"features"},
    "logits": {"topk", "sampled", "logprobs"},
    "topk": {"sparse"},
    "sampled": {"sparse"},
}


def closure(signals: Set[str]) -> frozenset[str]:
    """Signals with what follows from them: ``hidden > logits > topk``."""
    found = set(signals)
    while more := {low for high in found for low in _IMPLIES.get(high, set())} - found:
        found |= more
    return frozenset(found)


@cache
def names(room: str | None = None) -> dict[str, str]:
    """Every name with its module: ``{"kd": "stillroom.methods.kd", ...}``, sorted.

    Of one room alone where it is named (``methods``, ``pipelines``, ``diagnostics``).
    """
    root = Path(__file__).parent
    found: dict[str, str] = {}
    for one in ROOMS if room is None else (room,):
        for file in sorted((root / one).glob("[!_]*.py")):
            if file.stem in found:
                raise RuntimeError(f"two files are named {file.stem}: rename {file}")
            found[file.stem] = f"stillroom.{one}.{file.stem}"
    return dict(sorted(found.items()))


def nearest(word: str, known: list[str]) -> str:
    """``; did you mean 'x'?`` or nothing."""
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""


def load(name: str, room: str | None = None) -> Any:
    """The one class that the named file defines; ``package.module`` loads a user's own file.

    Of one room alone where it is named; a user's own file holds a method unless it is.

    Raises:
        Failure: no such name there, or the file defines no class of its kind, or several.
    """
    if name not in names(room) and "." not in name:
        raise _unknown(name, room)
    place = names(room).get(name, name)
    kind = ROOMS[room or (place.split(".")[1] if name in names() else "methods")].title()
    module = importlib.import_module(place)
    core = importlib.import_module("stillroom.core")
    found = [
        value
        for value in vars(module).values()
        if isinstance(value, type)
        and issubclass(value, getattr(core, kind))
        and value.__module__ == module.__name__
    ]
    if len(found) != 1:
        raise Failure(f"{module.__name__} must define exactly one {kind}, found {len(found)}")
    return found[0]


def _unknown(name: str, room: str | None) -> Failure:
    if room is not None and name in names():
        kind = ROOMS[names()[name].split(".")[1]]
        return Failure(f"{name!r} is a {kind}; it takes a {ROOMS[room]} here ('stillroom list')")
    return Failure(f"there is no {name!r}{nearest(name, list(names(room)))} ('stillroom list')")


def rows() -> list[dict[str, Any]]:
    """What is known of each name without importing it, sorted by name."""
    told = claims()
    return [_row(name, told) for name in names()]


def row(name: str) -> dict[str, Any]:
    """``name kind family modality needs paper verdict summary`` of one file, read by ``ast``."""
    return _row(name, claims())


def _row(name: str, results: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
    room, file = "methods", Path(__file__).parent
    if name in names():
        room = names()[name].split(".")[1]
        file = file / room / f"{name}.py"
    elif "." in name and (found := importlib.util.find_spec(name)) and found.origin:
        file = Path(found.origin)
    else:
        raise _unknown(name, None)
    body = _only_class(ast.parse(file.read_text(encoding="utf-8")), file)
    told = {
        target.id: node.value
        for node in body.body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name) and target.id in TOLD
    }
    if missing := [word for word in TOLD if word not in told]:
        raise RuntimeError(f"{file.name}: the class body must state {', '.join(missing)}")
    return {
        "name": name,
        "kind": ROOMS[room],
        "family": ast.literal_eval(told["family"]),
        "modality": ast.literal_eval(told["modality"]),
        "needs": {**NO_NEEDS, **_keywords(told["needs"])},
        "paper": _paper(told["paper"]),
        "verdict": counted([claim["verdict"] for claim in results.get(name, ())]),
        "summary": (ast.get_docstring(body) or "").split("\n\n")[0].replace("\n", " "),
    }


def name_of(cls: type) -> str:
    """The name that ``load`` finds a class by."""
    module = cls.__module__
    return next((name for name, place in names().items() if place == module), module)


def fitting(teacher: Set[str], fresh: bool = True) -> list[str]:
    """Names of the methods that a teacher with these signals can serve."""
    return [
        r["name"]
        for r in rows()
        if r["kind"] == "method"
        and closure(teacher) >= set(r["needs"]["teacher"])
        and (fresh or not r["needs"]["fresh"])
    ]


def _only_class(tree: ast.Module, file: Path) -> ast.ClassDef:
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name[0] != "_"]
    if len(classes) != 1:
        raise RuntimeError(f"{file}: one public class a file, found {len(classes)}")
    return classes[0]


def _keywords(call: ast.expr) -> dict[str, Any]:
    assert isinstance(call, ast.Call)
    values = {k.arg or "": ast.literal_eval(k.value) for k in call.keywords}
    return {k: sorted(v) if isinstance(v, set) else v for k, v in values.items()}


def _paper(node: ast.expr) -> dict[str, str] | None:
    if isinstance(node, ast.Constant):
        return None
    assert isinstance(node, ast.Call)
    words = [ast.literal_eval(a) for a in node.args]
    told = dict(zip(("id", "authors", "title"), words, strict=False))
    return {**told, "url": paper_url(told["id"])}


def paper_url(id: str) -> str:
    """Where a paper stands: arXiv for ids like ``1503.02531``, else its DOI."""
    return f"https://arxiv.org/abs/{id}" if re.match(r"\d{4}\.\d", id) else f"https://doi.org/{id}"
