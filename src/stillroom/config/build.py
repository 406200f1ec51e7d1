"""Recipes to jobs: data read and rendered, networks made, needs checked."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from tokenizers import ByteLevelBPETokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from stillroom.catalogue import nearest
from stillroom.config.recipe import DataSpec, Recipe, find_data
from stillroom.config.values import within
from stillroom.core import Failure, Teacher
from stillroom.data.marked_orders import MarkedOrders
from stillroom.data.streams import Data
from stillroom.data.text import Example, Renderer, Row, TextData, columns, read_jsonl
from stillroom.engine.run import check_needs
from stillroom.engine.training import Job
from stillroom.evaluation.suite import Suite
from stillroom.models import text
from stillroom.teachers.local import Local
from stillroom.teachers.recorded import Recorded

WORLDS = {"marked_orders": MarkedOrders}
EOS = "<|endoftext|>"


@dataclass(kw_only=True)
class Parts:
    """Objects given by a Python caller in place of a recipe's words."""

    student: Any = None
    tokenizer: Any = None
    teacher: Teacher | None = None
    rows: Sequence[Row] | None = None
    splits: Mapping[str, Data] = field(default_factory=dict)


@dataclass
class _Texts:
    """Rows by split, where they came from, and the world they were made in."""

    rows: dict[str, list[tuple[str, Row]]]
    pool: Sequence[tuple[str, Row]] = field(default_factory=list)
    files: list[dict[str, Any]] = field(default_factory=list)
    world: Any = None


def build(recipe: Recipe, parts: Parts | None = None) -> Job:
    """A job of one recipe, everything checked that can be checked without a step.

    Raises:
        Failure: a file, row, model, signal or size is not as it must be.
    """
    parts = parts or Parts()
    torch.manual_seed(recipe.run.seed)
    texts = _texts(recipe, parts)
    student, renderer = _student(recipe, parts, texts)
    teachers = {"teacher": parts.teacher or _teacher(recipe)}
    check_needs(recipe.method, student, teachers)
    ledger: dict[str, Any] = {}
    splits = dict(parts.splits)
    if texts is not None and renderer is not None:
        splits = _splits(recipe, texts, renderer, student.context, ledger)
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


def _texts(recipe: Recipe, parts: Parts) -> _Texts | None:
    told = recipe.data
    if parts.splits:
        return None
    if told.world is not None:
        return _world(recipe)
    if parts.rows is not None:
        named = {"train": [(f"data, row {i}", row) for i, row in enumerate(parts.rows)]}
        return _held_out(_Texts(named), told)
    if told.train is None:
        raise Failure("data.train: name a file of rows (or data.world)")
    texts = _Texts({})
    for split in ("train", "validation", "test"):
        if (name := getattr(told, split)) is not None:
            file = find_data(name, recipe.folder, f"data.{split}")
            rows = read_jsonl(file)
            digest = hashlib.sha256(file.read_bytes()).hexdigest()
            texts.files.append({"file": name, "rows": len(rows), "sha256": digest})
            texts.rows[split] = [(f"{file}, line {i}", row) for i, row in enumerate(rows, 1)]
    return _held_out(texts, told)


def _world(recipe: Recipe) -> _Texts:
    told = dict(recipe.data.world or {})
    name, one_style = told.pop("name", None), told.pop("one_style", False)
    if name not in WORLDS:
        raise Failure(f"data.world.name: there is no {name!r}; there is {', '.join(WORLDS)}")
    try:
        world = WORLDS[name](**told)
    except TypeError as error:
        raise Failure(f"data.world: {error}") from error
    rows = world.splits(recipe.run.seed, one_style=bool(one_style))
    named: dict[str, list[tuple[str, Row]]] = {
        k: [(f"{name} {k} {i}", row) for i, row in enumerate(v)] for k, v in rows.items()
    }
    return _Texts(named, world=world)


def _held_out(texts: _Texts, told: DataSpec) -> _Texts:
    """Sets rows aside before any tokenizer sees them; how many fit is known only later."""
    if told.hold_out is None:
        return texts
    if "validation" in texts.rows or "test" in texts.rows:
        raise Failure("data.hold_out: give either it or data.validation and data.test")
    rows = texts.rows["train"]
    spare = told.max_prompt_tokens or told.max_completion_tokens
    count = told.hold_out * (3 if spare else 2)
    if count >= len(rows):
        raise Failure(f"data.hold_out: {told.hold_out} is too many of {len(rows)} rows")
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0)).tolist()
    texts.pool = [rows[i] for i in order[:count]]
    texts.rows["train"] = [rows[i] for i in order[count:]]
    return texts


def _student(recipe: Recipe, parts: Parts, texts: _Texts | None) -> tuple[Any, Renderer | None]:
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


def _tokenizer(recipe: Recipe, texts: _Texts) -> Any:
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


def _splits(
    recipe: Recipe,
    texts: _Texts,
    renderer: Renderer,
    context: int | None,
    ledger: dict[str, Any],
) -> dict[str, Data]:
    told, left_out = recipe.data, {"prompt too long": 0, "completion too long": 0}

    def kept(rows: Sequence[tuple[str, Row]], *, test: bool = False) -> list[Example]:
        sampled = recipe.method.needs.rollouts or (test and recipe.eval.samples > 0)
        room = context - recipe.sampling.max_new_tokens if context and sampled else context
        found = []
        for where, row in rows:
            example = renderer.example(row, where)
            prompt, answer = len(example.prompt_ids), len(example.completion_ids)
            if told.max_prompt_tokens is not None and prompt > told.max_prompt_tokens:
                left_out["prompt too long"] += 1
            elif told.max_completion_tokens is not None and answer > told.max_completion_tokens:
                left_out["completion too long"] += 1
            else:
                _check_room(where, prompt, answer, context, room)
                found.append(example)
        return found

    examples = {split: kept(rows, test=split == "test") for split, rows in texts.rows.items()}
    if told.hold_out is not None:
        pool, n = kept(texts.pool, test=True), told.hold_out
        if len(pool) < 2 * n:
            raise Failure(
                f"data.hold_out: only {len(pool)} of {len(texts.pool)} rows set aside are short "
                f"enough, but {n} are wanted twice: lower it or raise the limits of data"
            )
        examples |= {"validation": pool[:n], "test": pool[n : 2 * n]}
        examples["train"] += pool[2 * n :]
    if empty := [split for split, found in examples.items() if not found]:
        raise Failure(f"data: no row is left for {empty[0]}; left out: {left_out}")
    ledger |= {
        "files": texts.files,
        "rows": {split: len(found) for split, found in examples.items()},
        "left_out": {why: n for why, n in left_out.items() if n},
        "licence": told.licence,
    }
    return {split: TextData(found, renderer.pad_id) for split, found in examples.items()}


def _check_room(
    where: str, prompt: int, answer: int, context: int | None, room: int | None
) -> None:
    if context is not None and prompt + answer > context:
        raise Failure(
            f"{where}: {prompt} tokens of prompt and {answer} of completion exceed the student's "
            f"context of {context}; set data.max_prompt_tokens or data.max_completion_tokens"
        )
    if room is not None and prompt > room:
        raise Failure(
            f"{where}: a prompt of {prompt} tokens leaves no room for sampling.max_new_tokens in "
            f"the context of {context}; lower it or set data.max_prompt_tokens"
        )
