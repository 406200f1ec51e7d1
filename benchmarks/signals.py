"""What a teacher's scores cost in a store, and how exact the gradient is that they give."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import fresh, measure, models, write
from stillroom.core import Head, Signals
from stillroom.data.streams import Stream
from stillroom.data.text import Example, TextData
from stillroom.engine.job import Job
from stillroom.engine.loop import iterate
from stillroom.engine.parallel import Processes
from stillroom.engine.players import Players
from stillroom.engine.run import Run
from stillroom.engine.settings import Train
from stillroom.losses.divergences import forward_kl
from stillroom.losses.per_row import per_row
from stillroom.methods.kd import KD
from stillroom.methods.rskd import RSKD
from stillroom.models.text import CausalLM
from stillroom.store.arrays import Arrays
from stillroom.teachers.local import Local
from stillroom.teachers.scoring import missing, score
from stillroom.teachers.stored import Kept, Stored

TEXT = fresh.ROOT / "docs" / "architecture.md"
"""English prose that is at hand."""
NATS = 0.9
"""How far the student is: the teacher's states with so much noise that KL(teacher || student) is
this. The closer it is, the smaller the gradient, and the larger an error next to it."""
KINDS = [
    ("hidden", "plain"),
    *((f"topk:{k}", how) for k in (8, 32, 128, 512) for how in ("plain", "renormalised")),
    *((f"sampled:{n}", "plain") for n in (8, 32, 128)),
]
OBJECTIVES: dict[str, Any] = {
    "plain": lambda student, teacher, labels: forward_kl(student, teacher),
    "renormalised": RSKD(target="renormalised").objective,
}
TIMED = (None, "hidden", "topk:64", "sampled:50")
"""Kept signals, None for the teacher itself, that a training step is timed with."""
DRAWN = 4
"""Pictures of the teacher that the error of draws is averaged over."""


def main() -> None:
    """Measures all kinds and writes ``signals.json``."""
    told = measure.arguments(__doc__)
    given = {"quick": told.quick}
    errors = fresh.call("signals.errors", **given)
    times = fresh.call("signals.times", repeats=told.repeats, **given)
    case = {"what": __doc__, "cases": [{**errors, **times}]}
    write.json_file(told.out / "signals.json", case)


def errors(quick: bool) -> dict[str, Any]:
    """Relative error in norm of d_hidden and d_head against those of all logits, by kind."""
    teacher, _, tokenizer = models.pair(quick=quick)
    wrapped = CausalLM(teacher)
    batch = _data(tokenizer, 4, 8 if quick else 64).batch(range(4))
    with torch.no_grad():
        said = wrapped(batch)
    student, distance = _noisy(said)
    exact = _gradients(student, said, "plain")
    rows = []
    for told, target in KINDS:
        kept = Kept.of(told)
        if kept.count >= len(said.head.weight):
            continue
        found, size = [], 0
        for copy in range(DRAWN if kept.kind == "sampled" else 1):
            arrays = kept.taken(said, bytes([copy] * 16))
            size = sum(a.nbytes for a in arrays.values()) / len(batch.labels)
            again = kept.said(arrays, len(said.head.weight), said.head)
            got = _gradients(student, again, target)
            found.append([_error(g, e) for g, e in zip(got, exact, strict=True)])
        means = torch.tensor(found).mean(0).tolist()
        row = {"kind": told, "target": target, "bytes": size, "d_hidden": means[0]}
        rows.append({**row, "d_head": means[1]})
        print(f"  {told:12} {target:13} {size:8.0f} bytes  {means[0]:.4f}  {means[1]:.4f}")
    whole = 4 * len(said.head.weight)
    return {"kl": distance, "tokens": len(batch.labels), "logits_bytes": whole, "errors": rows}


def times(quick: bool, repeats: int) -> dict[str, Any]:
    """CPU seconds of a step of distillation by what the teacher's side of it is."""
    teacher, student, tokenizer = models.pair(quick=quick)
    wrapped = CausalLM(teacher)
    data = _data(tokenizer, 2, 4 if quick else 64)
    learner = CausalLM(student.train(), stop_ids=())
    with tempfile.TemporaryDirectory() as folder:
        arms: dict[str, Callable[[], object]] = {}
        for told in TIMED:
            taught: Any = Local(wrapped)
            if told is not None:
                taught = Stored(Arrays(Path(folder), {"signal": told}))
                score(wrapped, taught, missing(taught, [data]), budget=4096)
            method = RSKD() if told and told.startswith("sampled") else KD(temperature=1.0)
            arms[told or "live"] = _step(method, learner, taught, data)
        spent = measure.interleaved(arms, repeats)
    rows = []
    for name, took in spent.items():
        ratio = measure.against(spent["live"], took)
        rows.append({"kind": name, "seconds": measure.spread(took), "ratio": ratio})
        print(f"  {name:12} {rows[-1]['seconds']['median']:.2f} s, {ratio['median']:.2f} of live")
    environment = measure.environment(fresh.SAME_FOR_ALL)
    return {"times": rows, "repeats": repeats, "environment": environment}


def _step(method: Any, student: Any, teacher: Any, data: TextData) -> Callable[[], object]:
    size = len(data)
    train = Train(steps=10**6, batch=size, lr=1e-12, clip=1.0)
    streams = {"train": data}
    job = Job(
        method=method, student=student, teachers={"teacher": teacher}, streams=streams, train=train
    )
    processes, flow = Processes(), {"train": Stream(data, size, seed=0)}
    run = Run(job, Players({"student": student}, train, processes), flow, processes)

    def step() -> dict[str, float]:
        log = iterate(run, run.next("train"))
        run.step += 1
        return log

    return step


def _data(tokenizer: Any, rows: int, length: int) -> TextData:
    """Rows of running text, all tokens but the first of each supervised."""
    ids = tokenizer(TEXT.read_text(encoding="utf-8"), add_special_tokens=False).input_ids
    if len(ids) < rows * length:  # the tokenizer of a quick run knows no English
        ids = models.tokens(1, rows * length, len(tokenizer))[0].tolist()
    starts = range(0, rows * length, length)
    texts = [Example("", "", tuple(ids[i : i + 1]), tuple(ids[i + 1 : i + length])) for i in starts]
    return TextData(texts, pad_id=0)


def _noisy(said: Signals) -> tuple[Signals, float]:
    """The teacher's states with noise, so that the student is ``NATS`` away; found by bisection."""
    noise = torch.randn(said.hidden.shape, generator=torch.Generator().manual_seed(0))
    size = said.hidden.norm(dim=-1, keepdim=True) / noise.norm(dim=-1, keepdim=True)
    low, high, distance = 0.0, 4.0, 0.0
    for _ in range(12):
        middle = (low + high) / 2
        made = Signals(hidden=said.hidden + middle * size * noise, head=said.head)
        with torch.no_grad():
            distance = float(per_row(OBJECTIVES["plain"], made, said, None).mean())
        low, high = (middle, high) if distance < NATS else (low, middle)
    hidden = (said.hidden + low * size * noise).detach().requires_grad_()
    weight = said.head.weight.detach().clone().requires_grad_()
    head = Head(weight, scale=said.head.scale, soft_cap=said.head.soft_cap)
    return Signals(hidden=hidden, head=head), distance


def _gradients(student: Signals, teacher: Signals, target: str) -> list[Tensor]:
    value = per_row(OBJECTIVES[target], student, teacher, None).mean()
    return list(torch.autograd.grad(value, [student.hidden, student.head.weight]))


def _error(found: Tensor, exact: Tensor) -> float:
    return float((found - exact).norm() / exact.norm())


if __name__ == "__main__":
    main()
