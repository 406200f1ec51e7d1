"""The numerics contract: what must not change a number, and by how much it does; one table.

Tests call ``note`` with the largest difference that they found; it fails where that is beyond its
bound. ``make numerics`` prints what was noted, a line a method, loss or model.
"""

from __future__ import annotations

import math

import pytest
from rich.console import Console
from rich.table import Table

COLUMNS = {
    "oracle": "the value by another formula, in float64",
    "gradient": "the gradient by differences of values, or by dense logits in float64",
    "micro-batches": "1 x 8 = 2 x 4 = 4 x 2 = 8 x 1 examples, masks uneven",
    "padding": "left = right, more = less",
    "packed": "several texts in a row = each in its own",
    "blocks": "rows of a block, tokens of a tile, logits of a slice",
    "2 processes": "1 process = 2, data parallel",
    "2 shards": "1 process = 2 that hold shares (FSDP2; the weights are DTensors)",
    "adapter off": "a model with its adapter off = the model",
    "checkpointing": "layers computed again = kept",
    "resumed": "stopped and taken up = unbroken",
    "bf16": "bfloat16 = float64 of the same numbers (losses); a step = float32's (methods)",
}
NOT_THERE = (
    "-: not there. A loss knows no batch, padding or process, and per_row alone walks in blocks; "
    "losses of log-probabilities read float32 or better. rkd compares the examples of a batch, so "
    "it is not split; classes have no padding, packing or adapters."
)
ROWS = {"gad pooled": "gad, pooled critic", "gad": "gad, critic included"}
FOUND: dict[tuple[str, str], tuple[float, float]] = {}
SAME_BITS = 1e-300
"""A bound that only the same bits meet."""
contract = pytest.mark.numerics


def note(row: str, column: str, worst: float, bound: float) -> None:
    """Keeps the largest difference of a cell; raises AssertionError beyond ``bound``."""
    assert column in COLUMNS, column
    row = row.replace("_pooled", " pooled")
    row = ROWS.get(row, row)
    worst = math.inf if math.isnan(worst) else worst
    before = FOUND.get((row, column), (0.0, bound))
    FOUND[row, column] = max((before, (worst, bound)), key=lambda pair: pair[0] / pair[1])
    assert worst <= bound, f"{row}, {column}: {worst:.1e} is beyond {bound:.0e}"


def show() -> None:
    """Prints the table; a difference beyond its bound is marked."""
    shown = Table(title="Largest difference (0: the same bits)", header_style="")
    for name in ("", *COLUMNS):
        shown.add_column(name, justify="left" if not name else "right")
    for row in sorted({row for row, _ in FOUND}):
        cells = [FOUND.get((row, column)) for column in COLUMNS]
        shown.add_row(row, *(_cell(*cell) if cell else "-" for cell in cells))
    console = Console(width=170)
    console.print(shown)
    for name, meaning in COLUMNS.items():
        bounds = sorted({bound for (_, column), (_, bound) in FOUND.items() if column == name})
        told = ", ".join("the same bits" if b == SAME_BITS else f"{b:.0e}" for b in bounds)
        console.print(f"{name}: {meaning}; at most {told or 'nothing noted'}", highlight=False)
    console.print(NOT_THERE, highlight=False)


def _cell(worst: float, bound: float) -> str:
    told = "0" if worst == 0 else f"{worst:.0e}"
    return f"{told} FAILED" if not worst <= bound else told
