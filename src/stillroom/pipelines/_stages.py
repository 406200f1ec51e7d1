"""Work that is done once and kept: a folder for each set of inputs."""

from __future__ import annotations

import hashlib
import inspect
import json
import os
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock

from stillroom.core import Failure
from stillroom.models.sources import cache_folder

ROOMS = (
    *("core", "data", "engine", "evaluation", "losses", "models", "nets", "rollouts", "teachers"),
    "traces",
)
"""Those that what a stage computes goes through."""


def stage(
    name: str, make: Callable[[Path], None], *, code: str, resume: bool = False, **inputs: Any
) -> Path:
    """The folder that ``make(folder)`` filled for these inputs, made at the first call.

    Its name is the hash of ``name``, ``code`` and ``inputs``; an input may be another stage's
    folder. It is filled aside and moved into place when ``make`` returns, so one that is there is
    whole. After a kill ``make`` starts again with an empty folder, or with the half-filled one if
    it can ``resume``. Two processes wait for each other.

    Args:
        name: what it is, for people.
        make: fills the folder.
        code: changes when what ``make`` computes changes: ``code_of`` it.
        resume: whether ``make`` goes on in a half-filled folder.
        inputs: all that ``make`` depends on, as plain values.
    """
    told = json.dumps([name, code, inputs], sort_keys=True, default=_plain)
    key = hashlib.sha256(told.encode()).hexdigest()[:16]
    place = cache_folder() / "stages" / f"{name}-{key}"
    place.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{place}.lock"):
        if place.is_dir():
            return place
        aside = place.with_name(f".{place.name}.writing")
        if not resume:
            shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(exist_ok=True)
        make(aside)
        (aside / "stage.json").write_text(told + "\n", encoding="utf-8")
        os.replace(aside, place)
    return place


@cache
def code_of(*methods: type) -> str:
    """Hash of torch's version and of the source that a run of these methods goes through.

    Raises:
        Failure: the source of a method cannot be read.
    """
    root = Path(__file__).parent.parent
    files = [file for room in ROOMS for file in sorted((root / room).glob("*.py"))]
    files += [root / "schedules.py", *sorted((root / "methods").glob("_*.py"))]
    files += sorted((root / "templates").glob("*.jinja"))
    for method in methods:
        if (own := inspect.getsourcefile(method)) is None:
            raise Failure(f"{method.__name__}: its source cannot be read, so no run can be kept")
        files.append(Path(own))
    told = [torch.__version__, *(hashlib.sha256(file.read_bytes()).hexdigest() for file in files)]
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:16]


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return value.name  # a stage's folder is named by its own inputs
    raise TypeError(f"a stage's inputs are plain values, not {value!r}")
