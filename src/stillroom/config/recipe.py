"""Recipes: strict YAML that says what is distilled from what, and how."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from annotated_types import Ge, Gt

from stillroom.catalogue import load, name_of, nearest
from stillroom.config.values import checked, plain, within
from stillroom.core import Failure, Method
from stillroom.engine.settings import Eval, RunOptions, Train
from stillroom.rollouts.sampling import Sampling

Dtype = Literal["float32", "bfloat16", "float16"]
PACKAGED = Path(__file__).parent.parent / "recipes"


@dataclass(frozen=True, kw_only=True)
class Network:
    """A model by hub name or folder; the options go to ``from_pretrained``.

    ``lm`` makes a language model with fresh weights from a config instead: ``model_type`` (of
    ``transformers``, or ``windowed``) and its sizes. Its tokenizer is a byte-level BPE of
    ``vocab_size`` entries trained on the training text, or the one named.
    """

    model: str | None = None
    dtype: Dtype = "float32"
    revision: str | None = None
    device_map: str | None = None
    trust_remote_code: bool = False
    lm: dict[str, Any] | None = None
    vocab_size: Annotated[int, Ge(300)] = 4096
    tokenizer: str | None = None


@dataclass(frozen=True, kw_only=True)
class TeacherSpec:
    """``recorded: true`` (its answers are the data's completions), or a model in this process."""

    recorded: bool = False
    model: str | None = None
    dtype: Dtype = "float32"
    revision: str | None = None
    device_map: str | None = None
    trust_remote_code: bool = False
    terms: str | None = None
    """Under which terms the teacher's text or weights may be used; shown in the model card."""


@dataclass(frozen=True, kw_only=True)
class DataSpec:
    """Where the rows come from and which are kept.

    Files are sought as given, beside the recipe, and under ``STILLROOM_DATA``.

    Args:
        train: JSON Lines with ``prompt`` and ``completion``, or ``messages``.
        validation: a file of the same kind; or ``hold_out`` rows of ``train``.
        test: likewise.
        hold_out: rows that become validation, and as many that become test.
        columns: Jinja templates that make ``prompt`` and ``completion`` from other columns.
        max_prompt_tokens: longer prompts are left out, and counted.
        max_completion_tokens: longer answers, the end token included, are left out, and counted.
        world: a made-up world instead of files (``marked_orders``), and its options.
        licence: shown in the model card.
    """

    train: str | None = None
    validation: str | None = None
    test: str | None = None
    hold_out: Annotated[int, Ge(1)] | None = None
    columns: dict[str, str] = field(default_factory=dict)
    max_prompt_tokens: Annotated[int, Ge(1)] | None = None
    max_completion_tokens: Annotated[int, Gt(1)] | None = None
    world: dict[str, Any] | None = None
    licence: str | None = None


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One run, or several beside each other: ``arms`` are named changes of the recipe."""

    name: str
    about: str
    method: Method
    student: Network
    teacher: TeacherSpec
    data: DataSpec
    train: Train
    eval: Eval
    run: RunOptions
    sampling: Sampling
    arms: Mapping[str, Recipe]
    folder: Path
    """Where the recipe was read from: files are sought beside it."""

    def resolved(self) -> dict[str, Any]:
        """Everything with its defaults, as plain values."""
        sections = {name: plain(getattr(self, name)) for name in SECTIONS}
        arms = {name: arm.resolved() for name, arm in self.arms.items()}
        method = {"name": name_of(type(self.method)), **plain(self.method)}
        told = {"name": self.name, "about": self.about, "method": method, **sections}
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
_KEYS = ["name", "about", "method", *SECTIONS, "arms"]


class _Loader(yaml.SafeLoader):
    """YAML 1.2's floats: ``1e-3`` is a number."""


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
    file = _find(source)
    told = _parsed(file.read_bytes(), str(file))
    if not isinstance(told, dict):
        raise Failure(
            f"{file}: expected a mapping of {', '.join(_KEYS)}, got {type(told).__name__}"
        )
    told.setdefault("name", file.stem)
    changes = _mapping(told.pop("tiny", None), "tiny")
    if tiny and not changes:
        raise Failure(f"{file} has no 'tiny' section, which would say what --tiny makes smaller")
    if tiny:
        told = _merged(told, changes)
    for override in overrides:
        told = _override(told, override)
    return make(told, folder=file.parent)


def make(told: Mapping[str, Any], *, folder: Path) -> Recipe:
    """A checked recipe from plain mappings."""
    for key in told:
        if key not in _KEYS:
            near = nearest(str(key), [*_KEYS, "tiny"])
            raise Failure(f"{key}: a recipe has no such key{near}; it has {', '.join(_KEYS)}")
    absent = {name: {} for name in SECTIONS if told.get(name) is None}
    values = {**told, **absent}
    return Recipe(
        name=str(told.get("name", "run")),
        about=str(told.get("about", "")).strip(),
        method=_method(told.get("method")),
        folder=folder,
        **{name: checked(cls, values[name], name) for name, cls in SECTIONS.items()},
        arms=_arms(told, folder),
    )


def _arms(told: Mapping[str, Any], folder: Path) -> dict[str, Recipe]:
    """The recipe with each arm's changes."""
    base = {k: v for k, v in told.items() if k != "arms"}
    made = {}
    for name, changes in _mapping(told.get("arms"), "arms").items():
        if not re.fullmatch(r"[\w.-]+", str(name)):
            raise Failure(f"arms.{name}: a name is letters, digits, '_', '-' and '.'")
        merged = _merged(base, _mapping(changes, f"arms.{name}"))
        with within(f"arms.{name}"):
            made[str(name)] = make({**merged, "name": str(name)}, folder=folder)
    return made


def _mapping(told: Any, path: str) -> Mapping[str, Any]:
    if told is not None and not isinstance(told, Mapping):
        raise Failure(f"{path}: expected a mapping, got {told!r}")
    return told or {}


def _method(told: Any) -> Method:
    told = {"name": told} if isinstance(told, str) else told
    if not isinstance(told, Mapping) or not isinstance(told.get("name"), str):
        raise Failure(f"method: expected a mapping with a name ('stillroom list'), got {told!r}")
    try:
        cls = load(told["name"])
    except (LookupError, ModuleNotFoundError) as error:
        raise Failure(f"method.name: {error}") from error
    return checked(cls, {k: v for k, v in told.items() if k != "name"}, "method")


def _merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Sections are merged key by key, values replaced; another method starts from its defaults."""
    merged = dict(base)
    for key, new in changes.items():
        old = merged.get(key)
        if not isinstance(old, Mapping) or not isinstance(new, Mapping):
            merged[key] = new
        elif key == "arms":
            names = {**old, **new}
            merged[key] = {n: _merged(old.get(n) or {}, new.get(n) or {}) for n in names}
        else:
            merged[key] = (
                new if new.get("name", old.get("name")) != old.get("name") else {**old, **new}
            )
    return merged


def _parsed(text: bytes, where: str) -> Any:
    try:
        return yaml.load(text.decode("utf-8"), _Loader)
    except UnicodeDecodeError as error:
        raise Failure(f"{where}: not UTF-8 text ({error}); save it as UTF-8") from error
    except yaml.YAMLError as error:
        raise Failure(f"{where}: not valid YAML: {error}") from error


def _override(told: dict[str, Any], override: str) -> dict[str, Any]:
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


def _find(source: str) -> Path:
    packaged = {file.stem: file for file in sorted(PACKAGED.glob("*.yaml"))}
    for file in (Path(source), packaged.get(source)):
        if file is not None and file.is_file():
            return file
    raise Failure(
        f"there is no recipe {source!r}{nearest(source, list(packaged)) or '.'} "
        f"Give a YAML file, or one of {', '.join(packaged)}"
    )


def find_data(name: str, beside: Path, key: str) -> Path:
    """A data file: as given, beside the recipe, or under the folder in ``STILLROOM_DATA``."""
    root = os.environ.get("STILLROOM_DATA")
    sought = [Path(name), beside / name, *([Path(root) / name] if root else [])]
    places = list(dict.fromkeys(sought))
    for place in places:
        if place.is_file():
            return place
    hint = "" if root else "; or set STILLROOM_DATA to the folder that holds it"
    raise Failure(f"{key}: there is no file {name} (looked at {', '.join(map(str, places))}){hint}")
