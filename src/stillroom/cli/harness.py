"""Tasks of lm-eval (EleutherAI's harness) on a model of ours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from stillroom.catalogue import nearest
from stillroom.engine.parallel import Processes
from stillroom.extras import extra
from stillroom.failures import Failure
from stillroom.models import text
from stillroom.models.sources import resolved

WHY = "--lm-eval"
SIDE_BY_SIDE = 8
"""Sequences of one forward pass."""


def harness(
    model: str, tasks: str, *, include: Path | None, limit: int | None, seed: int
) -> tuple[dict[str, Any], str]:
    """What lm-eval measures, as its mapping and as its own table.

    Args:
        model: as ``models.sources`` takes it.
        tasks: their names, apart by commas.
        include: a folder with YAML files of further tasks.
        limit: the first documents of each task alone.
        seed: of the choice of examples in few-shot prompts.

    Raises:
        Failure: lm-eval is missing, or has no such task, or the task's data cannot be had.
    """
    harness = extra("lm_eval", "harness", why=WHY)
    if include is not None and not include.is_dir():
        raise Failure(f"--include: there is no folder {include}")
    known = extra("lm_eval.tasks", "harness", why=WHY).TaskManager(
        include_path=include and str(include)
    )
    names = [name.strip() for name in tasks.split(",")]
    for task in names:
        if not known.match_tasks([task]):
            near = nearest(task, known.all_tasks) or "; --include names a folder with your own"
            raise Failure(f"--lm-eval: lm-eval has no task {task!r}{near}")
    told = harness.simple_evaluate(
        model=_wrapped(model),
        tasks=names,
        limit=limit,
        task_manager=known,
        log_samples=False,
        fewshot_random_seed=seed,
    )
    kept = ("results", "groups", "higher_is_better", "versions", "n-shot", "n-samples")
    table = extra("lm_eval.utils", "harness", why=WHY).make_table(told)
    return {"model": model, **{name: told[name] for name in kept if name in told}}, table


def _wrapped(model: str) -> Any:
    loaded = text.load(resolved(model)).to(Processes().device)
    wrapper = extra("lm_eval.models.huggingface", "harness", why=WHY).HFLM
    return wrapper(
        pretrained=loaded.model,
        tokenizer=AutoTokenizer.from_pretrained(resolved(model)),
        batch_size=SIDE_BY_SIDE,
    )
