"""Curves of a run as inline SVG that follows the page's colours, drawn by matplotlib.

Matplotlib is an extra (``report``). Colours are drawn as stand-ins and replaced by CSS variables,
so that one drawing serves light and dark.
"""

from __future__ import annotations

import io
import math
import re
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from stillroom.extras import extra
from stillroom.reports.folder import Arm, RunFolder
from stillroom.reports.logs import meaning, training_names
from stillroom.reports.words import visible

MOST = 8
"""Plots of training logs; more are hard to compare."""
POINTS = 80
"""Points of one curve; a longer one is averaged in blocks."""
STYLES = tuple((0, dash) for dash in ((), (5, 2), (1.5, 1.5), (7, 2, 1.5, 2)))
INK, RULE = "#010101", "#020202"
LINES = tuple(f"#0303{i:02x}" for i in range(6))
STAND_INS = {INK: "--ink", RULE: "--rule", **{c: f"--arm-{i}" for i, c in enumerate(LINES)}}

Series = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Plot:
    """``note`` says which values are not finite; ``block``: values that make one point."""

    name: str
    svg: str
    note: str
    block: int


@dataclass(frozen=True)
class Curves:
    """Plots of validation metrics and of training logs."""

    validation: tuple[Plot, ...]
    training: tuple[Plot, ...]

    @property
    def averaged(self) -> str:
        """Values a point where curves were thinned: ``3``, ``2 to 5``, or nothing."""
        blocks = {plot.block for plot in (*self.validation, *self.training)} - {1}
        return " to ".join(map(str, sorted({min(blocks), max(blocks)}))) if blocks else ""


def curves(folder: RunFolder) -> Curves:
    """Validation metrics, then the first ``MOST`` training logs; all arms on each plot.

    Raises:
        Failure: matplotlib is not installed.
    """
    extra("matplotlib", "report", why="the curves of report.html")
    names = log_names(folder)
    return Curves(
        validation=tuple(_plot(folder, n) for n in names if n.startswith("validation/")),
        training=tuple(_plot(folder, n) for n in training_names(names)[:MOST]),
    )


def log_names(folder: RunFolder) -> list[str]:
    """Every name that an arm logged a number under, in the order of appearance."""
    lines = (line for arm in folder.arms.values() for line in arm.metrics)
    return list(dict.fromkeys(k for line in lines for k, v in line.items() if _is_number(v)))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def series(arm: Arm, name: str) -> list[tuple[float, float]]:
    """(step, value) in order of steps."""
    lines = (line for line in arm.metrics if _is_number(line.get(name)))
    return sorted((float(line["step"]), float(line[name])) for line in lines)


def thin(points: Series) -> tuple[Series, int]:
    """At most ``POINTS`` points, each the mean of a block, and the length of a block."""
    block = math.ceil(len(points) / POINTS) or 1
    blocks = [points[i : i + block] for i in range(0, len(points), block)]
    return [(_mean(p[0] for p in b), _mean(p[1] for p in b)) for b in blocks], block


def _mean(values: Any) -> float:
    found = list(values)
    return sum(found) / len(found)


def _plot(folder: RunFolder, name: str) -> Plot:
    notes: list[str] = []
    drawn: dict[str, Series] = {}
    longest = 1
    for arm in folder.arms.values():
        points = series(arm, name)
        finite = [p for p in points if math.isfinite(p[1])]
        if lost := len(points) - len(finite):
            notes.append(f"{arm.name}: {lost} values not finite, not drawn")
        drawn[arm.name], block = thin(finite)
        longest = max(longest, block)
    kept = {a.name: a.result.get("selected_step") for a in folder.arms.values()}
    rings = kept if name.startswith("validation/") else {}
    axis = meaning(name, folder.table["columns"]).axis
    return Plot(name, _svg(name, axis, drawn, rings), "; ".join(notes), longest)


def _svg(name: str, axis: str, drawn: Mapping[str, Series], rings: Mapping[str, Any]) -> str:
    matplotlib = extra("matplotlib", "report", why="the curves of report.html")
    pages = extra("matplotlib.figure", "report", why="the curves of report.html")
    settings = {
        "svg.fonttype": "none",
        "svg.hashsalt": name,  # same run, same bytes; ids of two plots do not meet
        "text.parse_math": False,
        "font.size": 9,
        "text.color": INK,
        "axes.labelcolor": INK,
        "axes.edgecolor": RULE,
        "xtick.labelcolor": INK,
        "ytick.labelcolor": INK,
        "xtick.color": RULE,
        "ytick.color": RULE,
        "grid.color": RULE,
        "axes.spines.top": False,
        "axes.spines.right": False,
    }
    with matplotlib.rc_context(settings):
        figure = pages.Figure(figsize=(4.2, 2.5), layout="constrained")
        axes = figure.add_subplot(xlabel="step", ylabel=textwrap.fill(visible(axis), 28))
        axes.grid(True, linewidth=0.5)
        axes.locator_params(nbins=5)
        for i, (arm, points) in enumerate(drawn.items()):
            _line(axes, i, points, rings.get(arm))
        out = io.StringIO()
        nothing = dict.fromkeys(("Format", "Type", "Creator", "Date"))
        figure.savefig(out, format="svg", transparent=True, metadata=nothing)
    return _inline(out.getvalue(), f"{visible(name)} by step")


def _line(axes: Any, i: int, points: Series, ring: Any) -> None:
    style = {"color": LINES[i % len(LINES)], "linewidth": 1.6}
    dots = "." if len(points) <= 30 else ""
    dash = STYLES[i % len(STYLES)]
    axes.plot([p[0] for p in points], [p[1] for p in points], marker=dots, linestyle=dash, **style)
    if at := [p for p in points if p[0] == ring]:
        axes.plot(*zip(*at, strict=True), marker="o", markersize=9, fillstyle="none", **style)


def _inline(svg: str, label: str) -> str:
    """The ``svg`` element alone: page fonts and colours, no style sheet, no ids but those used."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<style.*?</style>", "", svg, flags=re.DOTALL)
    svg = re.sub(r' width="[^"]*" height="[^"]*"', "", svg, count=1)
    svg = re.sub(r"font-family: [^;\"]*", "font-family: inherit", svg)
    used = set(re.findall(r"#([\w.-]+)", svg))
    svg = re.sub(r' id="([^"]*)"', lambda m: m.group() if m.group(1) in used else "", svg)
    for colour, variable in STAND_INS.items():
        svg = svg.replace(colour, f"var({variable})")
    return svg.replace("<svg", f'<svg role="img" aria-label="{escape(label)}"', 1)
