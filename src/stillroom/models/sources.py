"""Where models come from: hub names, folders, GGUF files, packages that ship one."""

from __future__ import annotations

import hashlib
import importlib
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from filelock import FileLock
from transformers import AutoModelForCausalLM, AutoTokenizer

from stillroom.data.rows import hashed
from stillroom.extras import extra
from stillroom.failures import Failure

PACKAGE = "package:"


def cache_folder() -> Path:
    """Where converted models and finished stages are kept; ``STILLROOM_CACHE`` moves it."""
    told = os.environ.get("STILLROOM_CACHE")
    return Path(told) if told else Path.home() / ".cache" / "stillroom"


def resolved(name: str) -> str:
    """A name that ``from_pretrained`` understands.

    Hub names and folders pass as they are; a run's folder stands for its student. A ``.gguf``
    file, or ``package:NAME`` (a Python package that ships one), is converted to a folder of
    safetensors the first time: reading GGUF takes minutes where the folder takes seconds. The
    folder's name is the hash of the file.

    Raises:
        Failure: no such file or package, the file is no GGUF that transformers can read, or the
            run has no student yet, or several.
    """
    if name.startswith(PACKAGE):
        return _of_package(name.removeprefix(PACKAGE))
    if name.endswith(".gguf"):
        if not Path(name).is_file():
            raise Failure(f"there is no file {name}")
        return str(_converted(Path(name)))
    if (Path(name) / "recipe.yaml").is_file():
        return str(student_of(Path(name)))
    return name


def fingerprint(name: str) -> str:
    """What tells a resolved model from another: of a folder the hash of its files, else its name.

    A model of the hub is told by its name alone; its revision is part of a recipe.
    """
    files = [file for file in sorted(Path(name).glob("*")) if file.is_file()]
    return hashed(files) if files else name


def student_of(run: Path) -> Path:
    """Where the student of a finished run lies.

    Raises:
        Failure: the run has several, one an arm, or none yet.
    """
    if (run / "student").is_dir():
        return run / "student"
    if arms := sorted(place.parent for place in run.glob("arms/*/student")):
        raise Failure(f"{run} is a run of several arms: give one of {', '.join(map(str, arms))}")
    raise Failure(f"{run} is a run without a student yet: let it end, then ask again")


def _of_package(name: str) -> str:
    try:
        package = importlib.import_module(name)
    except (ModuleNotFoundError, ValueError) as error:
        pip = name.replace("_", "-")
        raise Failure(
            f"package:{name}: it is not installed ({error}): pip install {pip}"
        ) from error
    if "assemble" not in vars(package):
        raise Failure(f"package:{name}: it has no assemble(path), which would write its GGUF file")
    told = vars(package).get("EXPECTED_SHA256")  # lets a converted one be found without the file
    if told and (known := _place(told)).is_dir():
        return str(known)
    with tempfile.TemporaryDirectory() as folder:
        return str(_converted(Path(package.assemble(Path(folder) / "model.gguf"))))


def _place(digest: str) -> Path:
    return cache_folder() / "models" / digest[:32]


def _converted(file: Path) -> Path:
    """The folder that holds a GGUF file's model; made aside, moved into place."""
    extra("gguf", "gguf", "a GGUF file")
    with file.open("rb") as stream:
        place = _place(hashlib.file_digest(stream, "sha256").hexdigest())
    place.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{place}.lock"):
        if place.is_dir():
            return place
        aside = place.with_name(f".{place.name}.writing")
        shutil.rmtree(aside, ignore_errors=True)
        told = {"gguf_file": file.name}
        try:
            model: Any = AutoModelForCausalLM.from_pretrained(file.parent, **told)
            tokenizer = AutoTokenizer.from_pretrained(file.parent, **told)
        except Exception as error:  # what a file of half its length raises is of many kinds
            raise Failure(f"{file}: transformers cannot read it: {error}") from error
        model.hf_quantizer = None  # the weights are plain floats now, which only these two deny
        del model.config.quantization_config
        model.save_pretrained(aside)
        tokenizer.save_pretrained(aside)
        aside.rename(place)
    return place
