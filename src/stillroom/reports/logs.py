"""What the names in ``metrics.jsonl`` mean: the one place that explains them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple


class Meaning(NamedTuple):
    """``axis``: the unit, for a plot. ``says``: a sentence."""

    axis: str
    says: str


MEANINGS = {
    "validation/*": ("{0}", "{0}, on validation data"),
    "loss/*/*": ("loss", "what the updates of {0} minimise, its part {1}"),
    "loss/*": ("loss", "what the updates of {0} minimise"),
    "grad_norm/*": ("length", "length of the gradient of {0}, before clipping"),
    "lr/*": ("learning rate", "learning rate of {0}"),
    "*/critic_accuracy": (
        "share",
        "pairs where the critic scores the teacher's answer above the student's; 0.5 is a guess",
    ),
    "*/score_gap": ("score", "the critic's score, teacher's answer minus the student's"),
    "*/length_accuracy": ("share", "pairs where the teacher's answer is the longer one"),
    "*/eos_accuracy": ("share", "pairs told apart by whether the student's answer ends"),
    "*/eos_rate": ("share", "samples of the student that end by themselves"),
    "*/length": ("tokens", "mean length of the student's samples"),
    "*/reward": ("reward", "mean reward of the student's samples"),
    "*/entropy": ("nats", "entropy of the student's distribution"),
    "*/*": ("{1}", "logged by {0} itself; the page of the method says more"),
    "*": ("{0}", "logged by the method itself; its page says more"),
}
"""Patterns, first match wins; ``*`` is one part between slashes, ``{0}`` the first of them."""

COMMON = ("loss", "grad_norm", "lr")
"""Logs that every method has, in the order in which they are worth a plot."""
PARTS = ("generate", "teacher", "train", "evaluate")
"""What the seconds of a step go to."""


def meaning(name: str, columns: Mapping[str, Any] | None = None) -> Meaning:
    """Axis and sentence for a log name; validation metrics take their label from the table."""
    room, _, metric = name.partition("/")
    if room == "validation" and (label := (columns or {}).get(metric, {}).get("label")):
        return Meaning(label, f"{label}, on validation data")
    for pattern, (axis, says) in MEANINGS.items():
        if found := re.fullmatch(re.escape(pattern).replace(r"\*", "([^/]+)"), name):
            parts = found.groups()
            return Meaning(axis.format(*parts), says.format(*parts))
    return Meaning(name, "logged by the method itself; its page says more")


def training_names(names: list[str]) -> list[str]:
    """Names of training logs: the method's own first, then those of every method."""
    own = [n for n in names if n != "step" and n.partition("/")[0] not in ("validation", "time")]
    ranks = {group: i for i, group in enumerate(COMMON, start=1)}
    return sorted(own, key=lambda n: ranks.get(n.partition("/")[0], 0))
