"""The student that a recipe tells of: loaded or made, cut, healed, narrowed, adapted."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from tokenizers import ByteLevelBPETokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from stillroom.config.recipe import Recipe, method_of
from stillroom.config.specs import Cut, Heal
from stillroom.config.teachers import options
from stillroom.config.texts import Texts
from stillroom.config.values import checked, plain, within
from stillroom.core import Failure, Teacher
from stillroom.data.further import ANSWERS, COT
from stillroom.data.rows import Row
from stillroom.data.text import Renderer, TextData
from stillroom.engine.settings import Eval
from stillroom.models import text
from stillroom.models.adapters import adapted
from stillroom.models.between import between
from stillroom.models.cut import cut, same, search
from stillroom.models.sources import fingerprint, resolved
from stillroom.models.view import fit, narrowed
from stillroom.pipelines._stages import code_of, stage
from stillroom.rollouts.sampling import uniform
from stillroom.teachers.local import Local

EOS = "<|endoftext|>"
FROM_DATA = "from-data"


@dataclass
class Beginning:
    """Where a student starts: ``source`` is what ``text.load`` takes, none for fresh weights.

    ``stages`` are the students that it came by, by the name of their row in tables. ``layers`` are
    those that stay of a source that was not cut yet.
    """

    source: str | None
    stages: dict[str, Path] = field(default_factory=dict)
    layers: list[int] | None = None


def seeded(recipe: Recipe) -> None:
    """Begins torch's random numbers where fresh weights of ``student.draw`` begin."""
    seed, draw = recipe.run.seed, recipe.student.draw
    torch.manual_seed(int(uniform(seed, draw) * 2**53) if draw else seed)


def check(recipe: Recipe) -> None:
    """Raises Failure unless the recipe says one way to come by a student."""
    told = recipe.student
    ways = {"model": told.model, "lm": told.lm, "net": told.net, "cut": told.cut}
    ways["trained"] = told.trained
    if len(given := [name for name, way in ways.items() if way is not None]) != 1:
        raise Failure(
            "student: give one of 'model' (a hub name, folder or GGUF file), 'lm' (sizes), 'net' "
            "(a small classifier), 'cut' (layers of a model) and 'trained' (a model that is "
            "trained first); got "
            f"{', '.join(given) or 'none'}"
        )
    if (told.net is None) != (recipe.data.items is None) and told.model is None:
        raise Failure(
            "student.net: goes with data.items, examples with classes; a language model "
            "('student.lm') with text"
        )
    if told.vocab == "view" and told.lm is not None:
        raise Failure("student.vocab: a view freezes the head, and fresh weights must learn theirs")
    if told.cut and (told.cut.layers == "search") == (told.cut.keep is None):
        raise Failure("student.cut: give 'layers: [...]', or 'layers: search' with 'keep'")


def tokenizer_of(recipe: Recipe, texts: Texts) -> Any:
    """The student's tokenizer: the model's own, the one named, or one learned from the text.

    A made-up world has its own, unless one is named, or ``from-data``.
    """
    told = recipe.student
    if texts.world is not None and told.tokenizer is None:
        return texts.world.tokenizer()
    name = told.tokenizer or told.model or (told.cut.from_ if told.cut else None)
    if name is not None and name != FROM_DATA:
        try:
            return AutoTokenizer.from_pretrained(
                resolved(name), trust_remote_code=told.trust_remote_code
            )
        except (OSError, ValueError) as error:
            raise Failure(f"student: cannot load the tokenizer of {name!r}: {error}") from error
    trained = ByteLevelBPETokenizer()
    further = recipe.method.needs.texts
    lines = (_words(row, further) for _, row in texts.rows["train"])
    trained.train_from_iterator(
        lines, vocab_size=told.vocab_size, special_tokens=[EOS], show_progress=False
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=trained._tokenizer,
        eos_token=EOS,
        pad_token=EOS,
        clean_up_tokenization_spaces=False,
    )


def _words(row: Row, texts: Set[str] = frozenset()) -> str:
    """All words of a row, for a tokenizer to learn from: further answers by column included."""
    turns = [str(turn.get("content") or "") for turn in row.get("messages", ())]
    first = ("prompt", "completion", COT)  # whether the row has them or not
    others = sorted({*ANSWERS, *texts}.difference(first) & set(row))
    return "\n".join(
        [*(str(row.get(c, "")) for c in first), *turns, *(str(row[c]) for c in others)]
    )


def beginning(
    recipe: Recipe,
    tokenizer: Any,
    train: Callable[[Renderer], TextData],
    files: Sequence[Any],
    *,
    ready: bool,
) -> Beginning:
    """Where the student starts; cuts it first, where the recipe says so.

    Args:
        recipe: which student.
        tokenizer: the student's.
        train: the training text, for a search over layers.
        files: the files of that text, with hashes.
        ready: False makes do with a model of the right shape instead of a search over layers.
    """
    told = recipe.student
    if told.cut is None:
        return Beginning(told.model and resolved(told.model))
    if not ready and told.cut.layers == "search":
        return Beginning(resolved(told.cut.from_), layers=list(range(told.cut.keep or 0)))
    with within("student.cut"):
        place = _cut(recipe, told.cut, tokenizer, train, files)
    return Beginning(str(place), {"cut": place})


def _cut(
    recipe: Recipe,
    told: Cut,
    tokenizer: Any,
    train: Callable[[Renderer], TextData],
    files: Sequence[Any],
) -> Path:
    source = resolved(told.from_)
    inputs: dict[str, Any] = {"layers": told.layers, **options(recipe.student)}
    inputs["from"] = [told.from_, fingerprint(source)]
    if told.layers == "search":
        inputs |= {"keep": told.keep, "tokens": told.tokens, "files": files}
        inputs["data"] = {**plain(recipe.data), "validation": None, "test": None}
        if recipe.student.vocab == "view":
            inputs["view_size"] = recipe.student.view_size

    def make(folder: Path) -> None:
        model = text.load(source, **options(recipe.student))
        begun = time.process_time()
        found: dict[str, Any] = {"layers": told.layers}
        if told.layers == "search":
            renderer = Renderer(tokenizer, model.stop_ids, recipe.data.train_on)
            data = train(renderer)
            view(recipe, [model], [data], renderer)
            with narrowed(model):
                found = search(model, data, keep=told.keep or 0, tokens=told.tokens)
        made = text.CausalLM(cut(model.model, found["layers"]))
        made.save(folder)
        tokenizer.save_pretrained(folder)
        same(made, text.load(str(folder), **options(recipe.student)))
        note = {**found, "cpu_seconds": time.process_time() - begun, "of": told.from_}
        (folder / "cut.json").write_text(_json(note), encoding="utf-8")

    return stage("cut", make, code=code_of(), **inputs)


def _json(value: Mapping[str, Any]) -> str:
    return json.dumps(value, indent=2) + "\n"


def view(
    recipe: Recipe, models: Sequence[text.CausalLM], data: Iterable[Any], renderer: Renderer | None
) -> None:
    """Narrows models to the tokens of the training text, where the recipe says so."""
    if recipe.student.vocab == "full":
        return
    if renderer is None:
        raise Failure("student.vocab: a view is of text; give 'vocab: full' for other data")
    with within("student.vocab"):
        fit(models, data, renderer, size=recipe.student.view_size)


def student(recipe: Recipe, begin: Beginning, tokenizer: Any) -> text.CausalLM:
    """The network: loaded or fresh, then adapted as the recipe says."""
    told = recipe.student
    if begin.source is not None:
        with within("student.model"):
            made = text.load(begin.source, **options(told))
        if begin.layers is not None:
            made = text.CausalLM(cut(made.model, begin.layers))
    else:
        sizes = dict(told.lm or {})
        kind = sizes.pop("model_type", None)
        if kind is None:
            raise Failure("student.lm.model_type: name the architecture, like llama or windowed")
        made = text.build(
            kind, len(tokenizer), tokenizer.eos_token_id, tokenizer.pad_token_id, **sizes
        )
    return adapted_as(recipe, made)


def moved(recipe: Recipe, student: Any, teachers: Mapping[str, Teacher]) -> None:
    """Moves the student's first weights towards the teacher's, as ``student.near`` says."""
    if not recipe.student.near:
        return
    with within("student.near"):
        teacher = teachers.get("teacher")
        if not isinstance(teacher, Local):
            raise Failure("the teacher must be one network in this process")
        student.load_state_dict(between(student, teacher.network, recipe.student.near))


def adapted_as(recipe: Recipe, made: text.CausalLM) -> text.CausalLM:
    """The network with the adapters that the recipe tells of, if any."""
    if recipe.student.lora is None:
        return made
    with within("student.lora"):
        return adapted(made, **vars(recipe.student.lora))


def heal_recipe(recipe: Recipe, *, logits: bool) -> Recipe:
    """The recipe of the training that comes before: no arms, no evaluation, its own method."""
    told = recipe.student.heal
    heal = Heal(steps=told) if isinstance(told, int) else told
    assert heal is not None
    method = heal.method or ("kd" if logits else "seqkd")
    if any(one.teacher.base or one.teacher.adapter for one in recipe.spoken.values()):
        raise Failure(
            "student.heal: the teacher speaks with the student's own base, which is not healed "
            "yet; heal in a recipe of its own, and give its folder as student.model"
        )
    changes = {"cpu_seconds": None, **heal.train, "steps": heal.steps}
    return dataclasses.replace(
        recipe,
        name="heal",
        method=method_of(method, "student.heal.method"),
        student=dataclasses.replace(recipe.student, heal=None, lora=None),
        train=checked(type(recipe.train), {**plain(recipe.train), **changes}, "student.heal.train"),
        eval=Eval(every=None, samples=0),
        arms={},
    )


def healed(recipe: Recipe, begin: Beginning, train: Callable[[Path], Any], data: Any) -> Beginning:
    """The beginning after a training that is made once and shared by all arms that tell the same.

    Args:
        recipe: of ``heal_recipe``.
        begin: before it.
        train: runs that recipe's job in a folder, and takes it up again there.
        data: what the training text and the models were, hashes included.
    """
    told = recipe.resolved()
    names = ["method", "student", "teachers" if recipe.teachers else "teacher", "train"]
    if recipe.method.needs.rollouts:  # else an arm that samples in another way shares the stage
        names.append("sampling")
    inputs = {name: told[name] for name in names}
    seed = recipe.run.seed
    code = code_of(type(recipe.method))
    place = stage("heal", train, code=code, resume=True, data=data, seed=seed, **inputs)
    return Beginning(str(place / "student"), {**begin.stages, "healed": place / "student"})
