"""What several commands share."""

from __future__ import annotations

import os
from typing import Annotated

import typer

OPENAI = "openai:"
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Changes = Annotated[list[str] | None, typer.Argument(help="Changes, like train.steps=50.")]


def quiet() -> None:
    """Progress bars and advice of libraries belong to their own tools."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    from transformers.utils import logging

    logging.disable_progress_bar()
