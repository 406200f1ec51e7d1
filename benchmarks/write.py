"""The JSON files of the benchmarks as a page: ``docs/benchmarks.md``, with pictures."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from benchmarks import fresh, measure
from benchmarks.pictures import memory, ranking
from benchmarks.ranking import BASE, PLAIN, adjusted, better, ranked

GIGA = 1e9
INTRO = """# Benchmarks

Written by `python -m benchmarks.write` from the JSON files in `docs/benchmarks/`; `make bench`
measures them anew. CPU seconds are those of one process with one thread. Arms take turns in one
process: a round of all of them, then the next; the first round is not counted. A number is the
median over rounds, with its quartiles. Before it is timed, each arm's loss and gradients are held
against float64; one that is off by more than the bound is refused, and the page says so. Memory
is the highest moment of one call in a fresh process, beyond what stood before the call.
"""
HEAD = """## Loss and gradients from given hidden states

Multiples of the *bare matrix products*: logits of student and teacher, gradient of the states and
of the head, each in the layout that is fastest here, into buffers that are warm. N rows, V tokens,
d numbers of a state. `+labels` adds the cross-entropy of the labels in the same pass. On inputs in
bfloat16 without the CPU's own instructions the bare products are those of float32. `memory kept`:
what was freed stays with the process (`{kept}`); else the system takes large blocks back and zeroes
them when they are asked for again, which costs most where most is asked for, and more on a virtual
machine that hands free memory on to its host.
"""
GROWTH = """## Growth

The symmetric Jensen-Shannon divergence, d = {width}: time as a multiple of the bare products, and
memory beyond the inputs, of which the gradient of the head is a part. A dash: it would take more
than {most:.0f} GB.

![Memory against rows](benchmarks/memory.svg)
"""
STEP = """## A step of distillation

Gemma 3 270M teaches a student of its first four layers: generalised distillation (beta 0.5), AdamW,
clipping, float32. On-policy the student first writes the completions. The loss is the mean over
completion tokens; TRL chunked is its trainer with the loss of its `DistillationTrainer`. Memory is
what a second step takes: weights and the optimiser's state are there before it.
"""
ROLLOUTS = """## Rollouts

Answers sampled at temperature 1 from the first layers of Gemma 3 270M (V = 262,144): 32 tokens
after prompts of 32, key-value cache on. Speed: as a multiple of `generate` of transformers.
"""


SIGNALS = """## Scores from a store

What `teacher.signals` keeps of a supervised token, and the relative error in norm of the gradients
of forward KL against those that all logits give: {tokens} tokens of English, Gemma 3 270M as
teacher, as student its states with noise, at KL {kl:.2f}. `renormalised` leaves the rest out, which
`plain` keeps as one more token; draws are averaged over several pictures. Then a step of
distillation, 2 x 64 tokens, as in the section above, by where the teacher's side comes from.
"""


BAKEOFF = """## Bake-off

Which token-level method pays on real text: Gemma 3 270M teaches a copy of itself that kept nine of
its 18 layers and was healed on other rows, from 160 questions of GSM8K, {tokens} tokens an answer,
one rate for all, nothing tuned for one arm (`python -m benchmarks.bakeoff`). `healed` is where all
begin; `ce` learns the data's answers, `seqkd` the teacher's samples, `kd`, `taid` and `gkd` its
distributions by forward KL, `gkd` in half of the steps on what the student wrote. Divergences and
nll are on {test} held-out samples of the teacher; the student's answers are its likeliest tokens,
rouge_l is against one sample of the teacher. One seed tells no order between neighbours.
"""


CLASSES = """## Methods on classes: {pair}

Logit, feature and relation methods beside plain training (`ce`) and plain distillation (`kd`):
{about} (`python -m benchmarks.classes`). All have the same small grid: {points} points, learning
rates {lr} by {times} times the method's own knob (its weight; of `kd` the temperature, of `ce` the
weight decay), picked by accuracy on validation over {tuning_seeds} seeds of their own. Then {seeds}
seeds, {steps} steps of {batch}: mean accuracy on the test split, paired differences with 95 %
intervals in points, p of a paired t-test and the same after Holm's correction for {count} methods.
"""
EDGE = """{edge} of {all} picked the largest learning rate of the grid, so a wider one might change
the order.
"""
AHEAD = """Ahead of plain training at the level of 5 %: {0[0]} of {0[2]} before Holm's correction,
{0[1]} after. Ahead of plain distillation: {1[0]} of {1[2]} before, {1[1]} after.
"""
COSTS = """## A step of each method on classes

CPU seconds of a training step by the method's own recipe, as a multiple of plain distillation with
the same networks, data and batch (of plain training for `ps_kd`, which has no teacher); taking
turns in one process, {steps} steps each (`python -m benchmarks.costs`). Networks are so small that
what a method adds weighs more than it would on large ones. {reasons}
"""
REASONS = {
    "sinkd": "`sinkd` divides a table of all pairs of the batch forty times, whatever the network.",
    "tgeo_kd": "`tgeo_kd` reads the student twice more, and takes a gradient of a gradient.",
}
"""Why a step costs more than three of plain distillation."""


def json_file(path: Path, told: Mapping[str, Any]) -> None:
    """Keeps what was measured so far."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")


def page(folder: Path) -> str:
    """The page of the JSON files that are there."""
    parts = [INTRO]
    for name, section in (SECTIONS | ELSEWHERE).items():
        if (file := folder / f"{name}.json").is_file():
            cases = json.loads(file.read_text(encoding="utf-8"))["cases"]
            parts += [*section(cases), _environment(cases)]
    return "\n".join(parts)


def _head(cases: list[dict[str, Any]]) -> Iterator[str]:
    yield HEAD.format(kept=" ".join(f"{k}={v}" for k, v in fresh.KEPT.items()))
    rows = []
    for case in cases:
        for arm in case["arms"]:
            more = "" if case["units"] else ", without its instructions"
            more += ", memory kept" if case["kept"] else ""
            sizes = [f"{case[k]:,}" for k in ("vocab", "width", "rows")]
            errors = [f"{arm['errors'][k]:.0e}" for k in ("value", "d_hidden", "d_head")]
            said = "refused" if arm["refused"] else _spread(arm["ratio"])
            if alone := arm.get("alone"):
                said += f"; {alone['median']:.2f} of it without labels"
            seconds = "" if arm["refused"] else f"{arm['seconds']['median']:.2f}"
            work = [arm["divergence"], *sizes, case["dtype"] + more]
            rows.append([*work, arm["name"], said, seconds, " / ".join(errors)])
    heads = ["loss", "V", "d", "N", "inputs", "arm", "x bare", "seconds"]
    yield _table([*heads, "errors: value / d_hidden / d_head"], rows)


def _growth(cases: list[dict[str, Any]]) -> Iterator[str]:
    yield GROWTH.format(width=cases[0]["width"], most=cases[0]["most"] / GIGA)
    names = [m["name"] for m in cases[0]["memory"]]
    rows = []
    for case in cases:
        peaks = {m["name"]: m["peak"] for m in case["memory"]}
        gradient = case["memory"][0]["head_gradient"]
        told = [gradient, *(peaks[name] for name in names)]
        sizes = [f"{case['vocab']:,}", f"{case['rows']:,}"]
        rows.append([*sizes, _spread(case["ratio"]), *(_gigabytes(p) for p in told)])
    yield _table(["V", "N", "x bare", "gradient of the head", *names], rows)


def _step(cases: list[dict[str, Any]]) -> Iterator[str]:
    yield STEP
    rows = []
    for case in cases:
        base = {arm["name"]: arm.get("peak") for arm in case["arms"]}.get("TRL GKD")
        for arm in case["arms"]:
            if case["weighed"]:
                ratio = f"{arm['peak'] / base:.2f}" if base else ""
                said = [f"{_gigabytes(arm['peak'])} GB", ratio]
            elif arm["refused"]:
                said = ["refused", ""]
            else:
                said = [f"{arm['seconds']['median']:.2f} s", _spread(arm["ratio"])]
            tokens = f"{case['rows']} x ({case['prompt']} + {case['completion']})"
            rows.append([case["name"], tokens, arm["name"], *said])
    heads = ["step", "rows x (prompt + completion)", "arm", "takes", "as a multiple of TRL GKD"]
    yield _table(heads, rows)


def _rollouts(cases: list[dict[str, Any]]) -> Iterator[str]:
    yield ROLLOUTS
    rows = []
    for case in cases:
        for arm in case["arms"]:
            said = ["refused", ""]
            if not arm["refused"]:
                said = [f"{arm['seconds']['median']:.2f}", _spread(arm["speed"])]
            rows.append([str(case["batch"]), str(case["layers"]), arm["name"], *said])
    yield _table(["batch", "layers", "arm", "seconds", "speed"], rows)


def _signals(cases: list[dict[str, Any]]) -> Iterator[str]:
    (case,) = cases
    yield SIGNALS.format(**case)
    rows = [
        [e["kind"], e["target"], f"{e['bytes']:,.0f}", f"{e['d_hidden']:.4f}", f"{e['d_head']:.4f}"]
        for e in case["errors"]
    ]
    whole = ["logits", "plain", f"{case['logits_bytes']:,}", "0", "0"]
    yield _table(["kept", "target", "bytes a token", "d_hidden", "d_head"], [whole, *rows])
    steps = [
        [t["kind"], f"{t['seconds']['median']:.2f} s", _spread(t["ratio"])] for t in case["times"]
    ]
    yield _table(["teacher of the step", "takes", "as a multiple of live"], steps)


def _bakeoff(cases: list[dict[str, Any]]) -> Iterator[str]:
    yield BAKEOFF.format(**cases[0]["sizes"])
    rows = []
    for case in cases:
        for arm, told in case["arms"].items():
            where = f"{case['size']:g} {case['budget'].replace('_', ' ')}, seed {case['seed']}"
            rows.append([where, arm, *(_number(told.get(name)) for name in case["numbers"])])
    yield _table(["each arm", "arm", *cases[0]["numbers"]], rows)


def _classes(cases: list[dict[str, Any]]) -> Iterator[str]:
    (case,) = cases
    told = {k: ", ".join(f"{v:g}" for v in case[k]) for k in ("lr", "times")}
    count, methods = len(case["methods"]) - 1, case["methods"]
    points = len(case["lr"]) * len(case["times"])
    yield CLASSES.format(**{**case, **told}, points=points, count=count)
    holms = {base: adjusted(case, base) for base in (PLAIN, BASE)}
    rows = []
    for i, name in enumerate(ranked(case), start=1):
        one = methods[name]
        cells = [str(i), name, f"{100 * one['mean']:.1f}", f"{one['class_nll']:.3f}"]
        for base in (PLAIN, BASE):
            over = one[f"over_{base}"]
            if over is None:
                cells += ["-", "-"]
                continue
            low, high = (f"{100 * over[k]:+.1f}" for k in ("low", "high"))
            cells.append(f"{100 * over['mean']:+.1f} ({low} to {high})")
            cells.append(f"{one[f'p_{base}']:.3f} / {holms[base][name]:.3f}")
        rows.append([*cells, ", ".join(f"{v:g}" for v in one["tuned"].values())])
    heads = ["rank", "method", "accuracy, %", "nll", "over ce", "p / Holm", "over kd", "p / Holm"]
    yield f"![Differences with intervals](benchmarks/classes-{case['pair']}.svg)\n"
    yield _table([*heads, "rate, knob"], rows)
    yield AHEAD.format(better(case, PLAIN), better(case, BASE))
    edge = sum(one["tuned"]["train.lr.peak"] == max(case["lr"]) for one in methods.values())
    yield EDGE.format(edge=edge, all=len(methods))


def _costs(cases: list[dict[str, Any]]) -> Iterator[str]:
    over = {c["method"] for c in cases if c["ratio"]["median"] > 3}
    yield COSTS.format(steps=cases[0]["steps"], reasons=" ".join(REASONS[n] for n in sorted(over)))
    rows = []
    for c in sorted(cases, key=lambda c: c["ratio"]["median"]):
        took = f"{1000 * c['seconds']['own']['median']:.2f}"
        rows.append([c["method"], str(c["batch"]), took, _spread(c["ratio"])])
    yield _table(["method", "batch", "ms a step", "x kd"], rows)


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


ELSEWHERE = {
    "bakeoff": _bakeoff,
    "classes-digits": _classes,
    "classes-mnist1d": _classes,
    "costs": _costs,
}
"""Sections that are not measured by ``python -m benchmarks``, but by their own command."""
SECTIONS = {
    "head": _head,
    "growth": _growth,
    "step": _step,
    "rollouts": _rollouts,
    "signals": _signals,
}


def _spread(told: Mapping[str, float]) -> str:
    return f"{told['median']:.2f} ({told['low']:.2f} to {told['high']:.2f})"


def _gigabytes(count: int | None) -> str:
    return "-" if count is None else f"{count / GIGA:.2f}"


def _table(heads: list[str], rows: Iterable[list[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def _environment(cases: list[dict[str, Any]]) -> str:
    told = cases[0]["environment"]
    versions = ", ".join(f"{k} {v}" for k, v in told["packages"].items() if v)
    isas = sorted({case["environment"]["instructions"] for case in cases})
    settings = ", ".join(f"`{k}={v}`" for k, v in told["settings"].items())
    rounds = sorted({case["repeats"] for case in cases if "repeats" in case})
    return (
        f"{told['processor']}, one thread; bfloat16 on {'; '.join(isas)}. Python {told['python']}, "
        f"{versions}. {' or '.join(map(str, rounds))}{' rounds. ' if rounds else ''}{settings}.\n"
    )


def main() -> None:
    """Writes page and picture of what the folder holds."""
    folder = measure.arguments(__doc__).out
    folder.with_suffix(".md").write_text(page(folder), encoding="utf-8")
    if (folder / "growth.json").is_file():
        cases = json.loads((folder / "growth.json").read_text(encoding="utf-8"))["cases"]
        memory(cases, folder / "memory.svg")
    for file in folder.glob("classes-*.json"):
        (case,) = json.loads(file.read_text(encoding="utf-8"))["cases"]
        ranking(case, ranked(case), file.with_suffix(".svg"))


if __name__ == "__main__":
    main()
