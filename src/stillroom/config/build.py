"""Recipes to jobs: data read and rendered, networks made, needs checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from tokenizers import ByteLevelBPETokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from stillroom.catalogue import nearest
from stillroom.config.recipe import Recipe
from stillroom.config.texts import Texts, gathered, rendered
from stillroom.config.values import within
from stillroom.core import Failure, Teacher
from stillroom.data.rows import Row, columns
from stillroom.data.streams import Data
from stillroom.data.text import Renderer
from stillroom.engine.run import check_needs
from stillroom.engine.training import Job
from stillroom.evaluation.suite import Suite
from stillroom.models import text
from stillroom.teachers.local import Local
from stillroom.teachers.recorded import Recorded

EOS = "<|endoftext|>"


@dataclass(kw_only=True)
class Parts:
    """Objects given by a Python caller in place of a recipe's words."""

    student: Any = None
    tokenizer: Any = None
    teacher: Teacher | None = None
    rows: Sequence[Row] | None = None
    splits: Mapping[str, Data] = field(default_factory=dict)


def build(recipe: Recipe, parts: Parts | None = None) -> Job:
    """A job of one recipe, everything checked that can be checked without a step.

    Raises:
        Failure: a file, row, model, signal or size is not as it must be.
    """
    parts = parts or Parts()
    torch.manual_seed(recipe.run.seed)
    texts = None if parts.splits else gathered(recipe, parts.rows)
    student, renderer = _student(recipe, parts, texts)
    teachers = {"teacher": parts.teacher or _teacher(recipe)}
    check_needs(recipe.method, student, teachers)
    ledger: dict[str, Any] = {}
    splits = dict(parts.splits)
    if texts is not None and renderer is not None:
        splits = rendered(recipe, texts, renderer, student.context, ledger)
    evaluated = {name: splits[name] for name in ("validation", "test") if name in splits}
    suite = Suite(
        recipe.eval.metrics,
        evaluated,
        renderer=renderer,
        sampling=recipe.sampling,
        teachers=teachers,
        world=texts.world if texts else None,
        budget=recipe.train.tokens_per_micro,
        seed=recipe.run.seed,
    )
    _check_select(recipe, suite)
    return Job(
        method=recipe.method,
        student=student,
        teachers=teachers,
        streams={k: v for k, v in splits.items() if k not in ("validation", "test")},
        train=recipe.train,
        eval=recipe.eval,
        run=recipe.run,
        sampling=recipe.sampling,
        suite=suite,
        pad_id=renderer.pad_id if renderer else 0,
        recipe=recipe.resolved(),
        ledger=ledger,
    )


def _check_select(recipe: Recipe, suite: Suite) -> None:
    select, known = recipe.eval.select, list(suite.columns())
    if select is None:
        return
    if select not in known:
        told = ", ".join(known) or "nothing: name metrics"
        raise Failure(
            f"eval.select: no metric gives {select!r}{nearest(select, known)}; eval.metrics "
            f"{list(recipe.eval.metrics)} give {told}"
        )
    if "validation" not in suite.splits:
        raise Failure(
            f"eval.select: {select!r} is read on the validation split, and there is none: give "
            "data.validation or data.hold_out"
        )


def _student(recipe: Recipe, parts: Parts, texts: Texts | None) -> tuple[Any, Renderer | None]:
    told, student, tokenizer = recipe.student, parts.student, parts.tokenizer
    if texts is None:
        return student, None
    if student is None and (told.model is None) == (told.lm is None):
        raise Failure("student: give either 'model' (a hub name or folder) or 'lm' (sizes)")
    if tokenizer is None:
        tokenizer = _tokenizer(recipe, texts)
    if student is None and told.model is not None:
        with within("student.model"):
            student = text.load(told.model, **_options(told))
    if student is None:
        sizes = dict(told.lm or {})
        kind = sizes.pop("model_type", None)
        if kind is None:
            raise Failure("student.lm.model_type: name the architecture, like llama or windowed")
        student = text.build(
            kind, len(tokenizer), tokenizer.eos_token_id, tokenizer.pad_token_id, **sizes
        )
    return student, Renderer(tokenizer, student.stop_ids, recipe.data.columns)


def _options(told: Any) -> dict[str, Any]:
    names = ("dtype", "revision", "device_map", "trust_remote_code")
    return {name: getattr(told, name) for name in names}


def _tokenizer(recipe: Recipe, texts: Texts) -> Any:
    told = recipe.student
    if texts.world is not None:
        return texts.world.tokenizer()
    name = told.tokenizer or told.model
    if name is not None:
        try:
            return AutoTokenizer.from_pretrained(name, trust_remote_code=told.trust_remote_code)
        except (OSError, ValueError) as error:
            raise Failure(f"student: cannot load the tokenizer of {name!r}: {error}") from error
    fill = columns(recipe.data.columns)
    trained = ByteLevelBPETokenizer()
    lines = (_text(fill(row, where)) for where, row in texts.rows["train"])
    trained.train_from_iterator(
        lines, vocab_size=told.vocab_size, special_tokens=[EOS], show_progress=False
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=trained._tokenizer,
        eos_token=EOS,
        pad_token=EOS,
        clean_up_tokenization_spaces=False,
    )


def _text(row: Row) -> str:
    """All words of a row, for a tokenizer to learn from."""
    turns = [str(turn.get("content", "")) for turn in row.get("messages", ())]
    return "\n".join([*(str(row.get(c, "")) for c in ("prompt", "completion")), *turns])


def _teacher(recipe: Recipe) -> Teacher:
    told = recipe.teacher
    if told.recorded == (told.model is not None):
        raise Failure("teacher: give either 'recorded: true' or 'model' (a hub name or folder)")
    if told.model is None:
        return Recorded()
    with within("teacher.model"):
        return Local(text.load(told.model, **_options(told)))
