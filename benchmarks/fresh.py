"""Calls one function in a process of its own, where time and memory are nobody else's."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
SAME_FOR_ALL = {
    "OMP_NUM_THREADS": "1",
    "THP_MEM_ALLOC_ENABLE": "1",  # large pages for tensors: read once, while torch loads
    "TRL_EXPERIMENTAL_SILENCE": "1",
    "HF_HUB_OFFLINE": "1",
    "TQDM_DISABLE": "1",
}
"""Environment of every measurement, ours and theirs."""
KEPT = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**40)}
"""Leaves memory that was freed with the process, where the system would take it back and fill it
with zeros when it is asked for again."""
WITHOUT_BF16 = {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE"}
"""Keeps matrix products from the CPU's own bfloat16 instructions."""


def call(target: str, *, env: dict[str, str] | None = None, **told: Any) -> Any:
    """What ``benchmarks.<target>(**told)`` returns, of words and numbers that JSON can hold.

    Raises:
        RuntimeError: it did not end well; what it said stands on the terminal.
    """
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "answer.json"
        command = [sys.executable, "-m", "benchmarks.fresh", target, json.dumps(told), str(answer)]
        ended = subprocess.run(
            command, cwd=ROOT, env={**os.environ, **SAME_FOR_ALL, **(env or {})}, check=False
        )
        if ended.returncode:
            raise RuntimeError(f"{target} ended with {ended.returncode}, given {told}")
        return json.loads(answer.read_text(encoding="utf-8"))


def main() -> None:
    """The other side of ``call``."""
    target, told, answer = sys.argv[1:]
    module, _, name = target.rpartition(".")
    found = getattr(importlib.import_module(f"benchmarks.{module}"), name)
    Path(answer).write_text(json.dumps(found(**json.loads(told))), encoding="utf-8")


if __name__ == "__main__":
    main()
