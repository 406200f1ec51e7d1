"""Tiny runs in processes of their own: killed, taken up again, side by side."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import worlds
from torch import nn

from stillroom import catalogue
from stillroom.api import distill
from stillroom.cli import main
from stillroom.core import Batch
from stillroom.data.marked_orders import EOS, PAD, VOCABULARY, MarkedOrders
from stillroom.engine.training import train
from stillroom.methods.delta_kd import DeltaKD
from stillroom.methods.plad import PLaD
from stillroom.methods.preference import Preference
from stillroom.models.text import build

WORLD = {"name": "marked_orders", "prompts": 64}
WINDOWED = {"model_type": "windowed", "window": 2, "sinks": 5}
LR = {"student": [{"peak": 5e-3, "warmup": 3, "until": 12}, {"peak": 1e-3}], "critic": 3e-3}
SELECTED = {"metrics": ["accuracy"], "select": "class_nll"}

# A server that has imported everything once: each process of a test is then forked in no time.
_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(["stillroom.api"])


def distil(method: Any, out: Path, **given: Any) -> Any:
    """One run; ``train`` and so on are added to what every tiny run has."""
    run = {"threads": 1, **given.pop("run", {})}
    sampling = {"max_new_tokens": 9, **given.pop("sampling", {})}
    return distill(method, out=out, run=run, sampling=sampling, **given)


def gad(out: Path, *, steps: int, every: int, double: bool = False, **train: Any) -> Any:
    """Warm-up, joined critic, critic alone and adversarial stage, each of some steps."""
    told = {"name": "gad", "group": 3, "warmup": 0.4, "critic_from": 0.5, "critic_alone": 0.2}
    return distil(
        {**told, "head_start": 1, "prompts": 4, "kl_weight": 0.1},
        out,
        steps=steps,
        **_language(double),
        train={"batch": 8, "lr": LR, **train},
        eval={"every": every, "metrics": ["likelihood", "marked_orders"], "select": "nll"},
    )


def gad_pooled(out: Path, *, steps: int, every: int, double: bool = False, **train: Any) -> Any:
    """The critic alone, then the adversarial stage; the memory of pairs runs over."""
    told = {"name": "gad", "group": 3, "warmup": 0.0, "critic_alone": 0.3, "pooled": {"replay": 30}}
    return distil(
        {**told, "kl_weight": 0.1},
        out,
        steps=steps,
        **_language(double),
        train={"batch": 4, "lr": 3e-3, **train},
        eval={"every": every, "metrics": ["likelihood", "critic"]},
    )


def gkd(out: Path, *, steps: int, every: int, double: bool = False, **train: Any) -> Any:
    return distil(
        "gkd",
        out,
        steps=steps,
        **_language(double),
        teacher=language_model(1, double=double),
        train={"batch": 8, "lr": 3e-3, **train},
        eval={"every": every, "metrics": ["agreement"]},
    )


def kd(out: Path, **told: Any) -> Any:
    return _scored({"name": "kd", "label_weight": 0.3}, out, **told)


def taid(out: Path, **told: Any) -> Any:
    return _scored({"name": "taid", "alpha": 0.3, "beta": 0.5}, out, **told)


def atkd(out: Path, **told: Any) -> Any:
    return _scored("atkd", out, **told)


def minillm(out: Path, **told: Any) -> Any:
    return _scored(
        {"name": "minillm", "samples": 2, "epochs": 2, "corpus_weight": 0.0}, out, **told
    )


def skd(out: Path, **told: Any) -> Any:
    plain = {"sample_temperature": 1.0, "sample_top_p": 1.0}
    return _scored({"name": "skd", "top_k": 3, **plain}, out, **told)


def dpkd(out: Path, **told: Any) -> Any:
    return _scored({"name": "dpkd", "level": "sequence"}, out, **told)


def ammd(out: Path, **told: Any) -> Any:
    return _scored({"name": "ammd", "discount": 0.9, "critic_steps": 2}, out, **told)


def self_evolution_kd(out: Path, **told: Any) -> Any:
    return _scored({"name": "self_evolution_kd", "threshold": "quantile"}, out, **told)


def delta_kd(out: Path, *, steps: int, every: int, double: bool = False) -> Any:
    """Two teachers by name, which is more than ``distill`` takes as objects."""
    method = DeltaKD(strength=0.8, top_k=4, label_weight=0.25)
    world = worlds.World(kind="text", exact=double)
    return train(worlds.job(method, world, steps=steps, every=every), out)


def preference(out: Path, *, steps: int, every: int, double: bool = False) -> Any:
    world = worlds.World(kind="text", exact=double)
    method = Preference(smoothing=0.1, anchor=0.5)
    return train(worlds.job(method, world, steps=steps, every=every), out)


def plad(out: Path, *, steps: int, every: int, double: bool = False) -> Any:
    world = worlds.World(kind="text", exact=double)
    method = PLaD(warmup=0.34, version="margin", beta=3.0)
    return train(worlds.job(method, world, steps=steps, every=every, lr=0.02), out)


def _scored(
    method: Any, out: Path, *, steps: int, every: int, double: bool = False, **train: Any
) -> Any:
    """The teacher is a network, asked about the words of the data."""
    return distil(
        method,
        out,
        steps=steps,
        **_language(double),
        teacher=language_model(1, double=double),
        train={"batch": 8, "lr": 3e-3, **train},
        eval={"every": every, "metrics": ["agreement"]},
    )


def distillm(out: Path, *, steps: int, every: int, double: bool = False, **train: Any) -> Any:
    """The buffer runs over, new and old answers and data take turns, phi rises."""
    told = {"name": "distillm", "start": 0.7, "rise": 0.02, "tolerance": 0.0, "capacity": 20}
    return distil(
        {**told, "since": "validation", "form": "reverse"},
        out,
        steps=steps,
        **_language(double),
        teacher=language_model(1, double=double),
        train={"batch": 8, "lr": 3e-3, **train},
        eval={"every": every, "metrics": ["likelihood"]},
    )


def kid(out: Path, *, steps: int, every: int, double: bool = False, **train: Any) -> Any:
    return distil(
        {"name": "kid", "share": 0.5, "sample_temperature": 1.0},
        out,
        steps=steps,
        **_language(double),
        teacher=language_model(1, double=double),
        train={"batch": 8, "lr": 3e-3, **train},
        eval={"every": every, "metrics": ["agreement"]},
    )


def ps_kd(out: Path, *, steps: int, every: int, double: bool = False, **train: Any) -> Any:
    """Thirty examples in batches of eight: passes end in the middle of a batch.

    Dropout makes the random state count, but not where two processes are to equal one.
    """
    told = {"batch": 8, "lr": 1e-2, **train}
    given = _classes(double, dropout=0.0 if double else 0.2)
    return distil("ps_kd", out, steps=steps, **given, train=told, eval={**SELECTED, "every": every})


def rkd(out: Path, *, steps: int, every: int, double: bool = False, **train: Any) -> Any:
    torch.manual_seed(2)
    layers = nn.Linear(4, 12), nn.Tanh(), nn.Linear(12, 3)
    return distil(
        {"name": "rkd", "label_weight": 0.5},
        out,
        steps=steps,
        **_classes(double, dropout=0.0),
        teacher=_typed(nn.Sequential(*layers), double),
        train={"batch": 8, "lr": 1e-2, **train},
        eval={**SELECTED, "every": every},
    )


def weighed(batch: Batch) -> Batch:
    """Weighs examples, so that the counts of any two parts differ."""
    weights = torch.tensor([1.0, 0.5, 1.0, 0.25, 1.0], dtype=torch.float64)
    return batch.add(mask=weights[batch.id % 5])


def on_classes(out: Path, names: Sequence[str]) -> None:
    """Exact runs of methods at their defaults, one after the other, each in its folder."""
    for name in names:
        method = catalogue.load(name)()
        (world,) = [w for w in worlds.world_for(type(method)) if w.kind == "classes"]
        exact = replace(world, exact=True, change=weighed)
        train(worlds.plain_sgd(method, exact), out / name)


def _classes(double: bool, dropout: float) -> dict[str, Any]:
    torch.manual_seed(0)
    x, y = _typed(torch.randn(40, 4), double), torch.randint(3, (40,))
    layers = nn.Linear(4, 8), nn.Tanh(), nn.Dropout(dropout), nn.Linear(8, 3)
    return {
        "student": _typed(nn.Sequential(*layers), double),
        "data": {"train": (x[:30], y[:30]), "validation": (x[30:], y[30:])},
    }


def _language(double: bool) -> dict[str, Any]:
    given: dict[str, Any] = {"student": {"lm": WINDOWED}, "data": {"world": WORLD}}
    if double:
        tokenizer = MarkedOrders().tokenizer()
        given |= {"student": language_model(0, double=True), "tokenizer": tokenizer}
    return given


def language_model(seed: int, *, double: bool = False) -> Any:
    """A model with fresh weights for the words of the world."""
    torch.manual_seed(seed)
    sizes = {k: v for k, v in WINDOWED.items() if k != "model_type"}
    return _typed(build("windowed", len(VOCABULARY), EOS, PAD, **sizes), double)


def _typed(thing: Any, double: bool) -> Any:
    return thing.double() if double else thing


class Child:
    """One process that calls ``work(*args, **kwargs)`` with these variables in its environment."""

    def __init__(
        self, log: Path, work: Callable[..., Any], *args: Any, env: Mapping[str, str], **kwargs: Any
    ) -> None:
        self.log = log
        given = (str(log), dict(env), work, args, kwargs)
        self.process = _SERVER.Process(target=_child, args=given, daemon=True)
        self.process.start()

    def kill(self) -> None:
        assert self.process.pid is not None
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.join()

    def wait(self, seconds: float = 120.0) -> int:
        """The exit code."""
        self.process.join(seconds)
        if self.process.exitcode is None:
            self.kill()
            raise TimeoutError(f"still running after {seconds} s:\n{self.said()}")
        return self.process.exitcode

    def said(self) -> str:
        return self.log.read_text() if self.log.exists() else ""


def alone(log: Path, work: Callable[..., Any], *args: Any, **kwargs: Any) -> Child:
    """A process that knows of no other."""
    return Child(log, work, *args, env={}, **kwargs)


def together(
    world: int, log: Path, work: Callable[..., Any], *args: Any, **kwargs: Any
) -> list[Child]:
    """As many processes as ``torchrun --nproc-per-node`` would start, on one machine."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(world)}
    shared |= {"LOCAL_WORLD_SIZE": str(world)}
    envs = [{**shared, "RANK": str(r), "LOCAL_RANK": str(r)} for r in range(world)]
    logs = [log.with_name(f"{log.name}.{r}") for r in range(world)]
    return [Child(to, work, *args, env=env, **kwargs) for to, env in zip(logs, envs, strict=True)]


def until_step(folder: Path, step: int, child: Child, seconds: float = 60.0) -> None:
    """Waits until ``metrics.jsonl`` tells of this step."""
    end, file = time.monotonic() + seconds, folder / "metrics.jsonl"
    while not file.exists() or f'{{"step": {step},'.encode() not in file.read_bytes():
        if time.monotonic() > end or child.process.exitcode is not None:
            raise TimeoutError(f"step {step} never came:\n{child.said()}")
        time.sleep(0.001)


def _child(
    log: str, env: Mapping[str, str], work: Callable[..., Any], args: Any, kwargs: Any
) -> None:
    os.environ.update(env)
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(out, 1)
    os.dup2(out, 2)
    torch.set_num_threads(1)
    try:
        work(*args, **kwargs)
    except Exception as error:
        traceback.print_exc()
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        sys.stderr.flush()
        os._exit(1)
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def apart(work: Callable[..., Any], folders: list[Path], **kwargs: Any) -> Any:
    """The same run, each process told another folder."""
    return work(folders[int(os.environ["RANK"])], **kwargs)


def command(*words: Any) -> None:
    """``stillroom`` with these words."""
    sys.argv = ["stillroom", *map(str, words)]
    main()
