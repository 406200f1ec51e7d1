"""A claim put to the test: both arms tuned alike, run with the same seeds, compared in pairs."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from stillroom.config.build import build
from stillroom.config.cases import RISE, Case, varied
from stillroom.config.values import within
from stillroom.core import Failure
from stillroom.engine.record import environment
from stillroom.engine.training import check
from stillroom.evidence.runs import Run, kept, read_run, run_in
from stillroom.evidence.verdicts import interval, verdict
from stillroom.pipelines._stages import code_of

FIRST_TUNING_SEED = 1000
TINY_SEEDS = 2

Point = Mapping[str, Any]


@dataclass(kw_only=True)
class Trial:
    """Runs of one claim.

    With a budget of CPU seconds the arm that sets it is tuned first; each run of the other one
    gets what the first, as tuned, took with the same seed.

    Args:
        case: the claim, read with ``tiny`` or without.
        seeds: 0 to ``seeds`` - 1 are compared.
        again: how many times all was made anew before; 0 takes what is kept.
        tiny: nothing is kept, and one tuning seed is enough.
        tell: hears a line after each run.
    """

    case: Case
    seeds: int
    again: int = 0
    tiny: bool = False
    tell: Callable[[str], None] = lambda line: None
    made: int = 0
    """Runs that were not there before."""
    _tuned: dict[str, Point] = field(default_factory=dict)
    _known: dict[str, Run] = field(default_factory=dict)

    def judge(self) -> dict[str, Any]:
        """Tunes, runs and compares; the whole record of it as plain values.

        Raises:
            Failure: an arm cannot be built, diverges, or gives no number to compare.
        """
        case, claim = self.case, self.case.claim
        interval([0.0] * self.seeds)  # too few seeds, or no scipy: said before anything runs
        self._check()
        tried = {arm: self._tune(arm) for arm in self._order()}
        runs: dict[str, list[Run]] = {arm: [] for arm in claim.compare}
        for seed in range(self.seeds):
            for arm in self._order():
                runs[arm].append(self._compared(arm, seed))
        ours, theirs = ([self._value(run) for run in runs[arm]] for arm in claim.compare)
        differences = [a - b for a, b in zip(ours, theirs, strict=True)]
        found = interval(differences)
        return {
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "seeds": self.seeds,
            "full": not self.tiny and self.seeds >= claim.seeds,
            "verdict": verdict(found, claim.sign, claim.margin),
            "difference": {**asdict(found), "by_seed": differences},
            "arms": {arm: self._told(arm, tried[arm], runs[arm]) for arm in claim.compare},
            "environment": {k: v for k, v in environment().items() if k != "platform"},
            "code": {arm: code_of(*case.arms[arm].classes) for arm in claim.compare},
        }

    def _order(self) -> Sequence[str]:
        """The arm whose time the other one gets comes first."""
        timed = self.case.claim.budget.cpu_seconds
        return sorted(self.case.claim.compare, key=lambda arm: arm != timed)

    def _check(self) -> None:
        """The last arm's mistake is told before the first learns."""
        for arm in self._order():
            with within(f"arms.{arm}"):
                check(build(self._recipe(arm, 0, self.case.points(arm)[0], 1.0), ready=False))

    def _recipe(self, arm: str, seed: int, point: Point, cpu_seconds: float | None) -> Any:
        changes = {**point, "run.seed": seed}
        if self.case.claim.budget.cpu_seconds not in (None, arm):
            changes |= {"train.steps": None, "train.cpu_seconds": cpu_seconds}
        return varied(self.case.arms[arm], changes)

    def _run(self, arm: str, seed: int, point: Point) -> Run:
        timed = self.case.claim.budget.cpu_seconds
        key = json.dumps([arm, seed, point])
        if key in self._known:
            return self._known[key]
        spent = None
        if timed not in (None, arm):
            spent = self._run(timed, seed, self._tuned[timed])["cpu_seconds"]
        recipe = self._recipe(arm, seed, point, spent)
        with within(f"{arm}, seed {seed}"):
            run, made = _aside(recipe) if self.tiny else kept(recipe, self.again)
        self.made += made
        self._known[key] = run
        settings = "".join(f", {key} {value}" for key, value in point.items())
        self.tell(f"{arm}, seed {seed}{settings}: {self._line(run)}{'' if made else ' (kept)'}")
        return run

    def _line(self, run: Run) -> str:
        if "failed" in run:
            return run["failed"]
        metric, value = self.case.claim.metric, self._value(run)
        told = "not finite" if value is None else f"{value:.4g}"
        return f"{metric} {told}, {run['steps']} steps, {run['cpu_seconds']:.1f} CPU s"

    def _tune(self, arm: str) -> list[dict[str, Any]]:
        """Tries the grid with the tuning seeds, remembers the best point, tells what was tried."""
        claim, points = self.case.claim, self.case.points(arm)
        self._tuned[arm] = points[0]
        if len(points) == 1:
            return []
        select, count = claim.select or claim.metric, 1 if self.tiny else claim.tuning_seeds
        seeds = range(FIRST_TUNING_SEED, FIRST_TUNING_SEED + count)
        tried, best = [], -math.inf
        for point in points:
            read = [self._run(arm, seed, point)["validation"].get(select) for seed in seeds]
            score = None if None in read else fmean(read)
            tried.append({"values": point, "by_seed": read, "mean": score})
            worth = -math.inf if score is None else score * (1 if self.case.picks_highest else -1)
            if worth > best:
                best, self._tuned[arm] = worth, point
        if best == -math.inf:
            raise Failure(f"{arm}: no point of the grid gives a finite {select} on validation")
        return tried

    def _value(self, run: Run) -> Any:
        """The number that is compared: of the test split, or a rise over the validations."""
        name = self.case.claim.metric.removeprefix(RISE)
        return run["test" if name == self.case.claim.metric else "rises"].get(name)

    def _compared(self, arm: str, seed: int) -> Run:
        run, metric = self._run(arm, seed, self._tuned[arm]), self.case.claim.metric
        if self._value(run) is None:
            why = run.get("failed", f"its {metric} is not finite")
            raise Failure(f"{arm}, seed {seed}: there is nothing to compare: {why}")
        return run

    def _told(self, arm: str, tried: Sequence[Point], runs: Sequence[Run]) -> dict[str, Any]:
        columns = {name: [run["test"][name] for run in runs] for name in runs[0]["test"]}
        columns |= {self.case.claim.metric: [self._value(run) for run in runs]}
        spent = {
            "cpu_seconds": [run["cpu_seconds"] for run in runs],
            "steps": [run["steps"] for run in runs],
            **{f"tokens_{k}": [run["tokens"][k] for run in runs] for k in runs[0]["tokens"]},
        }
        told = self._recipe(arm, 0, self._tuned[arm], runs[0]["cpu_seconds"]).resolved()
        return {
            "recipe": {key: told[key] for key in told if key not in ("name", "about")},
            "select": self.case.claim.select,
            "tuned": self._tuned[arm],
            "tried": tried,
            "numbers": {name: _summary(values) for name, values in columns.items()},
            "spent": {name: _summary(values) for name, values in spent.items()},
            "selected_step": [run["selected_step"] for run in runs],
        }


def _summary(values: Sequence[float | None]) -> dict[str, Any]:
    """Mean, standard deviation and each value; the first two absent where a value is."""
    numbers = [value for value in values if value is not None]
    whole = len(numbers) == len(values)
    mean, sd = (fmean(numbers), stdev(numbers)) if whole else (None, None)
    return {"mean": mean, "sd": sd, "by_seed": list(values)}


def _aside(recipe: Any) -> tuple[Run, bool]:
    with tempfile.TemporaryDirectory() as folder:
        run_in(Path(folder), recipe)
        return read_run(Path(folder)), True
