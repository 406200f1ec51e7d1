"""Pictures of the page: memory against rows, and who is ahead on classes by how much."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stillroom.extras import extra

MARKS = ("o", "s", "^", "D")


def memory(cases: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Writes an SVG of peak memory beyond inputs by N, both axes logarithmic.

    Raises:
        Failure: matplotlib is not installed.
    """
    matplotlib = extra("matplotlib", "report", why="the pictures of the benchmarks")
    pages = extra("matplotlib.figure", "report", why="the pictures of the benchmarks")
    vocabularies = sorted({case["vocab"] for case in cases})
    with matplotlib.rc_context({"svg.hashsalt": "memory", "font.size": 9}):
        figure = pages.Figure(figsize=(3 * len(vocabularies) + 1, 3), layout="constrained")
        panels = figure.subplots(1, len(vocabularies), sharey=True, squeeze=False)[0]
        for panel, vocab in zip(panels, vocabularies, strict=True):
            _panel(panel, [case for case in cases if case["vocab"] == vocab])
            panel.set_title(f"V = {vocab:,}")
        panels[0].set_ylabel("GB beyond the inputs")
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=5)
        nothing = dict.fromkeys(("Creator", "Date"))
        figure.savefig(path, format="svg", facecolor="white", metadata=nothing)


def ranking(case: Mapping[str, Any], names: Sequence[str], path: Path) -> None:
    """Writes an SVG of paired differences with intervals, in points, over kd and over ce.

    Raises:
        Failure: matplotlib is not installed.
    """
    matplotlib = extra("matplotlib", "report", why="the pictures of the benchmarks")
    pages = extra("matplotlib.figure", "report", why="the pictures of the benchmarks")
    with matplotlib.rc_context({"svg.hashsalt": path.stem, "font.size": 9}):
        figure = pages.Figure(figsize=(8, 0.25 * len(names) + 1), layout="constrained")
        for panel, base in zip(figure.subplots(1, 2, sharey=True), ("kd", "ce"), strict=True):
            for place, name in enumerate(reversed(names)):
                over = case["methods"][name][f"over_{base}"]
                if over is not None:
                    low, mean, high = (100 * over[k] for k in ("low", "mean", "high"))
                    reach = [[mean - low], [high - mean]]
                    panel.errorbar([mean], [place], xerr=reach, fmt="o", color="black", capsize=2)
            panel.axvline(0, color="grey", linewidth=0.8)
            panel.set_xlabel(f"points of accuracy over {base}, 95 % interval")
            panel.grid(True, axis="x", linewidth=0.3)
            panel.set_yticks(range(len(names)), list(reversed(names)))
        nothing = dict.fromkeys(("Creator", "Date"))
        figure.savefig(path, format="svg", facecolor="white", metadata=nothing)


def _panel(panel: Any, cases: Sequence[Mapping[str, Any]]) -> None:
    rows = [case["rows"] for case in cases]
    gradient = [case["memory"][0]["head_gradient"] / 1e9 for case in cases]
    panel.plot(rows, gradient, color="grey", linestyle=":", label="gradient of the head")
    for i, name in enumerate(m["name"] for m in cases[0]["memory"]):
        peaks = [{m["name"]: m["peak"] for m in case["memory"]}[name] for case in cases]
        some = [(n, p / 1e9) for n, p in zip(rows, peaks, strict=True) if p is not None]
        panel.plot(*zip(*some, strict=True), marker=MARKS[i % len(MARKS)], label=name)
    panel.set_xscale("log", base=2)
    panel.set_yscale("log")
    panel.set_xticks(rows, [str(n) for n in rows])
    panel.set_xlabel("N rows")
    panel.grid(True, linewidth=0.3)
