"""``stillroom export``: a student as a plain folder that others load, or as GGUF."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from stillroom.cli.common import quiet


def export(
    model: Annotated[str, typer.Argument(help="A run, one of its arms, a folder, GGUF, hub name.")],
    out: Annotated[Path, typer.Option(help="The folder to make; it must not be there yet.")],
    to: Annotated[
        Literal["safetensors", "gguf"], typer.Option(help="File format.")
    ] = "safetensors",
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16"] | None,
        typer.Option(help="Of the weights; by default as they are."),
    ] = None,
) -> None:
    """Write weights, tokenizer, generation config and model card into a folder of their own.

    GGUF is written by llama.cpp's converter, unquantised: quantise it with llama.cpp's tools.
    """
    quiet()
    from stillroom.models.export import exported
    from stillroom.reports.card import bare

    made = exported(model, out, to=to, dtype=dtype, card=bare(model))
    typer.echo(f"{made} loads with " + ("llama.cpp" if to == "gguf" else "from_pretrained"))
