"""A model as a plain folder that ``from_pretrained`` loads, or as GGUF by llama.cpp's converter."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from stillroom.failures import Failure
from stillroom.models import windowed
from stillroom.models.sources import resolved

__all__ = ["exported", "windowed"]
SCRIPT = "convert_hf_to_gguf.py"
OUTTYPES = {"float32": "f32", "bfloat16": "bf16", "float16": "f16"}
"""The converter's words for types of weights."""
LINES = 12
"""Last lines of a failing converter that are shown."""


def exported(name: str, out: Path, *, to: str, dtype: str | None, card: str) -> Path:
    """Writes weights, tokenizer, generation config and card into ``out``, whole or not at all.

    Args:
        name: hub name, folder, run, GGUF file or ``package:NAME``.
        out: a folder that is not there yet.
        to: ``safetensors`` or ``gguf``; of the latter weights and tokenizer are one file.
        dtype: of the weights; None leaves them as they are.
        card: the model card of a model that brings none.

    Raises:
        Failure: ``out`` is there, the model cannot be loaded or does not fit the type, or
            llama.cpp's converter is missing or fails.
    """
    if out.exists():
        raise Failure(f"--out: {out} is there already: give another folder, or remove it")
    converter = _converter(name, out) if to == "gguf" else []
    source = resolved(name)
    model, tokenizer = _loaded(name, source, dtype)
    out.absolute().parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.absolute().parent) as work:
        made = Path(work) / "weights"
        model.save_pretrained(made)
        tokenizer.save_pretrained(made)
        if to == "gguf":
            weights, made = made, Path(work) / "gguf"
            made.mkdir()
            _convert(converter, weights, made / f"{out.name}.gguf", model.dtype)
        own = Path(source) / "README.md"
        told = own.read_text(encoding="utf-8") if own.is_file() else card
        (made / "README.md").write_text(told, encoding="utf-8")
        os.rename(made, out)
    return out


def _loaded(name: str, source: str, dtype: str | None) -> tuple[Any, Any]:
    try:
        model = AutoModelForCausalLM.from_pretrained(source, dtype=dtype or "auto")
        tokenizer = AutoTokenizer.from_pretrained(source)
    except (OSError, ValueError) as error:
        raise Failure(f"cannot load the model {name!r}: {error}") from error
    lost = [n for n, p in model.named_parameters() if not torch.isfinite(p).all()]
    if lost:
        raise Failure(
            f"{lost[0]} of {name!r} has values that are no numbers in "
            f"{str(model.dtype).removeprefix('torch.')}; --dtype bfloat16 has float32's range"
        )
    return model, tokenizer


def _converter(name: str, out: Path) -> list[str]:
    """The command that starts llama.cpp's converter."""
    if folder := os.environ.get("LLAMA_CPP"):
        if (file := Path(folder) / SCRIPT).is_file():
            return [sys.executable, str(file)]
        raise Failure(f"LLAMA_CPP is {folder}, which holds no {SCRIPT}")
    if found := shutil.which(SCRIPT):
        return [found]
    raise Failure(
        f"GGUF is written by llama.cpp's {SCRIPT}, which is neither on the PATH nor in a folder "
        "that LLAMA_CPP names. Get it:\n"
        "  git clone https://github.com/ggml-org/llama.cpp\n"
        "  pip install -r llama.cpp/requirements/requirements-convert_hf_to_gguf.txt\n"
        f"and then LLAMA_CPP=llama.cpp stillroom export {name} --out {out} --to gguf. By hand:\n"
        f"  stillroom export {name} --out {out}\n"
        f"  python llama.cpp/{SCRIPT} {out} --outfile {out}.gguf --outtype auto"
    )


def _convert(converter: list[str], folder: Path, file: Path, dtype: torch.dtype) -> None:
    kind = OUTTYPES.get(str(dtype).removeprefix("torch."), "auto")
    command = [*converter, str(folder), "--outfile", str(file), "--outtype", kind]
    ran = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    if ran.returncode or not file.is_file():
        said = (ran.stdout + ran.stderr).strip().splitlines()[-LINES:]
        raise Failure(
            f"{converter[-1]} failed with exit status {ran.returncode} and left no file; nothing "
            "was written. It said:\n  " + "\n  ".join(said)
        )
