"""Images of files, bytes and pixels as numbers of one size, by Pillow."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stillroom.extras import extra
from stillroom.failures import Failure


def picture(
    source: Any, size: tuple[int, int] | None, *, grey: bool, where: str, beside: Path
) -> Tensor:
    """An image as ``[channels, height, width]`` from 0 to 1; 1 channel where ``grey``, else 3.

    Args:
        source: a file name (sought in ``beside``), an encoded file's bytes, pixels from 0 to 255 as
            lists ``[height][width]`` or ``[height][width][3]``, or a mapping with ``bytes`` or
            ``path``, as data sets of the hub have it.
        size: height and width that it is resized to, bilinear; None leaves it.
        grey: whether colours are left out.
        where: of the image, for messages.
        beside: the folder of what named it.

    Raises:
        Failure: it is no image, or Pillow is missing.
    """
    module: Any = extra("PIL.Image", "classes", why="images")
    if isinstance(source, Mapping):
        source = source.get("bytes") or source.get("path")
    try:
        made = _opened(module, source, beside).convert("L" if grey else "RGB")
    except (OSError, ValueError, TypeError) as error:
        raise Failure(f"{where}: it cannot be read as an image: {error}") from error
    if size is not None:
        made = made.resize((size[1], size[0]), module.Resampling.BILINEAR)
    pixels = torch.from_numpy(np.array(made, dtype=np.float32)) / 255
    return pixels.unsqueeze(0) if grey else pixels.permute(2, 0, 1).contiguous()


def _opened(module: Any, source: Any, beside: Path) -> Any:
    if isinstance(source, str):
        return module.open(beside / source)
    if isinstance(source, bytes):
        return module.open(io.BytesIO(source))
    if isinstance(source, list):
        return module.fromarray(np.array(source, dtype=np.uint8))
    raise ValueError(f"expected a file name, bytes or pixels, got {type(source).__name__}")
