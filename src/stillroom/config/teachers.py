"""The teacher that a recipe tells of."""

from __future__ import annotations

from typing import Any

from stillroom.config.recipe import Recipe
from stillroom.config.values import within
from stillroom.core import Failure, Teacher
from stillroom.models import text
from stillroom.models.adapters import AdaptedLM
from stillroom.models.sources import resolved
from stillroom.teachers.local import Local
from stillroom.teachers.recorded import Recorded

KINDS = ("recorded", "model", "api", "base", "adapter")


def teacher(recipe: Recipe, student: Any) -> Teacher:
    """The teacher that the recipe's ``teacher`` names; ``student`` lends its base model.

    Raises:
        Failure: none or several are named, or the one named cannot be loaded.
    """
    told = recipe.teacher
    named = [kind for kind in KINDS if getattr(told, kind)]
    if len(named) != 1:
        raise Failure(
            f"teacher: give one of {', '.join(KINDS)}; got {', '.join(named) or 'none'} "
            "('recorded: true' where the data hold its answers)"
        )
    if told.recorded or told.api:  # its answers stand in the data by now
        return Recorded()
    with within(f"teacher.{named[0]}"):
        if told.model is not None:
            return Local(text.load(resolved(told.model), **options(told)))
        return Local(_on_base(student, told.adapter))


def _on_base(student: Any, adapter: str | None) -> AdaptedLM:
    """The student's base model, with another adapter or none; nothing is copied."""
    if not isinstance(student, AdaptedLM):
        raise Failure(
            "the student trains all its weights, so no base model stays; give 'student.lora', or "
            "name the model by 'teacher.model'"
        )
    return student.base() if adapter is None else student.other(adapter)


def options(told: Any) -> dict[str, Any]:
    """What goes to ``from_pretrained``."""
    names = ("dtype", "revision", "device_map", "trust_remote_code")
    return {name: getattr(told, name) for name in names}
