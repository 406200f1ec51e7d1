"""What several commands share."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer

from stillroom.failures import Failure

OPENAI = "openai:"
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Changes = Annotated[list[str] | None, typer.Argument(help="Changes, like train.steps=50.")]


def quiet() -> None:
    """Progress bars and advice of libraries belong to their own tools."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    from transformers.utils import logging

    logging.disable_progress_bar()


def pair(price: str | None) -> tuple[float, float] | None:
    """``--price``: dollars a million tokens of prompt and of answer; Failure where it is none."""
    if price is None:
        return None
    try:
        prompt, answer = (float(part) for part in price.split(","))
    except ValueError:
        raise Failure(f"--price: expected IN,OUT like 0.15,0.6, got {price!r}") from None
    if not (0 <= prompt < float("inf") and 0 <= answer < float("inf")):
        raise Failure(f"--price: a price is not below 0, got {price!r}")
    return prompt, answer


def tokenizer(name: str) -> Any:
    """A tokenizer by hub name, folder, GGUF or ``package:NAME``; Failure where it has none."""
    from transformers import AutoTokenizer

    from stillroom.models.sources import resolved

    try:
        return AutoTokenizer.from_pretrained(resolved(name))
    except (OSError, ValueError) as error:
        raise Failure(f"{name!r} has no tokenizer that can be loaded: {error}") from error


def check_out(out: Path) -> None:
    """Raises Failure unless ``out`` can be a file."""
    if out.is_dir() or not out.absolute().parent.is_dir():
        raise Failure(f"--out: {out} must be a file in a folder that exists")


def write_rows(out: Path, rows: Iterable[Any]) -> None:
    """Rows as JSON Lines, written aside and moved into place."""
    write_text(out, "".join(json.dumps(r, ensure_ascii=False, default=str) + "\n" for r in rows))


def write_text(file: Path, text: str) -> None:
    """A file, written aside and moved into place: a kill leaves the old one whole."""
    aside = file.with_name(f".{file.name}.writing")
    try:
        aside.write_text(text, encoding="utf-8")
        os.replace(aside, file)
    finally:
        aside.unlink(missing_ok=True)
