"""Recipes: strict YAML that says what is distilled from what, and how."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from stillroom.catalogue import load, name_of, nearest
from stillroom.config.specs import DataSpec, Network, TeacherSpec
from stillroom.config.values import checked, plain, within
from stillroom.core import Failure, Method, Pipeline
from stillroom.data.rows import exists
from stillroom.engine.settings import Eval, RunOptions, Train
from stillroom.rollouts.sampling import Sampling
from stillroom.traces.verifying import Verify

PACKAGED = Path(__file__).parent.parent / "recipes"


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One run, or several beside each other: ``arms`` are named changes of the recipe."""

    name: str
    about: str
    method: Method
    pipeline: Pipeline | None
    """What makes the rows that ``method`` learns, in one training or in several."""
    student: Network
    teacher: TeacherSpec
    teachers: Mapping[str, TeacherSpec]
    """Several by name, instead of ``teacher``: rows name theirs (``data.route``), or the method."""
    data: DataSpec
    train: Train
    eval: Eval
    run: RunOptions
    sampling: Sampling
    verify: Verify | None
    """How a final answer is found and checked, for pipelines and the evaluator ``verified``."""
    arms: Mapping[str, Recipe]
    folder: Path
    """Where the recipe was read from: files are sought beside it."""

    @property
    def spoken(self) -> Mapping[str, Recipe]:
        """The recipe with each of its teachers alone, by name: those that are listened to."""
        every = self.data.route or self.method.needs.several
        called = self.teachers if every else self.method.needs.teachers
        several = {
            name: replace(self, teacher=told, teachers={})
            for name, told in self.teachers.items()
            if name in called
        }
        return several or {"teacher": self}

    @property
    def system(self) -> Method | Pipeline:
        """What a run of it is called by."""
        return self.pipeline or self.method

    @property
    def classes(self) -> tuple[type, ...]:
        """Those whose source decides what a run gives."""
        return tuple(type(one) for one in (self.method, self.pipeline) if one is not None)

    @property
    def verifier(self) -> Verify | None:
        """``verify``, its database found."""
        if self.verify is None or self.verify.database is None:
            return self.verify
        place = find_data(self.verify.database, self.folder, "verify.database")
        return replace(self.verify, database=str(place))

    def resolved(self) -> dict[str, Any]:
        """Everything with its defaults, as plain values."""
        sections = {name: plain(getattr(self, name)) for name in SECTIONS}
        if self.verify is not None:
            sections["verify"] = plain(self.verify)
        arms = {name: arm.resolved() for name, arm in self.arms.items()}
        method = {"name": name_of(type(self.method)), **plain(self.method)}
        if self.teachers:  # what is resolved can be made again
            del sections["teacher"]
            sections["teachers"] = {name: plain(told) for name, told in self.teachers.items()}
        told = {"name": self.name, "about": self.about, "method": method, **sections}
        if self.pipeline is not None:
            told["pipeline"] = {"name": name_of(type(self.pipeline)), **plain(self.pipeline)}
        return {**told, "arms": arms} if arms else told


SECTIONS: dict[str, Any] = {
    "student": Network,
    "teacher": TeacherSpec,
    "data": DataSpec,
    "train": Train,
    "eval": Eval,
    "run": RunOptions,
    "sampling": Sampling,
}
_KEYS = ["name", "about", "method", "pipeline", *SECTIONS, "verify", "teachers", "arms"]


class _Loader(yaml.SafeLoader):
    """YAML 1.2's floats (``1e-3`` is a number), and no key twice in a mapping."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for i, key in enumerate(keys):
            if key in keys[:i]:
                twice, mark = f"the key {key!r} stands twice", node.value[i][0].start_mark
                raise yaml.MarkedYAMLError(problem=twice, problem_mark=mark)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d[\d_]*\.?\d*|\.\d+)[eE][-+]?\d+$"),
    list("-+0123456789."),
)


def read(source: str, overrides: Sequence[str] = (), *, tiny: bool = False) -> Recipe:
    """A recipe by file or packaged name, with ``key=value`` changes.

    Raises:
        Failure: no such recipe, YAML that does not parse, an unknown key, a value out of range.
    """
    file = find(source, PACKAGED, "recipe")
    told = mapping_in(file, _KEYS)
    told.setdefault("name", file.stem)
    told = shrunk(told, str(file), tiny=tiny)
    for override in overrides:
        told = overridden(told, override)
    return make(told, folder=file.parent)


def mapping_in(file: Path, keys: Sequence[str]) -> dict[str, Any]:
    """What a YAML file tells; Failure where that is no mapping, ``keys`` being what it may have."""
    told = _parsed(file.read_bytes(), str(file))
    if not isinstance(told, dict):
        raise Failure(f"{file}: expected a mapping of {', '.join(keys)}, got {type(told).__name__}")
    return told


def shrunk(told: Mapping[str, Any], where: str, *, tiny: bool) -> dict[str, Any]:
    """A recipe's mapping without its ``tiny`` section, which is merged in if ``tiny`` is asked."""
    rest = {key: value for key, value in told.items() if key != "tiny"}
    changes = _mapping(told.get("tiny"), "tiny")
    if tiny and not changes:
        raise Failure(f"{where} has no 'tiny' section, which would say what --tiny makes smaller")
    return merged(rest, changes) if tiny else rest


def make(told: Mapping[str, Any], *, folder: Path) -> Recipe:
    """A checked recipe from plain mappings."""
    for key in told:
        if key not in _KEYS:
            near = nearest(str(key), [*_KEYS, "tiny"])
            raise Failure(f"{key}: a recipe has no such key{near}; it has {', '.join(_KEYS)}")
    absent = {name: {} for name in SECTIONS if told.get(name) is None}
    pipeline = None if told.get("pipeline") is None else pipeline_of(told["pipeline"])
    method = method_of(told.get("method") or (pipeline and "seqkd"))
    values = {**told, **absent}
    return Recipe(
        name=str(told.get("name", "run")),
        about=str(told.get("about", "")).strip(),
        method=method,
        pipeline=pipeline,
        folder=folder,
        **{name: checked(cls, values[name], name) for name, cls in SECTIONS.items()},
        verify=None if told.get("verify") is None else checked(Verify, told["verify"], "verify"),
        teachers=_teachers(told, method),
        arms=_arms(told, folder),
    )


def _teachers(told: Mapping[str, Any], method: Method) -> dict[str, TeacherSpec]:
    several, called = _mapping(told.get("teachers"), "teachers"), method.needs.teachers
    names = ", ".join(sorted(called, reverse=True))
    if several and told.get("teacher"):
        raise Failure("teachers: give either it, several by name, or 'teacher'")
    if several and _mapping(told.get("data"), "data").get("route"):
        if len(called) > 1:
            raise Failure(
                f"data.route: {type(method).__name__} calls its teachers {names} by name; leave "
                "it out"
            )
    elif several and not method.needs.several and not called <= set(several):
        raise Failure(
            f"teachers: {type(method).__name__} calls {names}, and there is "
            f"{', '.join(map(str, several))}; or name the column that says which of them a row has "
            "as data.route"
        )
    return {str(n): checked(TeacherSpec, v, f"teachers.{n}") for n, v in several.items()}


def _arms(told: Mapping[str, Any], folder: Path) -> dict[str, Recipe]:
    """The recipe with each arm's changes."""
    base = {k: v for k, v in told.items() if k != "arms"}
    made = {}
    for name, changes in _mapping(told.get("arms"), "arms").items():
        if not re.fullmatch(r"[\w.-]+", str(name)):
            raise Failure(f"arms.{name}: a name is letters, digits, '_', '-' and '.'")
        arm = merged(base, _mapping(changes, f"arms.{name}"))
        with within(f"arms.{name}"):
            made[str(name)] = make({**arm, "name": str(name)}, folder=folder)
    return made


def _mapping(told: Any, path: str) -> Mapping[str, Any]:
    if told is not None and not isinstance(told, Mapping):
        raise Failure(f"{path}: expected a mapping, got {told!r}")
    return told or {}


def method_of(told: Any, path: str = "method") -> Method:
    """A method from its name, or from a mapping with ``name`` and fields."""
    return _named(told, "methods", path)


def pipeline_of(told: Any) -> Pipeline:
    """The same of a pipeline."""
    return _named(told, "pipelines", "pipeline")


def _named(told: Any, room: str, path: str) -> Any:
    told = {"name": told} if isinstance(told, str) else told
    if not isinstance(told, Mapping) or not isinstance(told.get("name"), str):
        raise Failure(f"{path}: expected a mapping with a name ('stillroom list'), got {told!r}")
    try:
        cls = load(told["name"], room)
    except (Failure, ModuleNotFoundError) as error:
        raise Failure(f"{path}.name: {error}") from error
    return checked(cls, {k: v for k, v in told.items() if k != "name"}, path)


def merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Sections are merged key by key, values replaced; another method starts from its defaults."""
    both = dict(base)
    for key, new in changes.items():
        old = both.get(key)
        if not isinstance(old, Mapping) or not isinstance(new, Mapping):
            both[key] = new
        elif key == "arms":
            names = {**old, **new}
            both[key] = {n: merged(old.get(n) or {}, new.get(n) or {}) for n in names}
        else:
            both[key] = (
                new if new.get("name", old.get("name")) != old.get("name") else {**old, **new}
            )
    return both


def _parsed(text: bytes, where: str) -> Any:
    try:
        return yaml.load(text.decode("utf-8"), _Loader)
    except UnicodeDecodeError as error:
        raise Failure(f"{where}: not UTF-8 text ({error}); save it as UTF-8") from error
    except yaml.YAMLError as error:
        raise Failure(f"{where}: not valid YAML: {error}") from error


def overridden(told: Mapping[str, Any], override: str) -> dict[str, Any]:
    """A recipe's mappings with one ``key=value`` change."""
    key, equals, text = override.partition("=")
    if not equals or not all(key.split(".")):
        raise Failure(f"{override!r}: expected key=value, like train.steps=100")
    *way, last = key.split(".")
    place = told = dict(told)
    for depth, part in enumerate(way, start=1):
        inner = place.get(part)
        if inner is not None and not isinstance(inner, Mapping):
            raise Failure(f"{key}: {'.'.join(way[:depth])} is {inner!r}, which has no parts")
        place[part] = place = dict(inner or {})
    place[last] = _parsed(text.encode(), key)
    return told


def find(source: str, folder: Path, what: str) -> Path:
    """A YAML file by path, or by its name among the packaged ones of a folder."""
    packaged = {file.stem: file for file in sorted(folder.glob("*.yaml"))}
    for file in (Path(source), packaged.get(source)):
        if file is not None and file.is_file():
            return file
    raise Failure(
        f"there is no {what} {source!r}{nearest(source, list(packaged)) or '.'} "
        f"Give a YAML file, or one of {', '.join(packaged)}"
    )


def find_data(name: str, beside: Path, key: str) -> Path:
    """A name for ``read_rows``: as given, beside the recipe, or under ``STILLROOM_DATA``."""
    root = os.environ.get("STILLROOM_DATA")
    sought = [Path(name), beside / name, *([Path(root) / name] if root else [])]
    places = list(dict.fromkeys(sought))
    for place in places:
        if exists(place):
            return place
    hint = "" if root else "; or set STILLROOM_DATA to the folder that holds it"
    raise Failure(f"{key}: there is no file {name} (looked at {', '.join(map(str, places))}){hint}")
