"""Scores for a store, made before any recipe runs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from stillroom.config.build import build
from stillroom.config.recipe import read
from stillroom.config.specs import TeacherSpec
from stillroom.config.stored import stored
from stillroom.config.teachers import options, tokenizer_of
from stillroom.core import Teacher
from stillroom.data.forms import shaped
from stillroom.data.rows import read_rows
from stillroom.data.text import Renderer, TextData
from stillroom.models import text
from stillroom.models.sources import resolved

OF_ANSWERS = ("sampling", "endpoint", "keep_truncated")
"""What a recipe's teacher tells of the answers that its rows lack: they are the same ones here."""


def scored(named: str, told: TeacherSpec) -> Iterator[tuple[str, Teacher]]:
    """Scores of a file of rows with completions, or of a recipe's arms, by name.

    Of arms those that name the same signals, or all where none does.

    Raises:
        Failure: as ``stored`` and ``build``; a row has no completion.
    """
    if named.endswith((".yaml", ".yml")):
        recipe = read(named)
        arms = dict(recipe.arms) or {recipe.name: recipe}
        same = {k: arm for k, arm in arms.items() if arm.teacher.signals == told.signals}
        for name, arm in (same or arms).items():
            asked = {name: getattr(arm.teacher, name) for name in OF_ANSWERS}
            job = build(replace(arm, teacher=replace(told, **asked)), ready=False)
            yield name, job.teachers["teacher"]
        return
    tokenizer = tokenizer_of(told)
    network = text.load(resolved(told.model), **options(told)) if told.model else None
    stops = network.stop_ids if network else (tokenizer.eos_token_id,)
    renderer = Renderer(tokenizer, stops)
    _, rows = shaped(read_rows(named))
    data = TextData([renderer.example(row, where) for where, row in rows], renderer.pad_id)
    yield named, stored(told, tokenizer, [data], network=network)
