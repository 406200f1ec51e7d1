"""Rows of a recipe's data: read, held out, rendered, counted."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from stillroom.config.collected import collected
from stillroom.config.recipe import Recipe, find_data
from stillroom.config.specs import DataSpec, TeacherSpec
from stillroom.config.values import checked, within
from stillroom.core import Failure
from stillroom.data.addition import Addition
from stillroom.data.chains import Chains
from stillroom.data.forms import FORMS, shaped
from stillroom.data.marked_orders import MarkedOrders
from stillroom.data.markov import Markov
from stillroom.data.quiz import Quiz
from stillroom.data.rows import Row, read_rows
from stillroom.data.streams import Data
from stillroom.data.text import Example, Renderer, TextData
from stillroom.data.text2sql import FORM, questions
from stillroom.data.zipf_chain import ZipfChain
from stillroom.store.requests import digest

_SHAPED = {name for form in FORMS.values() for name in form} - {"completion"}
"""Columns that a form says in its own way."""
ROUTE = "route"
"""A row's teacher, whatever its column is called in the file."""
WORLDS: dict[str, Any] = {
    "marked_orders": MarkedOrders,
    "zipf_chain": ZipfChain,
    "addition": Addition,
    "markov": Markov,
    "chains": Chains,
    "quiz": Quiz,
}


@dataclass
class Texts:
    """Rows by split, where they came from, and the world they were made in.

    ``rest``: rows that were set aside and are in neither split are trained on. ``left_out`` counts
    rows whose answer a teacher did not give; ``collected`` tells by file how its answers were come
    by: for the reader alone, as it changes where the rows do not.
    """

    rows: dict[str, list[tuple[str, Row]]]
    pool: Sequence[tuple[str, Row]] = field(default_factory=list)
    files: list[dict[str, Any]] = field(default_factory=list)
    world: Any = None
    form: str | None = None
    left_out: dict[str, int] = field(default_factory=dict)
    rest: bool = True
    collected: dict[str, Any] = field(default_factory=dict)


def gathered(
    recipe: Recipe,
    given: Sequence[Row] | None,
    *,
    ask: bool = True,
    lesson: Sequence[Row] | None = None,
) -> Texts:
    """The rows of a world, of a Python caller (``given``), or of the files that are named.

    The teacher writes the answers that they lack, if it can; ``ask`` False leaves these rows out.
    ``lesson`` are the rows of the training split instead.
    """
    told = recipe.data
    if lesson is not None:
        return _lesson(recipe, given, lesson, ask=ask)
    if told.world is not None:
        return _world(recipe)
    if given is not None:
        named = {"train": [(f"data, row {i}", row) for i, row in enumerate(given)]}
        return _held_out(_answered(recipe, _shaped(Texts(named), recipe), ask=ask), told)
    if told.train is None:
        raise Failure("data.train: name a file of rows (or data.world)")
    texts = Texts({})
    for split in ("train", "validation", "test"):
        if (name := getattr(told, split)) is not None:
            file = find_data(name, recipe.folder, f"data.{split}")
            with within(f"data.{split}"):
                read = read_rows(file, split)
            tail = f":{read.split}" if read.split else ""
            label = name.removesuffix(tail) + tail
            texts.files.append({"file": label, "rows": len(read), "sha256": read.sha256})
            texts.rows[split] = list(read)
            ledger = file.with_name(f"{file.name}.ledger.json")
            if ledger.is_file():
                texts.collected[label] = json.loads(ledger.read_text("utf-8"))
    return _held_out(_answered(recipe, _shaped(texts, recipe), ask=ask), told)


def questions_of(recipe: Recipe, given: Sequence[Row] | None) -> Texts:
    """Rows as ``gathered`` gives them, with all of their columns, and nobody asked for answers."""
    silent = replace(recipe, teacher=TeacherSpec(recorded=True), teachers={})
    texts = gathered(silent, given)
    if recipe.data.hold_out is not None:  # the test split is of no concern here
        texts.rows["validation"] = list(texts.pool[: recipe.data.hold_out])
    return texts


def _lesson(
    recipe: Recipe, given: Sequence[Row] | None, lesson: Sequence[Row], *, ask: bool
) -> Texts:
    """The recipe's validation and test, and the lesson's rows for training."""
    texts = questions_of(recipe, given)
    own = [(f"lesson, row {i}", _told(row)) for i, row in enumerate(lesson)]
    form, made = shaped(own, None, None, recipe.method.needs.texts)
    if texts.form not in (None, form):
        raise Failure(f"a lesson's rows are of form {form}, and those of validation {texts.form}")
    kept = {k: v for k, v in texts.rows.items() if k == "test" or recipe.data.hold_out is None}
    told = collected(recipe, {**kept, "train": made, "pool": list(texts.pool)}, ask=ask)
    texts.pool = told.rows.pop("pool")
    texts.rows, texts.left_out, texts.rest = told.rows, told.left_out, False
    learned = {"file": "lesson", "rows": len(made), "sha256": digest([r for _, r in made])}
    texts.files = [learned, *texts.files, *told.files]
    texts.collected |= told.collected
    return texts


def _told(row: Row) -> Row:
    """A row whose ``completion`` is the last turn of its messages, where it has these."""
    if "messages" not in row or "completion" not in row:
        return row
    turns = [*row["messages"], {"role": "assistant", "content": row["completion"]}]
    return {**{k: v for k, v in row.items() if k != "completion"}, "messages": turns}


def _answered(recipe: Recipe, texts: Texts, *, ask: bool) -> Texts:
    told = collected(recipe, texts.rows, ask=ask)
    texts.rows, texts.left_out = told.rows, told.left_out
    texts.files += told.files
    texts.collected |= told.collected
    return texts


def _shaped(texts: Texts, recipe: Recipe) -> Texts:
    """Rows as prompt and completion, or messages; all splits have the form of the first."""
    told, further = recipe.data, recipe.method.needs.texts
    for split, rows in texts.rows.items():
        with within(f"data.{split}"):
            if told.form == FORM:
                texts.form, rows = "prompt", questions(rows, split)
            texts.form, made = shaped(rows, texts.form or told.form, told.columns, further)
        texts.rows[split] = [
            (where, {**_others(row, recipe), **new})
            for (_, row), (where, new) in zip(rows, made, strict=True)
        ]
    return texts


def _others(row: Row, recipe: Recipe) -> Row:
    """What else of a row is kept: its teacher; for a pipeline all that its form does not say."""
    kept = {} if recipe.pipeline is None else {k: v for k, v in row.items() if k not in _SHAPED}
    return {**kept, ROUTE: row.get(recipe.data.route)} if recipe.data.route else kept


def _world(recipe: Recipe) -> Texts:
    told = dict(recipe.data.world or {})
    name = told.pop("name", None)
    if name not in WORLDS:
        raise Failure(f"data.world.name: there is no {name!r}; there is {', '.join(WORLDS)}")
    chosen = {k: told.pop(k) for k in ("one_style",) if k in told and WORLDS[name] is MarkedOrders}
    if not all(isinstance(value, bool) for value in chosen.values()):
        raise Failure(f"data.world.one_style: must be true or false, got {chosen['one_style']!r}")
    world = checked(WORLDS[name], told, "data.world")
    rows = world.splits(recipe.run.seed, **chosen)
    named: dict[str, list[tuple[str, Row]]] = {
        k: [(f"{name} {k} {i}", row) for i, row in enumerate(v)] for k, v in rows.items()
    }
    return _shaped(Texts(named, world=world), recipe)


def _held_out(texts: Texts, told: DataSpec) -> Texts:
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


def rendered(
    recipe: Recipe,
    texts: Texts,
    renderer: Renderer,
    context: int | None,
    ledger: dict[str, Any],
) -> dict[str, Data]:
    """Data sets by split, of the rows that fit; tells ``ledger`` what was read and left out."""
    if recipe.data.train_on == "all" and recipe.method.needs.rollouts:
        raise Failure(
            f"data.train_on: {type(recipe.method).__name__} samples answers to the last turn "
            "alone, so 'all' would be learned from in some steps only: set it to last"
        )
    limits, needs = {**recipe.data.rows}, recipe.method.needs
    told, left_out = recipe.data, Counter(texts.left_out)

    def kept(
        rows: Sequence[tuple[str, Row]], *, test: bool = False, learned: bool = True
    ) -> list[Example]:
        sampled = recipe.method.needs.rollouts or (test and recipe.eval.samples > 0)
        room = context - recipe.sampling.max_new_tokens if context and sampled else context
        found = []
        for where, row in rows:
            example = _example(recipe, renderer, row, where, needs.texts if learned else ())
            prompt, answer = len(example.prompt_ids), _longest(example)
            if told.max_prompt_tokens is not None and prompt > told.max_prompt_tokens:
                left_out["prompt too long"] += 1
            elif told.max_completion_tokens is not None and answer > told.max_completion_tokens:
                left_out["completion too long"] += 1
            else:
                _check_room(where, prompt, answer, context, room)
                found.append(example)
        return found

    examples = {
        split: kept(rows, test=split == "test", learned=split in needs.streams)[: limits.get(split)]
        for split, rows in texts.rows.items()
    }
    if told.hold_out is not None:
        pool, n = kept(texts.pool, test=True, learned=texts.rest), told.hold_out
        if len(pool) < 2 * n:
            raise Failure(
                f"data.hold_out: only {len(pool)} of {len(texts.pool)} rows set aside are short "
                f"enough, but {n} are wanted twice: lower it or raise the limits of data"
            )
        examples |= {"validation": pool[:n], "test": pool[n : 2 * n]}
        examples["train"] += pool[2 * n :] if texts.rest else []
    if empty := [split for split, found in examples.items() if not found]:
        raise Failure(f"data: no row is left for {empty[0]}; left out: {dict(left_out)}")
    ledger |= {
        "files": texts.files,
        "form": texts.form,
        "rows": {split: len(found) for split, found in examples.items()},
        "left_out": {why: n for why, n in left_out.items() if n},
        "sha256": {split: _digest(found) for split, found in examples.items()},
        "licence": told.licence,
        "collected": texts.collected,
    }
    return {split: TextData(found, renderer.pad_id) for split, found in examples.items()}


def _digest(examples: Sequence[Example]) -> str:
    """Hash of the texts, whatever files they came from and however they are tokenised."""
    return digest([[e.prompt, e.answer, len(e.earlier), *_beside(e)] for e in examples])


def _beside(example: Example) -> list[Any]:
    """What else an example has; nothing of most."""
    found: list[Any] = [[name, one.answer] for name, one in sorted(example.others.items())]
    told = {"weight": example.weight, "gold": example.gold}
    return found + [[name, value] for name, value in told.items() if value is not None]


def _example(
    recipe: Recipe, renderer: Renderer, row: Row, where: str, texts: Iterable[str]
) -> Example:
    """A row as tokens, cut, with the place of its teacher."""
    told, example = recipe.data, renderer.example(row, where, texts=texts)
    if told.route is not None:
        example = replace(example, route=_place(row.get(ROUTE), recipe, where))
    if told.cut_completion_tokens is not None:
        example = renderer.cut(example, told.cut_completion_tokens)
    return example


def _place(name: Any, recipe: Recipe, where: str) -> int:
    """Of a row's teacher among those of the recipe."""
    known = list(recipe.teachers)
    if name not in known:
        raise Failure(
            f"{where}: {recipe.data.route!r} must name one of the teachers "
            f"({', '.join(known) or 'there is none: give teachers'}), got {name!r}"
        )
    return known.index(name)


def _longest(example: Example) -> int:
    """Tokens of its longest answer."""
    return max(len(e.completion_ids) for e in (example, *example.others.values()))


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
