"""What came of the packaged claims, read from their result files alone."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

CLAIMS = Path(__file__).parent / "claims"
"""A claim a file, ``NAME.yaml``, with ``NAME.result.json`` beside it once it was run."""
VERDICTS = ("held", "undecided", "not held", "untested")


def claims() -> dict[str, list[dict[str, Any]]]:
    """The packaged claims by method: ``name``, ``verdict``, and what the result file holds.

    The first full run counts. Where there is none, or the claim was changed since, the verdict is
    ``untested`` and there is no more than these two.
    """
    found: dict[str, list[dict[str, Any]]] = {}
    for file in sorted(CLAIMS.glob("*.yaml")):
        text, kept = file.read_bytes(), file.with_suffix(".result.json")
        told: Any = json.loads(kept.read_text("utf-8")) if kept.is_file() else {"first": None}
        if told["first"] is None or told["sha256"] != hashlib.sha256(text).hexdigest():
            told = {}
        verdict = told["first"]["verdict"] if told else "untested"
        # by its line, as reading all of the YAML would make listing slow
        method = re.search(r"^method:\s*([\w.]+)", text.decode(), re.MULTILINE)
        names = {"name": file.stem, "verdict": verdict}
        found.setdefault(method[1] if method else "", []).append({**told, **names})
    return found


def counted(verdicts: Sequence[str]) -> str:
    """``4 held, 1 not held``, or ``untested``."""
    counts = {verdict: verdicts.count(verdict) for verdict in VERDICTS}
    if len(verdicts) == counts["untested"]:
        return "untested"
    return ", ".join(f"{count} {verdict}" for verdict, count in counts.items() if count)
