"""Whole states on disk: written aside, moved into place, never half there."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from stillroom.core import Failure

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def save(folder: Path, step: int, state: Any, *, keep: int) -> Path:
    """Writes ``folder/step-NNNNNNNN`` and drops all but the last ``keep``.

    ``state`` is a tree of dicts, lists, tensors and plain values; tensors go to safetensors, the
    rest to JSON, one that stands at several places (tied weights, what snapshots share) once. A
    kill at any moment leaves the earlier ones whole.
    """
    tensors: dict[str, Tensor] = {}
    tree = _without_tensors(state, tensors, {})
    place, aside = folder / f"step-{step:08d}", folder / ".writing"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    save_file(tensors, aside / "tensors.safetensors")
    (aside / "tree.json").write_text(json.dumps(tree), encoding="utf-8")
    shutil.rmtree(place, ignore_errors=True)
    os.replace(aside, place)
    for old in saved(folder)[:-keep]:
        shutil.rmtree(old)
    return place


def saved(folder: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    return sorted(folder.glob("step-*"))


def step_of(place: Path) -> int:
    """The step after which a checkpoint was saved."""
    return int(place.name.removeprefix("step-"))


def load(place: Path) -> Any:
    """The tree that ``save`` was given."""
    tensors = load_file(place / "tensors.safetensors")
    return _with_tensors(json.loads((place / "tree.json").read_text(encoding="utf-8")), tensors)


def save_best(folder: Path, step: int, student: Mapping[str, Tensor]) -> None:
    """Writes the student that is the best so far, beside the earlier best."""
    folder.mkdir(parents=True, exist_ok=True)
    aside = folder / ".best.writing"
    save_file({k: v.detach().cpu().clone() for k, v in student.items()}, aside)
    os.replace(aside, _best(folder, step))


def load_best(folder: Path, step: int) -> dict[str, Tensor]:
    """The student that ``save_best`` wrote at ``step``."""
    return load_file(_best(folder, step))


def drop_other_bests(folder: Path, step: int | None) -> None:
    """Once a checkpoint names the best step, the others are of no use."""
    for place in folder.glob("best-*.safetensors"):
        if step is None or place != _best(folder, step):
            place.unlink()


def _best(folder: Path, step: int) -> Path:
    return folder / f"best-{step:08d}.safetensors"


def _without_tensors(node: Any, tensors: dict[str, Tensor], found: dict[Any, str]) -> Any:
    if isinstance(node, Tensor):
        same = (node.device, node.data_ptr() or id(node), node.dtype, node.shape, node.stride())
        key = found.setdefault(same, str(len(found)))
        if key not in tensors:
            tensors[key] = node.detach().cpu().clone().contiguous()  # parts of one may not share
        return {"tensor": key}
    if isinstance(node, dict):
        return {"dict": [[k, _without_tensors(v, tensors, found)] for k, v in node.items()]}
    if isinstance(node, list | tuple):
        return [_without_tensors(v, tensors, found) for v in node]
    return {"value": node}


def _with_tensors(node: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(node, list):
        return [_with_tensors(v, tensors) for v in node]
    ((kind, value),) = node.items()
    if kind == "tensor":
        return tensors[value]
    if kind == "dict":
        return {k: _with_tensors(v, tensors) for k, v in value}
    return value


def random_state() -> dict[str, Tensor]:
    """Torch's generators on this process (nothing here draws from numpy's or Python's)."""
    state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def restore_random(state: dict[str, Tensor]) -> None:
    """Sets torch's generators as ``random_state`` found them."""
    torch.set_rng_state(state["cpu"])
    if "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"])


@contextmanager
def room_on_disk(folder: Path) -> Iterator[None]:
    """Turns a full disk into a sentence that says what is kept and what to do."""
    try:
        yield
    except Exception as error:
        # safetensors raises an error of its own, which holds the system's words but no errno
        if not any(os.strerror(code) in str(error) for code in _FULL):
            raise
        for half in [*folder.glob(".*.writing"), *folder.glob("checkpoints/.*writing")]:
            shutil.rmtree(half) if half.is_dir() else half.unlink()
        kept = saved(folder / "checkpoints")
        last = f"step {step_of(kept[-1])} is safe" if kept else "none was complete yet"
        raise Failure(
            f"{folder}: no space left on the disk while saving; of the checkpoints {last}. "
            "Free some space and give the same command again: it goes on from there"
        ) from error
