"""Knowledge distillation from any teacher that you can reach into a student that you can ship.

Public names are imported on first use, so that ``import stillroom`` loads nothing heavy.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stillroom.api import Distilled, distill, run
    from stillroom.catalogue import load, names
    from stillroom.failures import Failure

__all__ = ["Distilled", "Failure", "distill", "load", "names", "run"]
__version__ = "0.1.0"

_HOMES = {
    "Distilled": "api",
    "distill": "api",
    "run": "api",
    "Failure": "failures",
    "load": "catalogue",
    "names": "catalogue",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'stillroom' has no attribute {name!r}")
    return getattr(importlib.import_module(f"stillroom.{_HOMES[name]}"), name)
