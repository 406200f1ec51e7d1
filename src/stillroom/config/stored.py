"""Scores of a teacher that a store keeps: found, or made once by the model or server named."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stillroom.config import served
from stillroom.config.recipe import Recipe
from stillroom.config.specs import TeacherSpec
from stillroom.config.teachers import differs, options, teacher
from stillroom.config.values import within
from stillroom.core import Failure, Teacher
from stillroom.data.text import TextData
from stillroom.engine.parallel import Processes
from stillroom.models import text
from stillroom.models.sources import resolved
from stillroom.models.text import CausalLM
from stillroom.store.arrays import Arrays
from stillroom.store.requests import Identity
from stillroom.teachers.cached import differences
from stillroom.teachers.scoring import missing, score
from stillroom.teachers.stored import Stored
from stillroom.teachers.watching import counted
from stillroom.teachers.writing import weights_of, words

ROOM = "signals"
"""Folder of a store in which scores are."""


def told_by(  # noqa: PLR0913 - what was made of each section
    recipe: Recipe,
    student: Any,
    tokenizer: Any,
    splits: Mapping[str, Any],
    *,
    world: Any = None,
    made: Any = None,
    ask: bool = True,
) -> Teacher:
    """The recipe's teacher: what a store keeps of it, or itself."""
    if recipe.teacher.signals is None:
        return teacher(recipe, student, tokenizer, world, made)
    if recipe.teacher.api is not None and recipe.teacher.store is None:
        return served.live(recipe, tokenizer)
    data = [texts for texts in splits.values() if isinstance(texts, TextData)]
    budget = recipe.train.tokens_per_micro
    return stored(recipe.teacher, tokenizer, data, ask=ask, budget=budget)


def stored(
    told: TeacherSpec,
    tokenizer: Any,
    data: Sequence[TextData],
    *,
    ask: bool = True,
    budget: int = 4096,
    network: CausalLM | None = None,
) -> Stored:
    """The scores that ``signals`` tells of, for every sequence of the data.

    The model that is named scores what the store lacks, and is dropped; where nothing is lacking it
    is not loaded. A server that is named is asked for what is lacking alone.

    Args:
        told: names the signals, the store and, where something is lacking, the model.
        tokenizer: the student's.
        data: all sequences.
        ask: False leaves what is lacking as it is.
        budget: tokens that the model reads side by side.
        network: the model, where it is loaded already.

    Raises:
        Failure: the store holds scores of another model, tokenizer or template, or lacks some and
            no model is named; several processes would score; the data are no text.
    """
    if others := [kind for kind in ("recorded", "base", "adapter", "world") if getattr(told, kind)]:
        raise Failure(
            f"teacher.signals: {others[0]!r} gives none to keep; name teacher.model or teacher.api"
        )
    if told.model is not None and told.api is not None:
        raise Failure("teacher.signals: name one of teacher.model and teacher.api")
    if told.store is None:
        raise Failure("teacher.signals: name the folder that keeps them as teacher.store")
    if tokenizer is None or not data:
        raise Failure("teacher.signals: scores of text alone are kept; leave it out")
    with within("teacher.signals"):
        found = Stored(Arrays(Path(told.store) / ROOM, _identity(told, tokenizer)))
        lacks = missing(found, data) if ask else []
        if not lacks:
            return found
        many = f"{len(lacks)} of {sum(map(len, data))} sequences are not in the store {told.store}"
        if told.model is None and told.api is None:
            raise Failure(
                f"{many}, whose {told.signals} are of other data, or of these rendered in another "
                "way: name teacher.model, which scores them"
            )
        if Processes().world > 1:
            raise Failure(
                f"{many} yet, and one process scores them: call 'stillroom collect RECIPE "
                f"--signals {told.signals} ...' before you launch several"
            )
        with counted("scoring", len(lacks)) as tick:
            if told.api is not None:
                served.keep(told, tokenizer, found, data, lacks, tick)
            else:
                network = network or text.load(resolved(str(told.model)), **options(told))
                score(network, found, lacks, budget=budget, tick=tick)
    return found


def _identity(told: TeacherSpec, tokenizer: Any) -> Identity:
    """Whose scores are meant: those of the model that is named, or the only ones that are there.

    Raises:
        Failure: what is there was made with something else, or there is no telling.
    """
    own: dict[str, Any] = {"signal": told.signals, **words(tokenizer)}
    named = told.model or told.api
    if named is not None and (how := differs(told, tokenizer)):
        raise Failure(f"{how}. It cannot score the student's tokens")
    if told.api is not None:
        own |= served.identity(told)
    if told.model is not None:
        fixed = {"revision": told.revision, "trust_remote_code": told.trust_remote_code}
        name, weights = weights_of(told.model, **{k: v for k, v in fixed.items() if v})
        own |= {"model": name, "weights": weights, "dtype": told.dtype}
    there = Arrays.all(Path(told.store or "") / ROOM)
    meant = [i for i in there if all(i[k] == own.get(k, i[k]) for k in ("signal", "model"))]
    fits = [i for i in meant if {**i, **own} == i]
    if len(fits) == 1:
        return fits[0]
    if fits:
        names = ", ".join(sorted(i["model"] for i in fits))
        raise Failure(f"the store {told.store} holds those of {names}: name one as teacher.model")
    if meant:
        how = "; or ".join(differences(i, {**i, **own}) for i in meant)
        raise Failure(
            f"the store {told.store} holds {told.signals}, but {how}. Give another store, or what "
            "it was made with"
        )
    if named is None:
        holds = ", ".join(sorted(f"{i['signal']} of {i['model']}" for i in there)) or "none"
        raise Failure(
            f"the store {told.store} holds no {told.signals} (it holds: {holds}): name "
            "teacher.model, which gives them"
        )
    return own
