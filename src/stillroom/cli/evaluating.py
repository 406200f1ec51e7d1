"""``stillroom eval``: the numbers of a model on a file of rows, or on tasks of lm-eval."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from stillroom.cli.common import Json, quiet
from stillroom.failures import Failure

METRICS = "likelihood,overlap,exact_match,generation"
Metrics = Annotated[str, typer.Option(help="Evaluators, apart by commas.")]
Data = Annotated[str | None, typer.Option(help="Rows with prompt and completion, or messages.")]
Tasks = Annotated[str | None, typer.Option(help="Tasks of lm-eval, instead of --data.")]


def eval_(
    model: Annotated[str, typer.Argument(help="Hub name, folder, run, GGUF or package:NAME.")],
    changes: Annotated[
        list[str] | None,
        typer.Argument(help="Changes, like data.form=alpaca eval.answer='#+ (.*)'."),
    ] = None,
    data: Data = None,
    metrics: Metrics = METRICS,
    teacher: Annotated[str | None, typer.Option(help="A live one; 'agreement' needs it.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="The first rows alone.")] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Of a sampled answer.")] = 128,
    temperature: Annotated[float, typer.Option(help="0 takes the likeliest token.")] = 0.0,
    seed: Annotated[int, typer.Option(help="Of sampled answers.")] = 0,
    batch_tokens: Annotated[int, typer.Option(help="Tokens of one forward pass.")] = 16384,
    lm_eval: Tasks = None,
    include: Annotated[Path | None, typer.Option(help="Folder with tasks of your own.")] = None,
    as_json: Json = False,
    out: Annotated[Path | None, typer.Option(help="A file for the JSON.")] = None,
) -> None:
    """Measure a model: likelihood of the data's answers, and its own answers beside them."""
    _check(data, lm_eval, changes, out)
    quiet()
    told: dict[str, Any] = {
        "name": Path(model).name or model,
        "method": "seqkd" if teacher is None else "kd",  # any that fits: no step is taken
        "student": {"model": model},
        "teacher": {"recorded": True} if teacher is None else {"model": teacher},
        "data": {"train": data, "test": data, "rows": {"test": limit} if limit else {}},
        "train": {"steps": 0, "tokens_per_micro": batch_tokens},
        "eval": {"metrics": [name.strip() for name in metrics.split(",")]},
        "sampling": {"temperature": temperature, "max_new_tokens": max_new_tokens},
        "run": {"seed": seed},
    }
    if lm_eval is not None:
        from stillroom.cli.harness import harness

        table, shown = harness(model, lm_eval, include=include, limit=limit, seed=seed)
    else:
        table, shown = measured(told, changes or [])
    _say(table, shown, as_json=as_json, out=out)


def _check(data: str | None, tasks: str | None, changes: list[str] | None, out: Path | None):
    if (data is None) == (tasks is None):
        raise Failure("eval: give either --data FILE or --lm-eval TASKS")
    if tasks is not None and changes:
        raise Failure(f"eval: {' '.join(changes)}: changes go with --data, not with --lm-eval")
    if out is not None and (out.is_dir() or not out.absolute().parent.is_dir()):
        raise Failure(f"--out: {out} must be a file in a folder that exists")


def _say(table: Mapping[str, Any], shown: Any, *, as_json: bool, out: Path | None) -> None:
    text = json.dumps(table, indent=2, ensure_ascii=False)
    if out is not None:
        out.write_text(text + "\n", encoding="utf-8")
    if as_json or isinstance(shown, str):
        typer.echo(text if as_json else shown)
    else:
        Console().print(shown)


def measured(told: Mapping[str, Any], changes: Sequence[str]) -> tuple[dict[str, Any], Any]:
    """Rows of the model and its teacher as in ``table.json``, and the same for a terminal.

    Args:
        told: a recipe of no steps.
        changes: of the recipe, as ``key=value``.

    Raises:
        Failure: the recipe, the model, the data or an evaluator is not as it must be.
    """
    import torch

    from stillroom.config.build import build
    from stillroom.config.recipe import make, overridden
    from stillroom.engine.parallel import Processes
    from stillroom.evaluation.suite import Suite
    from stillroom.reports.text import TextTable
    from stillroom.teachers.local import Local

    for change in changes:
        told = overridden(told, change)
    recipe = make(told, folder=Path())
    named = Suite(recipe.eval.metrics, {}).evaluators.values()  # a wrong name is told here
    answers = not all(vars(evaluator).get("GIVEN", False) for evaluator in named)
    room = replace(recipe.eval, samples=int(answers))  # prompts must leave room for answers, if any
    recipe = replace(recipe, eval=room)
    job = build(recipe)
    live = [t.network for t in job.teachers.values() if isinstance(t, Local)]
    for network in (job.student, *live):
        network.to(Processes().device)
    assert job.suite is not None
    players = {"student": job.student}
    with torch.no_grad():
        own = job.suite.measure(players, "test")
        rows = [{"name": recipe.name, "kind": "student", "values": own}]
        if other := job.suite.teacher(players, "test"):
            rows.append({"name": "teacher", "kind": "teacher", "values": other})
    columns = {k: v for k, v in job.suite.columns().items() if any(k in r["values"] for r in rows)}
    table = {"rows": rows, "columns": columns, "notes": _notes(recipe, job.ledger)}
    shown = TextTable(recipe.name, table)
    return {**table, "recipe": recipe.resolved(), "data": job.ledger}, shown


def _notes(recipe: Any, ledger: Mapping[str, Any]) -> list[str]:
    how = recipe.sampling
    drawn = f"sampled at temperature {how.temperature:g}" if how.temperature else "greedy"
    left = [f"{count} rows were left out: {why}." for why, count in ledger["left_out"].items()]
    return [
        f"{ledger['rows']['test']:,} rows of {recipe.data.test}. Answers are {drawn}, of at most "
        f"{how.max_new_tokens} tokens.",
        *left,
    ]
