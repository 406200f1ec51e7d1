"""Fidelity: how far students match their teachers, beside how right they are, and what hinders."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import fmean
from typing import Annotated, Any

from annotated_types import Ge, Gt, Le

from stillroom.core import Diagnostic, Failure, Findings, Needs, Paper, Past

OPTIONAL = ("ece", "cka", "barrier", "train_agreement", "train_kl")
"""Numbers that are read where they were recorded."""
SETTINGS = {"near": "student.near", "temperature": "method.temperature"}
"""Settings of a recipe that are tried; those that differ are shown."""
COLUMNS: dict[str, tuple[str, str | None]] = {
    "agreement": ("likeliest class is the teacher's, held-out examples", "higher"),
    "kl": ("KL(teacher || student) there, nats", "lower"),
    "optimisation": ("disagreement on the examples that were learned from", "lower"),
    "generalisation": ("further disagreement on held-out ones", "lower"),
    "train_kl": ("KL(teacher || student) on those that were learned from, nats", "lower"),
    "accuracy": ("likeliest class is the true one", "higher"),
    "class_nll": ("nats of the true class", "lower"),
    "ece": ("expected calibration error", "lower"),
    "cka": ("linear CKA with the teacher's last embedding", "higher"),
    "barrier": ("most that the loss rises on the line to the teacher, nats", "lower"),
    "rows": ("examples that were learned from", None),
    "near": ("share of the teacher's weights at the start", None),
    "temperature": ("of the scores that are compared", None),
}

Row = Mapping[str, float | None]


@dataclass(frozen=True, kw_only=True)
class DoesKDWork(Diagnostic):
    """Parts how right a student is (generalisation) from how far it is its teacher (fidelity).

    Of each run, on held-out examples: agreement ``A = mean 1[argmax z_s = argmax z_t]`` and
    ``K = mean KL(softmax(z_t) || softmax(z_s))``, each the mean over examples, beside accuracy,
    likelihood and calibration. What is missing from A is parted in two:

    ``1 - A = (1 - A_learned) + (A_learned - A)``

    the first on the examples that were learned from (optimisation: a student of the teacher's own
    shape could have matched them), the second generalisation. Linear CKA tells how alike the last
    embeddings lie, and ``B = max_u L(u s + (1 - u) t) - max(L(s), L(t))`` whether the weights lie
    in one basin.

    Over several runs it says: what more examples to distil on give; from which start ``(1 - near)
    random + near teacher`` on a student matches; in how many pairs of runs of one seed the one that
    agrees more is less accurate.

    Differences: held-out and learned examples stand for the paper's shifted and augmented ones. One
    teacher, not an ensemble. Running statistics of norms are taken between along a line, and not
    measured anew. The authors' code averages means of batches for K, which a short last batch
    biases, and its likelihood mixes the examples of a batch; both are means over examples here.

    Args:
        matched: agreement on the learned examples from which on a student matches its teacher.
        flat: the barrier, in nats, up to which two networks count as in one basin.
    """

    paper = Paper(
        "2106.05945", "Stanton, Izmailov, Kirichenko, Alemi, Wilson, 2021",
        "Does Knowledge Distillation Really Work?",
    )  # fmt: skip
    needs = Needs(teacher={"logits"}, metrics={"agreement", "kl", "accuracy", "class_nll"})
    modality = "image"
    family = "evaluation"

    matched: Annotated[float, Gt(0), Le(1)] = 0.99
    flat: Annotated[float, Ge(0)] = 0.01

    def read(self, runs: Sequence[Past]) -> Findings:
        rows = {run.name: _row(run, self.needs.metrics) for run in runs}
        seeds = {run.name: _setting(run.recipe, "run.seed") for run in runs}
        sentences = [_parted(name, row) for name, row in rows.items()]
        sentences += [*_swept(rows), *self._starts(rows), *_opposed(rows, seeds)]
        return Findings(COLUMNS, _told(rows), sentences)

    def _starts(self, rows: Mapping[str, Row]) -> list[str]:
        """What a start nearer to the teacher does."""
        starts = _grouped(rows, lambda row: row["near"] or 0.0)
        if len(starts) < 2:
            return []
        told = ", ".join(
            f"{near:g}: {_mean(group, 'agreement'):.3f}" for near, group in starts.items()
        )
        said = [f"agreement by the share of the teacher's weights at the start: {told}"]
        if any(row["optimisation"] is None or row["barrier"] is None for row in rows.values()):
            return said
        reached = [
            near
            for near, group in starts.items()
            if 1 - _mean(group, "optimisation") >= self.matched
            and _mean(group, "barrier") <= self.flat
        ]
        aim = (
            f"agrees on {self.matched:g} of what it learned from and lies in the teacher's basin "
            f"(barrier {self.flat:g} at most)"
        )
        if not reached:
            return [*said, f"from no start a student {aim}"]
        return [*said, f"the farthest start from which a student {aim}: {reached[0]:g}"]


def _row(run: Past, needed: frozenset[str] | Any) -> dict[str, float | None]:
    test = run.result["test"]
    if missing := sorted(needed - set(test)):
        raise Failure(
            f"{run.name}: its test split told no {', '.join(missing)}; eval.metrics must name "
            "accuracy and agreement (calibration, similarity, barrier and fitted tell more)"
        )
    told: dict[str, float | None] = {name: test[name] for name in sorted(needed)}
    told |= {name: test.get(name) for name in OPTIONAL}
    learned = told["train_agreement"]
    told["optimisation"] = None if learned is None else 1 - learned
    told["generalisation"] = None if learned is None else learned - test["agreement"]
    told["rows"] = run.result["data"]["rows"]["train"]
    return told | {name: _setting(run.recipe, key) for name, key in SETTINGS.items()}


def _parted(name: str, row: Row) -> str:
    said = f"{name}: agrees with its teacher on {row['agreement']:.3f} of held-out examples"
    if row["optimisation"] is None:
        return f"{said}, and is right on {row['accuracy']:.3f}"
    return (
        f"{said}: {row['optimisation']:.3f} are missing on those that it learned from "
        f"(optimisation), {row['generalisation']:+.3f} beyond (generalisation); right on "
        f"{row['accuracy']:.3f}"
    )


def _swept(rows: Mapping[str, Row]) -> list[str]:
    """What more examples to distil on do, of runs that begin alike."""
    starts = _grouped(rows, lambda row: row["near"] or 0.0)
    sizes = _grouped(starts[min(starts)], lambda row: row["rows"] or 0)
    if len(sizes) < 2:
        return []
    means = {size: _mean(group, "agreement") for size, group in sizes.items()}
    told = ", ".join(f"{size:g}: {value:.3f}" for size, value in means.items())
    least, *_, most = means.values()
    return [f"agreement by examples that were learned from: {told} ({most - least:+.3f})"]


def _opposed(rows: Mapping[str, Row], seeds: Mapping[str, Any]) -> list[str]:
    """In how many pairs of runs fidelity and accuracy differ in opposite ways."""
    pairs = [(rows[a], rows[b]) for a, b in combinations(rows, 2) if seeds[a] == seeds[b]]
    signs = [_difference(*pair, "agreement") * _difference(*pair, "accuracy") for pair in pairs]
    if not pairs:
        return []
    against = sum(sign < 0 for sign in signs)
    return [
        f"in {against} of {len(pairs)} pairs of runs of one seed the one that agrees more is less "
        "accurate"
    ]


def _difference(one: Row, other: Row, name: str) -> float:
    return (one[name] or 0.0) - (other[name] or 0.0)


def _grouped(rows: Mapping[str, Row], key: Callable[[Row], float]) -> dict[float, dict[str, Row]]:
    """Rows by a number of theirs, in rising order."""
    values = sorted({key(row) for row in rows.values()})
    return {v: {name: row for name, row in rows.items() if key(row) == v} for v in values}


def _mean(rows: Mapping[str, Row], name: str) -> float:
    return fmean(row[name] or 0.0 for row in rows.values())


def _told(rows: Mapping[str, Row]) -> dict[str, Row]:
    """The columns that are shown: of settings those that differ."""
    tried = ("rows", *SETTINGS)
    same = {name for name in tried if len({row[name] for row in rows.values()}) == 1}
    return {name: {k: None if k in same else row[k] for k in COLUMNS} for name, row in rows.items()}


def _setting(recipe: Any, key: str) -> Any:
    for part in key.split("."):
        recipe = recipe.get(part) if isinstance(recipe, Mapping) else None
    return recipe
