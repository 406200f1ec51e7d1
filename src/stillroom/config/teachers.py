"""The teacher that a recipe tells of."""

from __future__ import annotations

from typing import Any

from transformers import AutoTokenizer

from stillroom.config.recipe import Recipe
from stillroom.config.specs import TeacherSpec
from stillroom.config.values import within
from stillroom.core import Failure, Teacher
from stillroom.models import text
from stillroom.models.adapters import AdaptedLM
from stillroom.models.sources import resolved
from stillroom.teachers.local import Local
from stillroom.teachers.recorded import Recorded

KINDS = ("recorded", "model", "api", "base", "adapter", "world")


def teacher(recipe: Recipe, student: Any, tokenizer: Any, world: Any = None) -> Teacher:
    """The teacher that the recipe's ``teacher`` names; ``student`` lends its base model.

    One in this process whose tokenizer is not the student's has nothing to say of the student's
    tokens: where the method learns from its text alone it counts as recorded, else it is refused.
    ``tokenizer`` is the student's, None where the data are no text.

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
            return world.teacher()
        if told.model is not None:
            if tokenizer is not None and (how := differs(told, tokenizer)):
                if recipe.method.needs.teacher <= {"text"}:
                    return Recorded()
                raise Failure(
                    f"{how}. It cannot score the student's tokens; learn from its text: write its "
                    "answers with 'stillroom collect', and set teacher.recorded"
                )
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


def differs(told: TeacherSpec, tokenizer: Any) -> str | None:
    """How the teacher's tokenizer differs from the student's, if it does; sizes say nothing.

    Raises:
        Failure: the teacher has none.
    """
    name = str(told.model)
    try:
        other = AutoTokenizer.from_pretrained(
            resolved(name), trust_remote_code=told.trust_remote_code
        )
    except (OSError, ValueError) as error:
        raise Failure(
            f"{name!r} has no tokenizer that can be loaded, to compare with the student's: {error}"
        ) from error
    mine, theirs = tokenizer.get_vocab(), other.get_vocab()
    if mine == theirs:
        return None
    same = sum(theirs.get(word) == id for word, id in mine.items())
    return (
        f"{name!r} has another tokenizer than the student ({len(theirs)} and {len(mine)} tokens, "
        f"of which {same} have the same id)"
    )


def options(told: Any) -> dict[str, Any]:
    """What goes to ``from_pretrained``."""
    names = ("dtype", "revision", "device_map", "trust_remote_code")
    return {name: getattr(told, name) for name in names}
