"""One writer at a time in a folder, named to those who come later."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from stillroom.failures import Failure


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """This process writes in a folder, and no other until the block ends.

    Raises:
        Failure: another process does; it is named.
    """
    name = folder / "writer"
    try:
        lock = FileLock(f"{name}.lock", timeout=0)
        lock.acquire()
    except Timeout:
        who = name.read_text(encoding="utf-8") if name.is_file() else "another process"
        raise Failure(
            f"the store {folder} is being written by {who}: wait until it ends, or give another "
            "folder"
        ) from None
    with lock:
        try:
            since = time.strftime("%Y-%m-%d %H:%M:%S")
            host = os.uname().nodename if hasattr(os, "uname") else "this machine"
            name.write_text(f"process {os.getpid()} on {host} since {since}", encoding="utf-8")
            yield
        finally:
            lock.release()
