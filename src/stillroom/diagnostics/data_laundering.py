"""Data laundering: a benchmark's answers that reach a student through its teacher's scores."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Annotated, Any

from annotated_types import Gt, Lt

from stillroom.core import Diagnostic, Failure, Findings, Needs, Paper, Past
from stillroom.data.quiz import Quiz
from stillroom.diagnostics._chances import holm, tail

DOSES = {
    "label_weight": "method.label_weight",
    "temperature": "method.temperature",
    "shift": "data.world.shift",
    "rows": "data.world.rows",
}
"""Settings of a recipe that make a leak larger or smaller; those that differ are shown."""
COLUMNS: dict[str, tuple[str, str | None]] = {
    "benchmark_accuracy": ("right on the benchmark", None),
    "inflation": ("less the accuracy on fresh items of the same law", "lower"),
    "gain": ("less the control's accuracy on the benchmark (leak gain)", "lower"),
    "canary_accuracy": ("right on canaries, whose letters are random", None),
    "chance": ("of that many by guessing, or more (exact binomial p)", None),
    "adjusted": ("the same, of all runs read here (Holm)", None),
    "flagged": ("1 where that is at the level or below: the benchmark leaked", "lower"),
    "label_weight": ("weight of the labels, 1 - alpha", None),
    "temperature": ("of the scores that are compared", None),
    "shift": ("symbols of the benchmark that the transfer set lacks", None),
    "rows": ("of the transfer set", None),
}


@dataclass(frozen=True, kw_only=True)
class DataLaundering(Diagnostic):
    """Tells whether a benchmark leaked into students through a teacher that had learned it.

    The student never sees the benchmark B: it learns the scores of a contaminated teacher on a
    transfer set disjoint from B. Three numbers part a leak from ability:

    - leak gain ``G = acc_B(student) - acc_B(student of the control teacher)``, in pairs of the same
      folder and seed; the control's teacher learned B's questions with letters drawn anew;
    - inflation ``acc_B - acc_B'``, with B' fresh items of the same law;
    - canary exposure: of n canaries, items of B whose letters are random, k are right. Who never
      saw the letters guesses, with ``p = P(X >= k)``, X ~ Binomial(n, 1/options): an excess is a
      leak by construction.

    Over draws of the letters ``P(p <= level) <= level`` at every n where nothing leaked; students
    of one teacher share its luck. Several runs that are read together are adjusted by Holm, which
    allows for that: in rising order ``p_i (m - i + 1)``, never falling and at most 1.

    Differences: canaries, the control teacher and Holm's adjustment are ours. The reference code
    keeps the checkpoint that is best on the benchmark, which is a second leak; here a benchmark is
    measured on the test split alone, and nothing is selected by it. Settings in which the runs
    differ (weight of labels, temperature, shift and size of the transfer set) stand beside them.

    Args:
        control: name of the arm whose teacher knows nothing of the benchmark.
        level: flagged are runs with an adjusted p of this or less.
    """

    paper = Paper(
        "2412.15255", "Mansurov, Sakip, Aji, 2024", "Data Laundering: Artificially Boosting "
        "Benchmark Results through Knowledge Distillation"
    )  # fmt: skip
    needs = Needs(
        teacher={"logits"},
        metrics={"benchmark_accuracy", "fresh_accuracy", "canary_accuracy", "canaries", "options"},
    )
    modality = "text"
    family = "evaluation"

    control: str = "control"
    level: Annotated[float, Gt(0), Lt(1)] = 0.05

    def read(self, runs: Sequence[Past]) -> Findings:
        told = {run.name: _numbers(run, self.needs.metrics) for run in runs}
        chances = [exposure(told[run.name]) for run in runs]
        doses = _doses(runs)
        rows: dict[str, dict[str, float | None]] = {}
        for run, p, adjusted in zip(runs, chances, holm(chances), strict=True):
            own, other = told[run.name], self._control(run, runs)
            mine = own["benchmark_accuracy"]
            rows[run.name] = {
                "benchmark_accuracy": mine,
                "inflation": mine - own["fresh_accuracy"],
                "gain": None if other is None else mine - told[other]["benchmark_accuracy"],
                "canary_accuracy": own["canary_accuracy"],
                "chance": p,
                "adjusted": adjusted,
                "flagged": float(adjusted <= self.level),
                **doses[run.name],
            }
        sentences = [_sentence(name, told[name], row) for name, row in rows.items()]
        return Findings(COLUMNS, rows, [*sentences, *self._gains(rows)])

    def _control(self, run: Past, runs: Sequence[Past]) -> str | None:
        """Name of the control beside a run, in the same folder; None of it itself, or without."""
        folder, arm = _parted(run.name)
        named = [other for other in runs if _parted(other.name) == (folder, self.control)]
        if arm == self.control or not named:
            return None
        seeds = [_setting(one.recipe, "run.seed") for one in (run, *named)]
        if len(set(seeds)) > 1:
            raise Failure(
                f"{run.name}: has seed {seeds[0]} and its control {named[0].name} {seeds[1]}, but "
                "they are compared in pairs: run both with the same"
            )
        return named[0].name

    def _gains(self, rows: Mapping[str, Mapping[str, Any]]) -> list[str]:
        """The mean leak gain of each arm over its pairs."""
        by_arm: dict[str, list[float]] = {}
        for name, row in rows.items():
            if row["gain"] is not None:
                by_arm.setdefault(_parted(name)[1], []).append(row["gain"])
        if not by_arm:
            return [f"no leak gain: there is no arm {self.control!r} beside (control=NAME)"]
        return [
            f"{arm}: leak gain {fmean(gains):+.3f} over {self.control}, {len(gains)} "
            + ("pair" if len(gains) == 1 else f"pairs, {min(gains):+.3f} to {max(gains):+.3f}")
            for arm, gains in by_arm.items()
        ]


def exposure(own: Mapping[str, float]) -> float:
    """The chance of a run's canaries, of the numbers that the evaluator ``quiz`` tells."""
    return tail(_right(own), round(own["canaries"]), round(own["options"]))


def _sentence(name: str, own: Mapping[str, float], row: Mapping[str, Any]) -> str:
    said = "the benchmark leaked" if row["flagged"] else "no leak is seen"
    return (
        f"{name}: {said}: {_right(own)} of {own['canaries']:g} canaries right, 1 in "
        f"{own['options']:g} by guessing: p = {row['chance']:.2g}, adjusted {row['adjusted']:.2g}"
    )


def _right(own: Mapping[str, float]) -> int:
    return round(own["canary_accuracy"] * own["canaries"])


def _numbers(run: Past, names: Iterable[str]) -> Mapping[str, float]:
    test = run.result["test"]
    if missing := [name for name in sorted(names) if name not in test]:
        raise Failure(
            f"{run.name}: its test split told no {', '.join(missing)}; add quiz to eval.metrics, "
            "and run it again"
        )
    if test["canaries"] < 1:
        raise Failure(f"{run.name}: its test split holds no canary: data.rows.test is too small")
    return test


def _parted(name: str) -> tuple[str, str]:
    """Folder and arm of a run's name."""
    folder, _, arm = name.rpartition("/")
    return folder, arm


def _doses(runs: Sequence[Past]) -> dict[str, dict[str, float | None]]:
    """By run those of ``DOSES`` that differ, None of what does not, or is not told."""
    told = {run.name: {k: _setting(run.recipe, key) for k, key in DOSES.items()} for run in runs}
    same = {dose for dose in DOSES if len({row[dose] for row in told.values()}) == 1}
    return {
        name: {dose: None if dose in same else value for dose, value in row.items()}
        for name, row in told.items()
    }


def _setting(recipe: Any, key: str) -> Any:
    """A value of a recipe; what a world is not told it has by default."""
    for part in key.split("."):
        named = isinstance(recipe, Mapping)
        default = getattr(Quiz, part, None) if named and recipe.get("name") == "quiz" else None
        recipe = recipe.get(part, default) if named else None
    return recipe
