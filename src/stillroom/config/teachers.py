"""The teacher that a recipe tells of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from stillroom.config.recipe import Recipe
from stillroom.config.specs import TeacherSpec
from stillroom.config.values import within
from stillroom.core import Failure, Teacher
from stillroom.data.spelling import same_words
from stillroom.models import classes, text
from stillroom.models.adapters import AdaptedLM
from stillroom.models.sources import resolved
from stillroom.teachers.average import Average
from stillroom.teachers.local import Local
from stillroom.teachers.recorded import Recorded

KINDS = ("recorded", "model", "api", "base", "adapter", "world", "trained", "average")


def teacher(
    recipe: Recipe, student: Any, tokenizer: Any, world: Any = None, made: Any = None
) -> Teacher:
    """The teacher that the recipe's ``teacher`` names; ``student`` lends its base model.

    One in this process whose tokenizer is not the student's has nothing to say of the student's
    tokens: where the method learns from its text alone it counts as recorded, else it is refused.
    ``tokenizer`` is the student's, None where the data are no text; ``made`` is what was trained
    first (``taught.Taught``).

    Raises:
        Failure: none or several are named, or the one named cannot be loaded or has another
            tokenizer.
    """
    told = recipe.teacher
    named = [kind for kind in KINDS if getattr(told, kind)]
    if len(named) != 1:
        raise Failure(
            f"teacher: give one of {', '.join(KINDS)}; got {', '.join(named) or 'none'} "
            "('recorded: true' where the data hold its answers, 'signals' and 'store' where a "
            "store holds its scores)"
        )
    if told.recorded or told.api:  # its answers stand in the data by now
        return Recorded()
    with within(f"teacher.{named[0]}"):
        if told.world:
            if not hasattr(world, "teacher"):
                raise Failure("these data are of no world that has a teacher, as zipf_chain does")
            return Local(world.teacher())
        if told.average is not None:
            return Average(student, told.average)
        if told.model is not None or told.trained is not None:
            spans = "spans" in recipe.method.needs.teacher
            if tokenizer is not None and not spans and (how := differs(told, tokenizer, made)):
                if recipe.method.needs.teacher <= {"text"}:
                    return Recorded()
                raise Failure(
                    f"{how}. It cannot score the student's tokens; take a cross-tokenizer method "
                    "such as span_kd, or learn from its text: write its answers with 'stillroom "
                    "collect', and set teacher.recorded"
                )
            return Local(made.network if made else _loaded(told))
        return Local(_on_base(student, told.adapter))


def _loaded(told: TeacherSpec) -> Any:
    source = resolved(str(told.model))
    if classes.saved(source):
        return classes.load(Path(source))
    return text.load(source, **options(told))


def _on_base(student: Any, adapter: str | None) -> AdaptedLM:
    """The student's base model, with another adapter or none; nothing is copied."""
    if not isinstance(student, AdaptedLM):
        raise Failure(
            "the student trains all its weights, so no base model stays; give 'student.lora', or "
            "name the model by 'teacher.model'"
        )
    return student.base() if adapter is None else student.other(adapter)


def differs(told: TeacherSpec, tokenizer: Any, made: Any = None) -> str | None:
    """How the teacher's tokenizer differs from the student's, if it does; see ``same_words``."""
    other = made.tokenizer if made else tokenizer_of(told)
    if (how := same_words(other, tokenizer)) is None:
        return None
    name = str(told.tokenizer or told.model or "it")
    return f"{name!r} has another tokenizer than the student ({how})"


def tokenizer_of(told: TeacherSpec) -> Any:
    """The tokenizer of the model that is named; raises Failure where it has none."""
    name = str(told.tokenizer or told.model)
    try:
        return AutoTokenizer.from_pretrained(
            resolved(name), trust_remote_code=told.trust_remote_code
        )
    except (OSError, ValueError) as error:
        raise Failure(
            f"{name!r} has no tokenizer that can be loaded, to compare with the student's: {error}"
        ) from error


def options(told: Any) -> dict[str, Any]:
    """What goes to ``from_pretrained``."""
    names = ("dtype", "revision", "device_map", "trust_remote_code")
    return {name: getattr(told, name) for name in names}
