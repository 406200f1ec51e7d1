"""Result files of claims: the first full run counts, later ones stand beside it."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stillroom.config.cases import Case
from stillroom.core import Failure

Told = dict[str, Any]


def place_of(case: Case, out: Path | None) -> Path:
    """Where the result file goes: ``out``, beside the claim, or here if that cannot be written."""
    beside = case.file.parent if os.access(case.file.parent, os.W_OK) else Path()
    return (out or beside) / f"{case.name}.result.json"


def opened(file: Path, case: Case) -> Told:
    """The result file of a claim, without any run where it is new.

    Where the claim's file was changed since, the runs of before count no more: what they gave is
    kept under ``earlier``.

    Raises:
        Failure: what lies there is no result file.
    """
    claim = case.claim
    head: Told = {
        "claim": case.name,
        "sha256": case.sha256,
        "method": claim.method,
        "paper": claim.paper,
        "sentence": claim.sentence,
        "about": claim.about,
        "compare": list(claim.compare),
        "metric": claim.metric,
        "sign": claim.sign,
        "margin": claim.margin,
    }
    new: Told = {**head, "first": None, "reruns": [], "earlier": []}
    if not file.is_file():
        return new
    try:
        told = json.loads(file.read_text(encoding="utf-8"))
        before = {key: told[key] for key in ("sha256", "sentence", "first", "earlier")}
        reruns = told["reruns"]
    except (ValueError, KeyError, TypeError) as error:
        raise Failure(
            f"{file} is no result of a claim ({error!r}): move it away, or give another --out"
        ) from error
    if before["sha256"] == case.sha256:
        return {**new, "first": before["first"], "reruns": reruns, "earlier": before["earlier"]}
    return {**new, "earlier": [*before.pop("earlier"), before]}


def runs_of(told: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """All runs of the claim as it stands, partial ones too, the first full one before the rest."""
    return [*([told["first"]] if told["first"] else []), *told["reruns"]]


def added(told: Told, run: Mapping[str, Any]) -> Told:
    """The result file with one run more; the first full one is never replaced."""
    if run["full"] and told["first"] is None:
        return {**told, "first": run}
    return {**told, "reruns": [*told["reruns"], run]}


def write(file: Path, told: Told) -> None:
    """Writes aside and moves into place: a kill leaves the old file whole."""
    file.parent.mkdir(parents=True, exist_ok=True)
    aside = file.with_name(f".{file.name}.writing")
    text = json.dumps(told, indent=1, ensure_ascii=False, allow_nan=False)
    aside.write_text(text + "\n", encoding="utf-8")
    os.replace(aside, file)
