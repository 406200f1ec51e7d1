"""What a recipe would do, in words and tokens, before any step."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.text import Text

from stillroom.config.build import Parts, build
from stillroom.config.recipe import Recipe
from stillroom.config.served import probed, spoken
from stillroom.config.specs import TeacherSpec
from stillroom.core import Failure
from stillroom.data.text import TextData
from stillroom.engine.training import Job
from stillroom.engine.training import check as ready

EXAMPLES = 3
"""How many examples are printed token by token."""


def check(recipe: Recipe, *, show_tokens: bool, live: bool = False) -> None:
    """Builds each arm, prints what it found, and token by token the first examples.

    Args:
        recipe: what is checked.
        show_tokens: whether examples are printed.
        live: whether a teacher behind a server is asked, and tested for the truth.

    Raises:
        Failure: as ``build``; a server was found out, which is told after all else.
    """
    console, seen, lies = Console(), list[TeacherSpec](), list[str]()
    for name, arm in (dict(recipe.arms) or {recipe.name: recipe}).items():
        teachers = [one.teacher for one in arm.spoken.values() if live]
        new = [told for told in teachers if told not in seen]  # arms may share them
        seen += new
        for told in new:
            if told.api is not None and told.signals is None:
                asked, answer = spoken(told)  # before its answers to the data are there
                console.print(escape(f"{told.api} was asked {asked!r} and said {answer!r}"))
        job = build(arm, Parts(ask=False))
        ready(job)
        console.print(f"[bold]{escape(name)}[/bold]: {escape(_summary(job))}")
        lies += [lie for told in new for lie in _live(console, told, job)]
        if show_tokens:
            _tokens(console, job)
            show_tokens = False  # the arms share their data
    if lies:
        raise Failure(
            f"the served teacher did not pass {len(lies)} of its tests ({', '.join(lies)}): what "
            "was found, and what to do, stands above; do not learn from it as it is"
        )
    console.print("Everything fits; no step was taken.")


def _live(console: Console, told: TeacherSpec, job: Job) -> list[str]:
    """Prints a line for each test of a served teacher; gives those that it did not pass."""
    if told.api is None:
        console.print("The teacher is behind no server: there is nothing to ask.")
    if told.api is None or told.signals is None:
        return []
    data: Any = job.streams["train"]
    assert job.suite is not None
    assert job.suite.renderer is not None  # a server scores text alone
    lies = []
    for found in probed(told, job.suite.renderer.tokenizer, data):
        style, mark = ("green", "passed") if found.fine else ("red", "FAILED")
        line = f"[{style}]{mark}[/{style}] {escape(found.about)}: {escape(found.says)}"
        console.print(line, soft_wrap=True)
        lies += [] if found.fine else [found.about]
    return lies


def _summary(job: Job) -> str:
    size = sum(p.numel() for p in job.student.parameters() if p.requires_grad)
    rows = ", ".join(f"{n} {split}" for split, n in job.ledger.get("rows", {}).items())
    form = f", in the form of {told}" if (told := job.ledger.get("form")) else ""
    out = "; ".join(f"{n} left out: {why}" for why, n in job.ledger.get("left_out", {}).items())
    signals = ", ".join(sorted(job.teachers["teacher"].signals))
    return (
        f"{type(job.method).__name__}, student with {size:,} parameters that learn, "
        f"teacher gives {signals}; rows: {rows}{f' ({out})' if out else ''}{form}; "
        f"{_length(job)}{_plan(job)}"
    )


def _plan(job: Job) -> str:
    """What a pipeline will ask of its teacher."""
    asks = [line["questions"] for line in job.ledger.get("pipeline", ()) if "questions" in line]
    return f"; at most {asks[0]:,} questions to the teacher" if asks else ""


def _length(job: Job) -> str:
    if job.train.steps is None:
        return f"{job.train.cpu_seconds:g} CPU seconds of steps of {job.train.batch}"
    passes = job.train.steps * job.train.batch / len(job.streams["train"])
    return f"{job.train.steps} steps of {job.train.batch} = {passes:.1f} passes"


def _tokens(console: Console, job: Job) -> None:
    data: Any = job.streams["train"]
    renderer = job.suite.renderer if job.suite else None
    if not isinstance(data, TextData) or renderer is None:
        raise Failure("--show-tokens: these data are no text")
    batch = data.batch(range(min(EXAMPLES, len(data))))
    labels = dict(zip(batch.rows.tolist(), batch.labels.tolist(), strict=True))
    length = batch.ids.shape[1]
    console.print("Row: token, then the next token where it counts (the label of that row).")
    for i in range(batch.size):
        console.print(f"[bold]sample {int(batch.id[i])}[/bold]")
        for j in range(int(batch.last[i]) + 1):
            row = i * length + j
            token = renderer.tokenizer.decode([int(batch.ids[i, j])])
            line = Text(f"{row:>6}  {token!r:<24}", style="dim" if row not in labels else "")
            if row in labels:
                label = renderer.tokenizer.decode([labels[row]])
                line.append(f"→ {label!r} ({labels[row]})", style="green")
            console.print(line)
