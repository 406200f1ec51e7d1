"""Tiny worlds that every contract runs in: a text world of 11 tokens and 3 classes of points.

``world_for`` picks by the literals of a method, ``job`` makes a whole run of it, ``steps`` takes
the steps through the engine's own front door and reads what they left in the run folder.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from stillroom import catalogue
from stillroom.core import Batch, Method, Teacher
from stillroom.data.items import ItemData
from stillroom.data.retelling import Retelling
from stillroom.data.streams import Data
from stillroom.data.text import Example, Renderer, TextData
from stillroom.engine import checkpoint
from stillroom.engine.record import Record
from stillroom.engine.settings import Eval, Optimizer, RunOptions, Train
from stillroom.engine.training import Job, train
from stillroom.evaluation.suite import Suite
from stillroom.models import text
from stillroom.models.classes import Classifier
from stillroom.rollouts.sampling import Sampling
from stillroom.teachers.foreign import Foreign
from stillroom.teachers.local import Local
from stillroom.teachers.recorded import Recorded

PAD, EOS, VOCABULARY = 0, 1, 11
EXAMPLES = 8
LENGTHS = [(1, 3), (4, 1), (2, 5), (3, 2), (1, 1), (4, 4), (2, 1), (3, 3)]
"""Tokens of prompt and answer (before its end) of each example: no two rows of a batch alike."""
END = "<eos>"
OURS = ("<pad>", END, "a", "b", "c", "d", "ab", "abc", "cd", "da", "bc")
THEIRS = ("<pad>", "d", "c", "b", "a", "da", "dab", "ca", END, "bc", "cc", "ba", "bd")
"""Tokens of a student and of a teacher with another tokenizer, by id; 0 pads both."""
METRICS = {
    "text": ("likelihood", "generation", "critic"),
    "classes": ("accuracy", "two_heads"),
    "many": ("many_labels",),
}
SIZES = {"num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 24}


@dataclass(frozen=True, kw_only=True)
class World:
    """Networks and data with numbers of their own, the same at every call.

    ``exact``: float64, and networks that compute in nothing less and draw no random numbers.
    Otherwise float32 with dropout, so that a stray draw shows. ``texts``: further answers to each
    prompt, by column. ``change`` is done to each batch, and to those within it. Classes are of
    points, or of images (``maps``), and of these an example may have several (``many``).
    """

    kind: str
    exact: bool = False
    maps: bool = False
    many: bool = False
    texts: frozenset[str] = frozenset()
    change: Callable[[Batch], Batch] = lambda batch: batch

    def student(self) -> Any:
        return self._network(seed=1, width=8)

    def teacher(self, method: Method, seed: int = 2) -> Teacher:
        """Recorded where its text is enough, as users have it; else a wider network."""
        if method.needs.teacher <= {"text"}:
            return Recorded()
        if "spans" in method.needs.teacher:
            return self.foreign(THEIRS)
        return Local(self._network(seed=seed, width=12))

    def foreign(self, words: Sequence[str]) -> Foreign:
        """A teacher whose tokens are these, one of which ends an answer."""
        own, other = (Renderer(spelling(w), (w.index(END),)) for w in (OURS, words))
        sets: list[Any] = [self.data(split) for split in ("train", "validation", "test")]
        network = self._network(seed=2, width=12, vocabulary=len(words), stop=words.index(END))
        return Foreign(network, Retelling(own, other, sets))

    def _network(self, *, seed: int, width: int, **words: int) -> Any:
        make: Any = _language_model if self.kind == "text" else _classifier
        make = _convolutional if self.maps else make
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            network = make(width, self.exact, **words)
            return network.double() if self.exact else network

    def data(self, stream: str = "train") -> Data:
        seed = sum(map(ord, stream))
        shape = (1, 4, 4) if self.maps else (4,)
        told = (self.exact, shape, self.many)
        made = _texts(seed, self.texts) if self.kind == "text" else _points(seed, *told)
        return Changed(made, self.change)


def _language_model(width: int, exact: bool, vocabulary: int = VOCABULARY, stop: int = EOS) -> Any:
    sizes = {**SIZES, "hidden_size": width, "intermediate_size": 2 * width}
    if exact:  # of a llama the norms and the rotation run in float32 whatever its dtype
        return text.build("windowed", vocabulary, stop, PAD, **sizes)
    return text.build("llama", vocabulary, stop, PAD, **sizes, attention_dropout=0.1)


@cache
def spelling(words: Sequence[str]) -> PreTrainedTokenizerFast:
    """A byte-level BPE with these tokens, of which those in angles are special.

    A word of several letters is merged from the word before its last letter, and that.
    """
    ids = {word: i for i, word in enumerate(words)}
    merges = [(word[:-1], word[-1]) for word in words if len(word) > 1 and word.isalpha()]
    made = Tokenizer(models.BPE(ids, merges))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.decoder = decoders.ByteLevel()
    told = {"eos_token": END, "pad_token": "<pad>", "clean_up_tokenization_spaces": False}
    return PreTrainedTokenizerFast(tokenizer_object=made, **told)


def _classifier(width: int, exact: bool) -> Classifier:
    inner = [nn.Identity()] if exact else [nn.Dropout(0.1), nn.BatchNorm1d(width)]
    return Classifier(nn.Sequential(nn.Linear(4, width), *inner, nn.Tanh(), nn.Linear(width, 3)))


def _convolutional(width: int, exact: bool) -> Classifier:
    inner = [nn.Identity()] if exact else [nn.Dropout(0.1), nn.BatchNorm2d(width)]
    convs = [nn.Conv2d(1, width, 3, padding=1), *inner, nn.Tanh(), nn.Conv2d(width, width, 3)]
    pool = [nn.Sigmoid(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return Classifier(nn.Sequential(*convs, *pool, nn.Linear(width, 3, bias=False)))


def _texts(seed: int, further: frozenset[str] = frozenset()) -> TextData:
    draw = torch.Generator().manual_seed(seed)
    turn = seed % EXAMPLES  # another stream has its lengths in another order
    examples = []
    for prompt, answer in LENGTHS[turn:] + LENGTHS[:turn]:
        ids = torch.randint(2, VOCABULARY, (prompt + answer,), generator=draw).tolist()
        told, said = (tuple(part) for part in (ids[:prompt], [*ids[prompt:], EOS]))
        made = Example("", "", told, said, asked="".join(OURS[i] for i in told))
        chain = tuple(2 + (i + prompt) % (VOCABULARY - 2) for i in ids[:prompt])
        worse = tuple(2 + (3 * i + answer) % (VOCABULARY - 2) for i in chain)
        second = {"cot": (*chain, *said), "rejected": (*worse, EOS)}
        others = {name: replace(made, completion_ids=second[name]) for name in sorted(further)}
        examples.append(replace(made, others=others))
    return TextData(examples, PAD)


def _points(seed: int, exact: bool, shape: Sequence[int] = (4,), many: bool = False) -> ItemData:
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(EXAMPLES, *shape, generator=draw, dtype=torch.float64)
    labels = torch.randint(0, 3, (EXAMPLES,), generator=draw)
    if many:
        labels = torch.randint(0, 2, (EXAMPLES, 3), generator=draw)
    return ItemData((x if exact else x.float(), labels))


class Changed:
    """Data whose batches something is done to; what else it has is reached as before."""

    def __init__(self, data: Data, change: Callable[[Batch], Batch]) -> None:
        self.data, self.change = data, change

    def __len__(self) -> int:
        return len(self.data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.data, name)

    def batch(self, indices: Sequence[int]) -> Batch:
        batch = self.data.batch(indices)
        within = {k: self.change(v) for k, v in batch.items() if isinstance(v, Batch)}
        return self.change(batch).add(**within)


def world_for(method: type[Method]) -> list[World]:
    """The worlds that a method's own literals ask for."""
    if method.modality == "text":
        return [World(kind="text")]
    signals = method.needs.teacher | method.needs.student
    if method.modality == "image" or signals & {"features", "maps"}:
        return [World(kind="classes", maps="maps" in signals, many=method.needs.many_labels)]
    if method.modality == "any":
        return [World(kind="text"), World(kind="classes")]
    raise LookupError(f"tests/worlds.py has no world of modality {method.modality!r} yet: add it")


def every_world() -> list[tuple[str, World]]:
    """Each name of the catalogue with each of its worlds, for ``parametrize``."""
    return [
        (name, w) for name in catalogue.names("methods") for w in world_for(catalogue.load(name))
    ]


def label(value: Any) -> str:
    """How a parameter of a test is named."""
    return value.kind if isinstance(value, World) else str(value)


def job(method: Method, world: World, **changes: Any) -> Job:
    """A run of a method: ``changes`` are fields of Train, Eval, RunOptions, Sampling or Job.

    Networks are made anew, so a job serves for one run. ``metrics=True`` evaluates with all that
    the world has numbers for.
    """
    world = replace(world, texts=frozenset(method.needs.texts))
    told: dict[str, Any] = {"steps": 3, "batch": 4, "lr": 0.05, "every": None, "max_new_tokens": 4}
    told |= changes
    steered = method.needs.metrics
    numbers = METRICS["many" if world.many else world.kind]
    measured = numbers if told.pop("metrics", False) or steered else ()
    if steered and told["every"] is None:
        told["every"] = 1

    def made(cls: Any) -> Any:
        own = {f.name for f in fields(cls)} & set(told)
        return cls(**{name: told.pop(name) for name in own})

    parts = {"train": made(Train), "eval": made(Eval), "run": made(RunOptions)}
    sampling = made(Sampling)
    plainly = replace(world, change=World.change)  # what is measured steers some methods
    splits = {name: plainly.data(name) for name in ("validation", "test")}
    names = sorted(method.needs.teachers, reverse=True)
    names = ["teacher", "peer"] if method.needs.several else names
    given = {
        "student": world.student(),
        "teachers": {name: world.teacher(method, 2 + i) for i, name in enumerate(names)},
        "streams": {name: world.data(name) for name in sorted(method.streams())},
        "suite": Suite(measured, splits, sampling=sampling) if measured else None,
        "sampling": sampling,
    }
    return Job(method=method, **{**given, **parts, **told})


@dataclass(frozen=True)
class Trace:
    """What a run left behind: the numbers of each step, and the states that were saved."""

    logs: list[dict[str, float]]
    states: dict[int, Any]
    """``{step: {"networks": ..., "optimizers": ...}}``; 0 is before the first step."""

    @property
    def final(self) -> Any:
        return self.states[max(self.states)]["networks"]


def plain_sgd(method: Method, world: World, **changes: Any) -> Job:
    """A run whose weights are linear in its gradients, so that no difference is made larger."""
    told = {"steps": 4, "batch": EXAMPLES, "lr": 0.2, "clip": None, "keep": 5}
    return job(method, world, **{**told, "optimizer": Optimizer(name="sgd"), **changes})


def steps(given: Job, n: int | None = None, folder: Path | None = None) -> Trace:
    """Takes all steps of a job (``n`` replaces how many), or goes on in the folder of another."""
    if folder is None:
        with tempfile.TemporaryDirectory() as place:
            return steps(given, n, Path(place) / "run")
    if n is not None:
        given = replace(given, train=replace(given.train, steps=n))
    train(given, folder)
    lines = Record(folder).lines("metrics.jsonl")
    logs = [_without_times(line) for line in lines if any(k.startswith("lr/") for k in line)]
    saved = checkpoint.saved(folder / "checkpoints")
    return Trace(logs, {checkpoint.step_of(p): checkpoint.load(p)["players"] for p in saved})


def _without_times(line: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in line.items() if not name.startswith("time/")}


def broken_off(make: Callable[[], Job], at: int, folder: Path) -> tuple[Trace, Trace]:
    """The same run in one go, and taken up again by fresh objects from its save at step ``at``."""

    def saving() -> Job:
        told = make()
        every = replace(told.eval, every=at)
        return replace(told, eval=every, run=replace(told.run, keep=told.train.steps + 1))

    whole = steps(saving(), folder=folder / "whole")
    shutil.copytree(folder / "whole", folder / "again")
    (folder / "again" / "result.json").unlink()
    shutil.rmtree(folder / "again" / "student")
    for place in checkpoint.saved(folder / "again" / "checkpoints"):
        if checkpoint.step_of(place) > at:
            shutil.rmtree(place)
    return whole, steps(saving(), folder=folder / "again")


def gap(one: Any, other: Any) -> float:
    """The largest difference between two trees of tensors and numbers; they must look alike."""
    if isinstance(one, Tensor):
        assert one.shape == other.shape
        if not one.numel():
            return 0.0
        worst = (one.detach().double() - other.detach().double()).abs().max()
        return float("inf") if worst.isnan() else float(worst)
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        return max((gap(one[name], other[name]) for name in one), default=0.0)
    if isinstance(one, list | tuple):
        assert len(one) == len(other)
        return max((gap(a, b) for a, b in zip(one, other, strict=True)), default=0.0)
    if isinstance(one, bool | int | float):
        return abs(one - other)
    assert one == other
    return 0.0
