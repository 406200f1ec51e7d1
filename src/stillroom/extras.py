"""Optional packages: imported where they are used, missed with the line that installs them."""

from __future__ import annotations

import importlib
from types import ModuleType

from stillroom.failures import Failure


def extra(module: str, group: str, why: str) -> ModuleType:
    """Import an optional module, or say how to get it.

    Args:
        module: dotted name, as in an import statement.
        group: the extra of this project that brings it.
        why: what it serves, as a noun ("the curves of report.html").

    Raises:
        Failure: the module, or something that it imports, is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        missing = error.name or module
        raise Failure(
            f"{missing.partition('.')[0]} is not installed, and {why} cannot do without it: "
            f"pip install 'stillroom[{group}]'"
        ) from error
