"""What several commands share."""

from __future__ import annotations

import os
from typing import Annotated

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
