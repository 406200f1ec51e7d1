"""How time and memory of the head's loss (JSD) grow with rows and vocabulary."""

from __future__ import annotations

from typing import Any

import torch

from benchmarks import fresh, head, measure, write
from benchmarks.arms import ARMS, Bare, present
from benchmarks.oracle import BOUNDS, inputs, truth

ROWS, VOCABULARIES, WIDTH = (128, 512, 2048), (32_000, 152_000, 262_144), 640
CHECKED = 64
"""Rows that an arm is checked on in this vocabulary before it is measured on more."""
DIVERGENCE = "jsd"
DENSE = ("TRL GKD", "Liger")
DENSE_BYTES, MOST_BYTES = 70, 8 * 10**9
"""What an arm that holds all logits takes for each, and the memory it may take here."""


def main() -> None:
    """Measures all sizes and writes ``growth.json``."""
    told = measure.arguments(__doc__)
    rows, vocabularies = ((8, 32), (512, 1024)) if told.quick else (ROWS, VOCABULARIES)
    done = []
    for vocab in vocabularies:
        for n in rows:
            name = f"V={vocab} N={n}"
            if told.only in name:
                print(f"\n{name}", flush=True)
                done.append(_sized(n, vocab, told.repeats))
                write.json_file(told.out / "growth.json", {"what": __doc__, "cases": done})


def _sized(rows: int, vocab: int, repeats: int) -> dict[str, Any]:
    sizes: dict[str, Any] = {"rows": rows, "vocab": vocab, "width": WIDTH}
    found = fresh.call("growth.times", repeats=repeats, **sizes)
    arms = []
    for name in present(DIVERGENCE):
        if name == "Liger compiled":  # the compiler takes memory of its own in this process
            continue
        dense = name in DENSE and DENSE_BYTES * rows * vocab > MOST_BYTES
        peak = None if dense else fresh.call("growth.peak", name=name, **sizes)
        said = "would not fit" if peak is None else f"{peak / 2**20:.0f} MiB"
        print(f"  {name:15} {said}", flush=True)
        arms.append({"name": name, "peak": peak, "head_gradient": 4 * vocab * WIDTH})
    return {**sizes, **found, "memory": arms, "most": MOST_BYTES}


def times(rows: int, vocab: int, width: int, repeats: int) -> dict[str, Any]:
    """CPU seconds of our arm and of the bare products."""
    some = inputs(CHECKED, vocab, width, "float32")
    arm = ARMS["stillroom"]
    errors = truth(some, DIVERGENCE).errors(*head.gradients(some, DIVERGENCE, arm))
    if not all(error <= BOUNDS[torch.float32] for error in errors.values()):
        raise SystemExit(f"stillroom is refused at V={vocab}: {errors}")
    del some
    x = inputs(rows, vocab, width, "float32")
    bare = Bare(x, torch.float32)
    ours = {"bare": bare, "stillroom": lambda: head.gradients(x, DIVERGENCE, arm)}
    spent = measure.interleaved(ours, repeats)
    ratio = measure.against(spent["bare"], spent["stillroom"])
    print(f"  {ratio['median']:.2f} x bare", flush=True)
    return {
        "errors": errors,
        "seconds": {name: measure.spread(took) for name, took in spent.items()},
        "ratio": ratio,
        "repeats": repeats,
        "environment": measure.environment(fresh.SAME_FOR_ALL),
    }


def peak(rows: int, vocab: int, width: int, name: str) -> int:
    """Bytes beyond the inputs at the highest moment of one call, after a tiny first one."""
    arm = ARMS[name]
    head.gradients(inputs(8, 64, width, "float32"), DIVERGENCE, arm)
    x = inputs(rows, vocab, width, "float32")
    return measure.peak(lambda: head.gradients(x, DIVERGENCE, arm))


if __name__ == "__main__":
    main()
