"""CPU seconds of arms that take turns, and the memory that one call takes at its highest."""

from __future__ import annotations

import argparse
import gc
import importlib.metadata
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks import fresh

PACKAGES = ("torch", "transformers", "trl", "liger-kernel", "numpy")
ISA = re.compile(r"cpu,isa:(.*)")


def interleaved(arms: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """CPU seconds of this process by arm, ``repeats`` each: a round of all arms, then the next.

    What slows the machine for a while so meets all arms alike. A first round warms up and is not
    counted.
    """
    if torch.get_num_threads() != 1:
        raise RuntimeError("CPU seconds are compared on one thread: run it through fresh.call")
    spent: dict[str, list[float]] = {name: [] for name in arms}
    for turn in range(repeats + 1):
        for name, arm in arms.items():
            gc.collect()
            begun = time.process_time()
            kept = arm()
            took = time.process_time() - begun
            del kept
            if turn:
                spent[name].append(took)
    return spent


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median and quartiles."""
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return {"median": middle, "low": low, "high": high}


def against(base: Sequence[float], spent: Sequence[float]) -> dict[str, float]:
    """Spread of what an arm took as a multiple of what the base took in the same round."""
    return spread([mine / theirs for mine, theirs in zip(spent, base, strict=True)])


def peak(call: Callable[[], object]) -> int:
    """Bytes of memory beyond what stood before, at the highest moment of the call (Linux)."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the mark starts anew from what stands now
    before = _status("VmRSS")
    kept = call()
    highest = _status("VmHWM")
    del kept
    return highest - before


def _status(name: str) -> int:
    told = Path("/proc/self/status").read_text()
    return int(re.findall(rf"{name}:\s+(\d+) kB", told)[0]) * 1024


def environment(settings: Mapping[str, str]) -> dict[str, Any]:
    """Versions, processor and settings that a reader needs to compare numbers."""
    models = re.findall(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    return {
        "processor": models[0] if models else platform.machine(),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "threads": torch.get_num_threads(),
        "settings": dict(settings),
        "instructions": instructions(settings),
    }


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def instructions(settings: Mapping[str, str]) -> str:
    """The instruction set that matrix products in bfloat16 run on, in oneDNN's own words."""
    code = "import torch; x = torch.ones(64, 64, dtype=torch.bfloat16); x @ x"
    told = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **settings, "ONEDNN_VERBOSE": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    found = ISA.search(told.stdout)
    return found[1] if found else "unknown"


def arguments(what: str | None) -> argparse.Namespace:
    """The command line that all benchmarks share."""
    parser = argparse.ArgumentParser(description=what)
    parser.add_argument("--repeats", type=int, default=5, help="measured rounds (default: 5)")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to try the code")
    parser.add_argument("--only", default="", help="cases whose name holds this")
    where = "docs/benchmarks; build/benchmarks where --quick or --only leaves things out"
    parser.add_argument("--out", type=Path, help=f"folder of the JSON files (default: {where})")
    told = parser.parse_args()
    part = told.quick or told.only
    told.out = told.out or fresh.ROOT / ("build" if part else "docs") / "benchmarks"
    return told
