"""What a bake-off's numbers say: differences with intervals, chances, and who is ahead."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from scipy import stats

from stillroom.diagnostics._chances import holm
from stillroom.evidence.verdicts import interval

PLAIN, BASE = "ce", "kd"
"""The names of plain training and of plain distillation."""


def beside(found: Mapping[str, Any], name: str) -> dict[str, Any]:
    """A method's paired differences from plain training and from plain distillation."""
    told: dict[str, Any] = {}
    for base in (PLAIN, BASE):
        pairs = zip(found[name]["by_seed"], found[base]["by_seed"], strict=True)
        differences = [mine - theirs for mine, theirs in pairs]
        told[f"over_{base}"] = None if name == base else vars(interval(differences))
        told[f"p_{base}"] = None if name == base else chance(differences)
    return told


def chance(differences: Sequence[float]) -> float:
    """Two-sided p of a paired t-test; 1 where nothing differs."""
    if len(set(differences)) == 1:
        return 1.0 if differences[0] == 0 else 0.0
    return float(stats.ttest_1samp(differences, 0.0).pvalue)


def adjusted(case: Mapping[str, Any], base: str) -> dict[str, float]:
    """The p-values of all methods against one, by Holm."""
    chances = {n: m[f"p_{base}"] for n, m in case["methods"].items() if m[f"p_{base}"] is not None}
    return dict(zip(chances, holm(list(chances.values())), strict=True))


def better(case: Mapping[str, Any], base: str, level: float = 0.05) -> tuple[int, int, int]:
    """How many methods are ahead of one at the level: before Holm, after, and of how many."""
    after = adjusted(case, base)
    ahead = [n for n in after if case["methods"][n][f"over_{base}"]["mean"] > 0]
    before = sum(case["methods"][n][f"p_{base}"] < level for n in ahead)
    return before, sum(after[n] < level for n in ahead), len(after)


def ranked(case: Mapping[str, Any]) -> list[str]:
    """Names by mean accuracy, the best first."""
    return sorted(case["methods"], key=lambda n: -fmean(case["methods"][n]["by_seed"]))
