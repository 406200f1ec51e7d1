"""Samples side by side, and where time and tokens went: rows for the page and the card."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stillroom.reports import logs, words
from stillroom.reports.folder import Arm, RunFolder
from stillroom.reports.results import DASH, number

COST = (
    ("seconds", "time", words.duration),
    ("cpu_seconds", "CPU time", words.duration),
    ("steps", "steps", number),
    ("selected_step", "step kept", number),
)


def samples(folder: RunFolder) -> list[dict[str, Any]]:
    """By prompt: the data's answer, the start, and each arm at its last step.

    Arms that start from different texts each show their own start.
    """
    found: dict[str, dict[str, Any]] = {}
    for arm in folder.arms.values():
        last = max((line["step"] for line in arm.samples), default=0)
        for line in arm.samples:
            entry = found.setdefault(line["prompt"], {"reference": None, "starts": {}, "ends": {}})
            if entry["reference"] is None:
                entry["reference"] = line.get("reference")
            if line["step"] == 0:
                entry["starts"].setdefault(line["student"], []).append(arm.name)
            if 0 < line["step"] == last:
                entry["ends"][arm.name] = line["student"]
    return [{"prompt": prompt, "texts": _texts(entry)} for prompt, entry in found.items()]


def _texts(entry: Mapping[str, Any]) -> list[tuple[str, str]]:
    starts = entry["starts"]
    alone = len(starts) == 1
    return [
        ("reference", DASH if entry["reference"] is None else entry["reference"]),
        *(("start" if alone else f"start of {', '.join(a)}", text) for text, a in starts.items()),
        *((f"{name}, end", text) for name, text in entry["ends"].items()),
    ]


def time_rows(folder: RunFolder) -> list[tuple[str, list[tuple[str, float | None]]]]:
    """Rows of (label, one cell an arm); a cell is text and, for parts of the time, its share."""
    arms = folder.arms.values()
    spent = [_spent(arm) for arm in arms]
    parts = dict.fromkeys([*logs.PARTS, *(name for split in spent for name in split)])
    parts = [p for p in parts if p != "other"] + ["other"]
    rows = [(part, [_share(split, part) for split in spent]) for part in parts]
    rows.append(("in all", [(words.duration(sum(split.values())), None) for split in spent]))
    costs = [dict(cost(arm)) for arm in arms]
    labels = dict.fromkeys(label for told in costs for label in told if label != "time")
    return rows + [(label, [(told.get(label, DASH), None) for told in costs]) for label in labels]


def cost(arm: Arm) -> list[tuple[str, str]]:
    """Time, steps and tokens of a training, as far as its result tells them."""
    rows = [
        (label, show(arm.result[k])) for k, label, show in COST if arm.result.get(k) is not None
    ]
    tokens = arm.result.get("tokens") or {}
    told = tokens.items() if isinstance(tokens, Mapping) else [("seen", tokens)]
    classes = (arm.result.get("data") or {}).get("form") == "classes"
    counted = "examples" if classes else "tokens"
    return rows + [(f"{counted}, {kind}", number(count)) for kind, count in told]


def _spent(arm: Arm) -> dict[str, float]:
    """Seconds by part; what the run's clock counted beyond them is ``other``."""
    split: dict[str, float] = {}
    for line in arm.metrics:
        for key, value in line.items():
            if key.startswith("time/"):
                part = key.removeprefix("time/")
                split[part] = split.get(part, 0.0) + value
    split["other"] = max(0.0, (arm.result.get("seconds") or 0.0) - sum(split.values()))
    return split


def _share(split: Mapping[str, float], part: str) -> tuple[str, float | None]:
    total = sum(split.values())
    if part not in split or not total:
        return DASH, None
    share = split[part] / total
    return f"{words.duration(split[part])} ({share:.0%})", share
