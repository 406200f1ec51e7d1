"""Scores for a store, made before any recipe runs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from transformers import AutoTokenizer

from stillroom.config.build import build
from stillroom.config.recipe import read
from stillroom.config.specs import TeacherSpec
from stillroom.config.stored import stored
from stillroom.config.teachers import options
from stillroom.core import Teacher
from stillroom.data.forms import shaped
from stillroom.data.rows import read_rows
from stillroom.data.text import Renderer, TextData
from stillroom.models import text
from stillroom.models.sources import resolved


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
            job = build(replace(arm, teacher=told), ready=False)
            yield name, job.teachers["teacher"]
        return
    place = resolved(str(told.model))
    network = text.load(place, **options(told))
    tokenizer = AutoTokenizer.from_pretrained(place)
    renderer = Renderer(tokenizer, network.stop_ids)
    _, rows = shaped(read_rows(named))
    data = TextData([renderer.example(row, where) for where, row in rows], renderer.pad_id)
    yield named, stored(told, tokenizer, [data], network=network)
