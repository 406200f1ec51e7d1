"""Answers that a verifier holds for right: numbers, choices, queries or programs, not wording."""

from __future__ import annotations

from typing import Any

from stillroom.core import Failure
from stillroom.data.rows import Row
from stillroom.evaluation.suite import View

COLUMNS = {"verified": ("answers that the verifier holds for right", "higher")}


def ready(view: View) -> None:
    """Raises Failure without the recipe's ``verify``, a gold answer, or what it runs code in."""
    for i, row in enumerate(_rows(view)):
        view.verify.verdict(row, "", f"example {i}")


def measure(view: View) -> dict[str, float]:
    """The share of sampled answers that are right (``traces.verifying``).

    Each is held against the gold answer of its example: the column ``gold``, of ``kind: python``
    its unit tests; else what the verifier finds in the reference answer. An answer that nobody can
    tell of counts as not right.
    """
    asked = [row for row in _rows(view) for _ in range(view.copies)]
    pairs = zip(asked, view.texts(), strict=True)
    right = [view.verify.verdict(row, own).right is True for row, (own, _) in pairs]
    return {"verified": sum(right) / len(right)}


def _rows(view: View) -> list[Row]:
    """What the verifier reads of each example: its gold answer, or its tests."""
    verify, data = view.verify, view.data
    if verify is None:
        raise Failure(
            "eval.metrics: verified asks a verifier, and the recipe names none; give it the "
            "section verify, such as {kind: numeric}"
        )
    examples: Any = getattr(data, "examples", ())
    return [_row(verify, example, i) for i, example in enumerate(examples)]


def _row(verify: Any, example: Any, place: int) -> Row:
    tests = verify.kind == "python"
    gold = example.gold
    if gold is None and not tests:
        gold = verify.extract(example.answer)
    if gold is None:
        what = "unit tests" if tests else "gold answer"
        raise Failure(
            f"verify: example {place} has no {what}: write it into its column 'gold'"
            + ("" if tests else f"; the verifier finds none in {example.answer[-60:]!r}")
        )
    return {verify.tests if tests else verify.column: gold}
