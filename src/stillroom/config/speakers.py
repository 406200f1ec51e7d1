"""All teachers of a recipe."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any

from stillroom.config.foreign import across
from stillroom.config.recipe import Recipe
from stillroom.config.stored import told_by
from stillroom.config.taught import Taught, taught
from stillroom.config.values import within
from stillroom.core import Failure, Teacher
from stillroom.data.text import Renderer
from stillroom.engine.job import Job
from stillroom.teachers.routed import Routed


def trained(recipe: Recipe, build: Callable[..., Job], *, ready: bool) -> dict[str, Taught | None]:
    """The teachers that are trained first (``taught.taught``), by name; None for the others."""
    return {k: taught(one, build, ready=ready) for k, one in recipe.spoken.items()}


def teachers(  # noqa: PLR0913 - what was made of each section
    recipe: Recipe,
    made: Mapping[str, Taught | None],
    student: Any,
    renderer: Renderer | None,
    splits: Mapping[str, Any],
    *,
    given: Teacher | Mapping[str, Teacher] | None = None,
    world: Any = None,
    ask: bool = True,
) -> dict[str, Teacher]:
    """What the method calls its teachers: by name, or several behind one that routes rows to them.

    Args:
        recipe: tells of them.
        made: those that were trained first.
        student: lends its base model.
        renderer: of the student's texts; None where the data are none.
        splits: all data.
        given: a teacher given as an object in place of the recipe's only one, or several by name.
        world: that the data are of.
        ask: whether scores that a store lacks are made.

    Raises:
        Failure: the method calls teachers that are not told of.
    """
    found: dict[str, Teacher] = {}
    called = recipe.method.needs.teachers
    if lacks := sorted(called - set(recipe.teachers)) if len(called) > 1 else []:
        raise Failure(
            f"{type(recipe.method).__name__} calls its teachers {', '.join(sorted(called))} by "
            f"name, and there is no {', '.join(lacks)}: give a recipe with teachers"
        )
    tokenizer = renderer and renderer.tokenizer
    for name, one in recipe.spoken.items():
        own = made.get(name)
        with within(f"teachers.{name}") if recipe.teachers else nullcontext():
            object_ = given.get(name) if isinstance(given, Mapping) else given
            said = object_ or told_by(
                one, student, tokenizer, splits, world=world, made=own, ask=ask
            )
            found[name] = across(one, said, renderer, splits, world, own)
    return {"teacher": Routed(found)} if recipe.data.route and recipe.teachers else found
