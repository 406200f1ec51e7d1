"""Claims: strict YAML that says which statement of a paper is re-tested, and how."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, MinLen

from stillroom.core import Failure


@dataclass(frozen=True, kw_only=True)
class Knob:
    """One setting that is tuned: the same values, or the same multiples, for both arms.

    Args:
        key: dotted key of the resolved recipe, places of a list counted from 0
            (``train.lr.student.1.peak``); by arm where the arms call it differently.
        values: what is tried.
        times: instead of ``values``: multiples of what the arm's recipe says.
    """

    key: str | dict[str, str]
    values: Annotated[list[Any], MinLen(1)] | None = None
    times: Annotated[list[Annotated[float, Gt(0)]], MinLen(1)] | None = None

    def __post_init__(self) -> None:
        if (self.values is None) == (self.times is None):
            raise Failure("give either 'values' or 'times'")


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What both arms may spend: exactly one of the two.

    Args:
        steps: iterations; by arm where some of them are not the student's.
        cpu_seconds: an arm's name: the other one learns for as many CPU seconds as that one took
            with the same seed (evaluation is not counted).
    """

    steps: Annotated[int, Ge(1)] | dict[str, Annotated[int, Ge(1)]] | None = None
    cpu_seconds: str | None = None

    def __post_init__(self) -> None:
        if (self.steps is None) == (self.cpu_seconds is None):
            raise Failure("give either 'steps' or 'cpu_seconds'")


@dataclass(frozen=True, kw_only=True)
class Claim:
    """``metric(first arm) - metric(second arm)`` lies beyond ``margin`` on the side of ``sign``.

    Args:
        method: whose claim it is, by name of the catalogue.
        paper: its id, and where in it the claim stands.
        sentence: the claim in plain words, as far as this test can tell.
        about: what the test does not show.
        recipe: a packaged recipe's name, a file (also beside the claim), or the mapping itself.
        changes: of the recipe, for both arms.
        arms: two; changes by name, on top of the recipe's arm of that name if it has one.
        compare: the two names; the claim speaks for the first.
        metric: a number of the test split, of the student that each run keeps; ``rise/NAME`` is
            how far NAME rose over the validations, its last reading less its least.
        sign: on which side the claim is, of the first arm's number less the second's.
        margin: how far beyond zero the difference must be; 0 or more.
        grid: what is tuned; every combination is tried in both arms.
        select: the number of the validation split, mean over ``tuning_seeds``, that picks.
        tuning_seeds: 1000, 1001, ...: how many.
        budget: what both arms may spend.
        seeds: 0, 1, ...: how many make a full run.
        longer: why it takes more than four minutes on one core; null if it does not.
    """

    method: str
    paper: str
    sentence: str
    recipe: str | dict[str, Any]
    arms: dict[str, dict[str, Any] | None]
    compare: tuple[str, str]
    metric: str
    sign: Literal["higher", "lower"]
    budget: Budget
    margin: Annotated[float, Ge(0)] = 0.0
    about: str = ""
    changes: dict[str, Any] = field(default_factory=dict)
    grid: tuple[Knob, ...] = ()
    select: str | None = None
    tuning_seeds: Annotated[int, Ge(1)] = 1
    seeds: Annotated[int, Ge(2)] = 5
    longer: str | None = None
