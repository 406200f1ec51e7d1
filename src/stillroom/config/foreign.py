"""Teachers with tokenizers of their own, where the method can learn from them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stillroom.config.recipe import Recipe
from stillroom.config.taught import Taught
from stillroom.config.teachers import tokenizer_of
from stillroom.core import Failure, Teacher
from stillroom.data.retelling import Retelling
from stillroom.data.text import Renderer, TextData
from stillroom.teachers.foreign import Foreign
from stillroom.teachers.local import Local


def across(
    recipe: Recipe,
    teacher: Teacher,
    own: Renderer | None,
    splits: Mapping[str, Any],
    world: Any,
    made: Taught | None,
) -> Teacher:
    """The teacher, told the student's text in its own tokens where the method asks for ``spans``.

    One that names no tokenizer (on the student's base, or given as an object) has the student's.

    Raises:
        Failure: a tokenizer's ids stand for bytes that cannot be known; the student is narrowed to
            a view of the vocabulary.
    """
    if "spans" not in recipe.method.needs.teacher or not isinstance(teacher, Local) or own is None:
        return teacher
    if recipe.student.vocab == "view":
        raise Failure(
            "student.vocab: what two vocabularies have in common is told of all tokens; train "
            "with 'vocab: full'"
        )
    other = own.tokenizer
    if made is not None:
        other = made.tokenizer
    elif recipe.teacher.world:
        other = world.tokenizer()
    elif recipe.teacher.model is not None:
        other = tokenizer_of(recipe.teacher)
    stops = getattr(teacher.network, "stop_ids", None) or (other.eos_token_id,)
    sets = [texts for texts in splits.values() if isinstance(texts, TextData)]
    return Foreign(teacher.network, Retelling(own, Renderer(other, stops), sets))
