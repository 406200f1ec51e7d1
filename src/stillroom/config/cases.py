"""Claim files to recipes: both arms, their grid, everything checked before the first run."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from stillroom.catalogue import nearest, row
from stillroom.config.claims import Budget, Claim, Knob
from stillroom.config.recipe import PACKAGED, Recipe, find, make, mapping_in, merged, shrunk
from stillroom.config.values import checked, within
from stillroom.core import Failure
from stillroom.evaluation.suite import Suite
from stillroom.outcomes import CLAIMS

RISE = "rise/"
"""Before the name of a number in ``metric``: its last validation less its least one."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """A claim with its file and the recipes of its arms, the steps of the budget filled in.

    ``columns`` says of each number what it means and which way is better.
    """

    name: str
    file: Path
    sha256: str
    claim: Claim
    arms: Mapping[str, Recipe]
    columns: Mapping[str, Mapping[str, str | None]]

    @property
    def picks_highest(self) -> bool:
        return self.columns[self.claim.select or self.claim.metric]["better"] == "higher"

    def points(self, arm: str) -> list[dict[str, Any]]:
        """The grid of one arm: values by dotted key; a single empty one where nothing is tuned."""
        told = self.arms[arm].resolved()
        axes = [
            [(_of_arm(knob.key, arm, "grid.key"), value) for value in _tried(knob, arm, told)]
            for knob in self.claim.grid
        ]
        return [dict(point) for point in itertools.product(*axes)]


def read_claim(source: str, *, tiny: bool = False) -> Case:
    """A claim by file or packaged name; everything checked that needs no network or data.

    Raises:
        Failure: no such claim, an unknown key, arm, metric or setting, a value out of range.
    """
    file = find(source, CLAIMS, "claim")
    with within(str(file)):
        claim = checked(Claim, mapping_in(file, [f.name for f in fields(Claim)]), "")
        row(claim.method)
        if sorted(claim.arms) != sorted(claim.compare):
            raise Failure(
                f"compare: names both arms, of which there are two; got {list(claim.compare)} and "
                f"the arms {', '.join(claim.arms) or 'none'}"
            )
        every = _recipe(claim, file, tiny=tiny).arms
        arms = {arm: _with_steps(every[arm], claim.budget, arm, tiny) for arm in claim.compare}
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        columns = Suite(every[claim.compare[0]].eval.metrics, {}).columns()
        if (name := claim.metric.removeprefix(RISE)) != claim.metric and name in columns:
            columns[claim.metric] = {"label": f"{name}: last less least", "better": "lower"}
        case = Case(
            name=file.stem, file=file, sha256=digest, claim=claim, arms=arms, columns=columns
        )
        _check(case)
    return case


def _recipe(claim: Claim, file: Path, *, tiny: bool) -> Recipe:
    """The recipe with the claim's changes, then what makes it smaller."""
    told, place = claim.recipe, file
    if isinstance(told, str):
        beside = file.parent / told
        place = find(str(beside) if beside.is_file() else told, PACKAGED, "recipe")
        told = mapping_in(place, ["method", "..."])
    told = {"name": file.stem, **told}
    told = merged(told, claim.changes)
    told = merged({"arms": {}, **told}, {"arms": claim.arms})
    return make(shrunk(told, str(place), tiny=tiny), folder=place.parent)


def _with_steps(recipe: Recipe, budget: Budget, arm: str, tiny: bool) -> Recipe:
    steps = _of_arm(budget.steps, arm, "budget.steps")
    return recipe if steps is None or tiny else varied(recipe, {"train.steps": steps})


def _check(case: Case) -> None:
    claim, known = case.claim, list(case.columns)
    for path, number in {"metric": claim.metric, "select": claim.select}.items():
        rise = path == "select" and (number or "").startswith(RISE)
        if number is not None and (rise or number not in known):
            told = f"eval.metrics give {', '.join(known) or 'nothing'}"
            raise Failure(f"{path}: there is no {number!r}{nearest(number, known)}; {told}")
    if claim.grid and claim.select is None:
        raise Failure("select: a grid needs a number of the validation split that picks from it")
    if claim.select and case.columns[claim.select]["better"] is None:
        raise Failure(f"select: {claim.select!r} is neither better higher nor lower")
    _check_arms(case)


def _check_arms(case: Case) -> None:
    """Whether the arms that are named exist, and every point of the grid is a recipe."""
    claim = case.claim
    named: list[tuple[str, Any]] = [("budget.cpu_seconds", [claim.budget.cpu_seconds])]
    named += [("budget.steps", claim.budget.steps), *(("grid.key", k.key) for k in claim.grid)]
    for path, names in named:
        for arm in names if isinstance(names, dict | list) else ():
            if arm is not None and arm not in case.arms:
                near = nearest(arm, list(case.arms)) or f"; there is {', '.join(case.arms)}"
                raise Failure(f"{path}: there is no arm {arm!r}{near}")
    for arm, recipe in case.arms.items():
        for point in case.points(arm):
            varied(recipe, point)


def _of_arm(told: Any, arm: str, path: str) -> Any:
    """What is told of an arm, where it is told by arm; else what is told of both."""
    if not isinstance(told, Mapping):
        return told
    if arm not in told:
        raise Failure(f"{path}: says nothing of the arm {arm!r}; it has {', '.join(told)}")
    return told[arm]


def _tried(knob: Knob, arm: str, told: dict[str, Any]) -> list[Any]:
    if knob.values is not None:
        return knob.values
    key = _of_arm(knob.key, arm, "grid.key")
    place, last = _place(told, key)
    if isinstance(place[last], bool) or not isinstance(place[last], int | float):
        raise Failure(f"grid.times: {key} of the arm {arm!r} is {place[last]!r}, and no number")
    return [place[last] * times for times in knob.times or ()]


def varied(recipe: Recipe, values: Mapping[str, Any]) -> Recipe:
    """The recipe with some of its resolved values replaced, by dotted key, and checked again.

    Models that are trained first learn as the recipe itself says: a rate that is tuned for the
    student must not give each point of a grid another teacher.

    Raises:
        Failure: no such key (the nearest is named), or a value that is not allowed there.
    """
    told = recipe.resolved()
    for one in (told["student"], told.get("teacher"), *told.get("teachers", {}).values()):
        if one and one["trained"]:
            one["trained"]["train"] = {**told["train"], **one["trained"]["train"]}
    for key, value in values.items():
        place, last = _place(told, key)
        place[last] = value
    return make({k: v for k, v in told.items() if k != "arms"}, folder=recipe.folder)


def _place(told: dict[str, Any], key: str) -> tuple[Any, Any]:
    """The mapping or list that holds the key's last part, and that part."""
    place: Any = told
    last: Any = None
    inner: Any = told
    for part in key.split("."):
        place, last = inner, int(part) if isinstance(inner, list) and part.isdigit() else part
        inside = range(len(place)) if isinstance(place, list) else place
        if not isinstance(place, list | dict) or last not in inside:
            raise Failure(f"{key}: the recipe has no such key{nearest(key, _keys(told))}")
        inner = place[last]
    return place, last


def _keys(tree: Any, path: str = "") -> list[str]:
    pairs = enumerate(tree) if isinstance(tree, list) else tree.items()
    found = []
    for name, inner in pairs:
        found.append(f"{path}{name}")
        if isinstance(inner, list | dict):
            found += _keys(inner, f"{path}{name}.")
    return found
