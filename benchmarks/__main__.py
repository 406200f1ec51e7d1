"""All benchmarks, or those that are named, and the page: ``python -m benchmarks [head ...]``."""

from __future__ import annotations

import subprocess
import sys

from benchmarks import fresh
from benchmarks.write import SECTIONS


def main() -> None:
    """Names first, then options, which every benchmark gets."""
    names = [told for told in sys.argv[1:] if told in SECTIONS] or [*SECTIONS]
    options = [told for told in sys.argv[1:] if told not in SECTIONS]
    for command in (*([name, *options] for name in names), ["write"]):
        subprocess.run([sys.executable, "-m", f"benchmarks.{command[0]}", *command[1:]],
                       cwd=fresh.ROOT, check=True)  # fmt: skip


if __name__ == "__main__":
    main()
