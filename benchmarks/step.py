"""One optimiser step of generalised distillation: our engine, TRL's trainer, its chunked loss."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch

from benchmarks import fresh, measure, models, write
from benchmarks.trainers import ARMS, Task, present

BOUND = 5e-3
"""Largest relative error of loss and gradient norm against float64 that an arm may have: float32
alone moves the norm by 1e-3 through layers whose outputs the two models hardly share."""


@dataclass(frozen=True)
class Case:
    """Rows of prompt and completion tokens; ``on_policy``: the student writes the completions."""

    name: str
    rows: int
    prompt: int
    completion: int
    on_policy: bool = False
    weighed: bool = False


FULL = [
    Case("off-policy", 2, 32, 32),
    Case("on-policy", 2, 32, 32, on_policy=True),
    Case("memory, 4 x 128", 4, 64, 64, weighed=True),
]
QUICK = [
    Case("off-policy", 2, 4, 4),
    Case("on-policy", 2, 4, 4, on_policy=True),
    Case("memory", 2, 4, 4, weighed=True),
]


def main() -> None:
    """Measures all cases and writes ``step.json``."""
    told = measure.arguments(__doc__)
    cases = [case for case in (QUICK if told.quick else FULL) if told.only in case.name]
    done = []
    for case in cases:
        print(f"\n{case.name}", flush=True)
        given = {"case": asdict(case), "quick": told.quick}
        found = weighed(given) if case.weighed else timed(given, told.repeats)
        done.append({**asdict(case), **found})
        write.json_file(told.out / "step.json", {"what": __doc__, "cases": done})


def weighed(given: dict[str, Any]) -> dict[str, Any]:
    """Extra memory of one step by arm, each in a process of its own."""
    rows = []
    for name in present(on_policy=given["case"]["on_policy"]):
        peak = fresh.call("step.peak", name=name, **given)
        rows.append({"name": name, "peak": peak})
        print(f"  {name:15} {peak / 1e9:.2f} GB", flush=True)
    return {"arms": rows, "environment": measure.environment(fresh.SAME_FOR_ALL)}


def timed(given: dict[str, Any], repeats: int) -> dict[str, Any]:
    """CPU seconds of a step by arm, all in one process, checked against float64 first."""
    true = None if given["case"]["on_policy"] else fresh.call("step.truth", **given)
    return fresh.call("step.times", true=true, repeats=repeats, **given)


def peak(case: dict[str, Any], quick: bool, name: str) -> int:
    """Bytes that a second step takes beyond weights and the optimiser's state, which it finds."""
    step = ARMS[name](_task(case, quick))
    step()
    return measure.peak(step)


def times(
    case: dict[str, Any], quick: bool, repeats: int, true: dict[str, float] | None
) -> dict[str, Any]:
    """All arms learn on one student in turns, at a rate that leaves it as it is."""
    task = _task(case, quick)
    arms: dict[str, Callable[[], dict[str, float]]] = {
        name: ARMS[name](task) for name in present(on_policy=task.on_policy)
    }
    rows: list[dict[str, Any]] = []
    for name, arm in arms.items():
        got = arm()
        errors = {k: abs(got[k] - v) / abs(v) for k, v in true.items()} if true else {}
        good = all(error <= BOUND for error in errors.values())
        said = ("checked" if good else "REFUSED") if true else "same loss as off-policy:"
        print(f"  {said} {name} {errors or ''}", flush=True)
        rows.append({"name": name, "errors": errors, "bound": BOUND, "refused": not good})
    kept = {row["name"]: arms[row["name"]] for row in rows if not row["refused"]}
    spent = measure.interleaved(kept, repeats)
    for row in rows:
        if took := spent.get(row["name"]):
            row["seconds"] = measure.spread(took)
            row["ratio"] = measure.against(spent.get("TRL GKD", took), took)
            print(f"  {row['name']:15} {row['seconds']['median']:.2f} s, {row['ratio']}")
    return {
        "arms": rows,
        "repeats": repeats,
        "environment": measure.environment(fresh.SAME_FOR_ALL),
    }


def truth(case: dict[str, Any], quick: bool) -> dict[str, float]:
    """Loss and gradient norm in float64: plain forward passes, plain formula."""
    task = _task(case, quick)
    student, teacher = task.student.double().train(), task.teacher.double()
    at = slice(task.prompt - 1, -1)
    p = student(input_ids=task.ids).logits[:, at].softmax(-1)
    with torch.no_grad():
        q = teacher(input_ids=task.ids).logits[:, at].softmax(-1)
    m = (p + q) / 2
    loss = ((p * (p / m).log()).sum(-1) + (q * (q / m).log()).sum(-1)).mean() / 2
    loss.backward()
    squares = [w.grad.square().sum() for w in student.parameters() if w.grad is not None]
    return {"loss": float(loss.detach()), "norm": float(torch.stack(squares).sum().sqrt())}


def _task(case: dict[str, Any], quick: bool) -> Task:
    told = Case(**case)
    teacher, student, tokenizer = models.pair(quick=quick)
    vocab = student.config.get_text_config().vocab_size
    ids = models.tokens(told.rows, told.prompt + told.completion, vocab)
    return Task(teacher, student, tokenizer, ids, told.prompt, told.on_policy)


if __name__ == "__main__":
    main()
