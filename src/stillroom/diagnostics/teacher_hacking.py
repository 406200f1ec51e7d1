"""Teacher hacking: closer to an imperfect teacher, and further from the truth."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import fmean, linear_regression
from typing import Annotated, NamedTuple

from annotated_types import Ge, Gt, Lt

from stillroom.core import Diagnostic, Failure, Findings, Needs, Paper, Past

COLUMNS: dict[str, tuple[str, str | None]] = {
    "proxy": ("distance to the teacher at the end", "lower"),
    "golden": ("distance to the truth at the end", "lower"),
    "trained": ("what was trained down, mean since the validation before the end", None),
    "gap": ("golden at the end, less its least", "lower"),
    "turn": ("step at which golden was least", None),
    "hacking": ("most that golden rose between two validations while proxy fell", "lower"),
    "bend": ("step from which proxy leaves its power law; absent if it does not", None),
}


class _Reading(NamedTuple):
    """One validation: distance to the teacher (proxy) and to the truth (golden)."""

    step: int
    proxy: float
    golden: float


@dataclass(frozen=True, kw_only=True)
class TeacherHacking(Diagnostic):
    """Tells whether a student comes closer to its teacher while it moves away from the truth.

    The truth is made a model, from which the teacher was distilled: of each validation two numbers
    are read, ``proxy = KL(teacher || student)`` and ``golden = KL(truth || student)``, by token, or
    the reverse of both. Teacher hacking over steps a < b is ``proxy(b) < proxy(a)`` with
    ``golden(b) > golden(a)``: a U-turn of the curve of golden over proxy. Where both rise it is
    plain over-fitting. The gap is ``G(t) = golden(t) - min_{s <= t} golden(s)``.

    Without the truth: over an early window ``log proxy(t) = c - k log t`` is fitted, and the first
    of the later validations that lies more than ``deviations`` standard deviations (of the fit's
    residuals) above it is where it bends.

    Differences: golden is read at prefixes of the held-out text, and proxy at the same ones, where
    the paper samples from teacher and truth. The window is unconfirmed, and so is that numbers are
    means over tokens. The standard deviation divides by n - 2, and is ``floor`` at least, since
    what is measured on fixed text has hardly any noise of its own.

    Args:
        proxy: which number of the validation split is the distance to the teacher; several are
            added up (``kl+reverse_kl``).
        golden: the same of the distance to the truth.
        trained: which number of each step was trained down, shown beside them.
        window: share of the validations that the power law is fitted on, the first ones.
        deviations: how many standard deviations above the law are too many.
        floor: the least standard deviation, of the logarithm.
    """

    paper = Paper(
        "2502.02671", "Tiapkin et al., 2025", "On Teacher Hacking in Language Model Distillation"
    )
    needs = Needs(teacher={"logits"}, metrics={"kl", "source_kl"})
    modality = "text"
    family = "evaluation"

    proxy: str = "kl"
    golden: str = "source_kl"
    trained: str = "loss/student/loss"
    window: Annotated[float, Gt(0), Lt(1)] = 0.4
    deviations: Annotated[float, Gt(0)] = 3.0
    floor: Annotated[float, Ge(0)] = 0.01

    def read(self, runs: Sequence[Past]) -> Findings:
        rows: dict[str, dict[str, float | None]] = {}
        sentences: list[str] = []
        for run in runs:
            curve = self.curve(run)
            hacked, bend = hacking(curve), self.bend(curve)
            rows[run.name] = {
                "proxy": curve[-1].proxy,
                "golden": curve[-1].golden,
                "trained": _trained(run, self.trained, curve[-2].step),
                "gap": curve[-1].golden - _least(curve).golden,
                "turn": _least(curve).step,
                "hacking": hacked[1].golden - hacked[0].golden if hacked else 0.0,
                "bend": bend,
            }
            sentences += [f"{run.name}: {_hacked(curve)}", f"{run.name}: {self._bent(curve, bend)}"]
        return Findings(COLUMNS, rows, sentences)

    def curve(self, run: Past) -> list[_Reading]:
        """The validations of a run."""
        told = [{k.removeprefix("validation/"): v for k, v in line.items()} for line in run.metrics]
        told = [line for line, whole in zip(told, run.metrics, strict=True) if line != whole]
        names = [told_as.split("+") for told_as in (self.proxy, self.golden)]
        for name in (name for side in names for name in side):
            if any(name not in line for line in told):
                raise Failure(
                    f"{run.name}: no validation told {name!r}; add what gives it to eval.metrics "
                    "(agreement gives kl, source gives source_kl), or name another number: "
                    "proxy=NAME, golden=NAME"
                )
        if len(told) < 3:
            raise Failure(
                f"{run.name}: {len(told)} validations make no curve; with a smaller eval.every "
                "there are 3 or more"
            )
        return [
            _Reading(line["step"], *(sum(line[n] for n in side) for side in names)) for line in told
        ]

    def bend(self, curve: Sequence[_Reading]) -> int | None:
        """The first step after the window at which proxy is too far above its power law."""
        later, count = self._windowed(curve)
        if count < 3:
            return None
        x, y = ([math.log(value) for value in side] for side in zip(*later, strict=True))
        slope, level = linear_regression(x[:count], y[:count])
        left = [b - level - slope * a for a, b in zip(x, y, strict=True)]
        spread = math.sqrt(sum(e * e for e in left[:count]) / (count - 2))
        allowed = self.deviations * max(spread, self.floor)
        over = (later[i][0] for i in range(count, len(later)) if left[i] > allowed)
        return next(over, None)

    def _windowed(self, curve: Sequence[_Reading]) -> tuple[list[tuple[int, float]], int]:
        """(step, proxy) of the validations that have a logarithm, and how many make the window."""
        later = [(r.step, r.proxy) for r in curve if r.step > 0 and r.proxy > 0]
        return later, round(self.window * len(later))

    def _bent(self, curve: Sequence[_Reading], bend: int | None) -> str:
        _, count = self._windowed(curve)
        if count < 3:
            return f"no power law was fitted, as its window holds {count} validations and not 3"
        law = f"the power law of the first {count} validations"
        return f"proxy keeps to {law}" if bend is None else f"proxy leaves {law} at step {bend}"


def hacking(curve: Sequence[_Reading]) -> tuple[_Reading, _Reading] | None:
    """The two validations between which golden rose the most while proxy fell; None without any."""
    pairs = [(a, b) for a, b in combinations(curve, 2) if b.proxy < a.proxy and b.golden > a.golden]
    return max(pairs, key=lambda pair: pair[1].golden - pair[0].golden, default=None)


def _least(curve: Sequence[_Reading]) -> _Reading:
    return min(curve, key=lambda reading: reading.golden)


def _hacked(curve: Sequence[_Reading]) -> str:
    if pair := hacking(curve):
        a, b = pair
        return (
            f"teacher hacking: from step {a.step} to {b.step} proxy fell from {a.proxy:.4g} to "
            f"{b.proxy:.4g} while golden rose from {a.golden:.4g} to {b.golden:.4g}"
        )
    least, last = _least(curve), curve[-1]
    if last.golden > least.golden:
        return (
            f"over-fitting, no hacking: golden rose from {least.golden:.4g} at step {least.step} "
            f"to {last.golden:.4g}, and proxy with it"
        )
    return "no hacking: golden was never less than at the end"


def _trained(run: Past, name: str, since: int) -> float | None:
    values = [line[name] for line in run.metrics if name in line and line["step"] > since]
    return fmean(values) if values else None
