"""What the engine is told: values of the recipe's ``train``, ``eval`` and ``run``."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Annotated, Literal

from annotated_types import Ge, Gt

from stillroom.catalogue import nearest
from stillroom.core import Failure
from stillroom.schedules import Rate

Rates = float | Rate | list[Rate]
Positive = Annotated[float, Gt(0)]


@dataclass(frozen=True, kw_only=True)
class Optimizer:
    """``adamw`` or ``sgd``, one for each player. ``betas`` and ``eps`` are AdamW's."""

    name: Literal["adamw", "sgd"] = "adamw"
    betas: tuple[float, float] = (0.9, 0.999)
    eps: Positive = 1e-8
    momentum: Annotated[float, Ge(0)] = 0.0
    weight_decay: Annotated[float, Ge(0)] = 0.0


@dataclass(frozen=True, kw_only=True)
class Train:
    """How long and how fast.

    Args:
        steps: iterations; each makes as many optimiser steps as the method yields updates.
        cpu_seconds: instead of ``steps``: learns for so long, by this process's CPU seconds over
            all threads (evaluation is not counted). As repeatable as time is.
        batch: examples of one step, over all processes.
        tokens_per_micro: tokens with padding of one micro-batch (an item of another kind counts 1).
        lr: one rate or schedule for all players, or one by player (``default`` for the rest).
        clip: largest norm of a player's gradient, for all or by player (``default`` for the
            rest); null leaves it alone.
        precision: ``bf16`` computes under autocast with float32 weights.
        checkpointing: layers of the student are computed again in the backward pass instead of
            being kept: less memory, about a third more time.
        packing: language models (student, critics, teachers in this process) read several texts in
            one row instead of padding them; a model that would mix them up is refused.
            ``tokens_per_micro`` still counts padding.
        sharding: weights, gradients and moments of all networks, teachers in this process included,
            lie in shares over several processes (FSDP2): less memory for each, more traffic. With
            ``bf16`` layers are gathered in bfloat16, and evaluation computes in it too.
    """

    steps: Annotated[int, Ge(0)] | None = None
    cpu_seconds: Positive | None = None
    batch: Annotated[int, Ge(1)] = 32
    tokens_per_micro: Annotated[int, Ge(1)] = 16384
    lr: Rates | dict[str, Rates] = 1e-4
    clip: Positive | dict[str, Positive] | None = 1.0
    precision: Literal["fp32", "bf16"] = "fp32"
    checkpointing: bool = False
    packing: bool = False
    sharding: bool = False
    optimizer: Optimizer = field(default_factory=Optimizer)

    def __post_init__(self) -> None:
        if (self.steps is None) == (self.cpu_seconds is None):
            raise Failure("train: give either 'steps' or 'cpu_seconds'")
        known = [f.name for f in fields(Rate)]
        if isinstance(self.lr, Mapping) and set(self.lr) & set(known):  # a schedule, misspelt
            wrong = sorted(set(self.lr) - set(known))
            hint = nearest(wrong[0], known) or f"; it has {', '.join(known)}"
            raise Failure(f"train.lr: a schedule has no field {wrong[0]!r}{hint}")
        told = list(self.lr.values()) if isinstance(self.lr, Mapping) else [self.lr]
        for stretches in (t if isinstance(t, list) else [t] for t in told):
            untils = [s.until if isinstance(s, Rate) else None for s in stretches]
            if untils[-1:] != [None] or untils[:-1] != sorted({u for u in untils if u}):
                raise Failure(
                    "train.lr: each stretch of a schedule says until which step it goes, later "
                    f"than the one before; the last says nothing. These say {untils}"
                )

    def check_names(self, players: Sequence[str]) -> None:
        """Raises Failure where ``lr`` or ``clip`` names what does not learn in this run."""
        for setting in ("lr", "clip"):
            told = getattr(self, setting)
            for name in told if isinstance(told, Mapping) else ():
                if name not in players and name != "default":
                    raise Failure(
                        f"train.{setting}.{name}: the method trains {', '.join(players)}, and no "
                        f"{name!r}{nearest(name, [*players, 'default'])}"
                    )

    def rates(self, player: str) -> Sequence[Rate]:
        """The schedule of one player."""
        told = self.lr
        if isinstance(told, Mapping):
            if player not in told and "default" not in told:
                raise Failure(
                    f"train.lr names {sorted(told)} but the method also trains {player!r}: "
                    f"add train.lr.{player} or train.lr.default"
                )
            told = told.get(player, told.get("default"))
        if isinstance(told, Rate):
            return (told,)
        return told if isinstance(told, list) else (Rate(peak=float(told)),)  # type: ignore[arg-type]

    def clip_of(self, player: str) -> float | None:
        if isinstance(self.clip, Mapping):
            return self.clip.get(player, self.clip.get("default"))
        return self.clip


@dataclass(frozen=True, kw_only=True)
class Eval:
    """Evaluation on the validation split, with a checkpoint, every so many steps.

    Args:
        every: steps between; null evaluates and saves at the end only.
        metrics: names of evaluators (files of ``stillroom.evaluation``).
        select: the number whose best reading picks the student that is kept; null keeps the last.
            None is picked that went beyond ``stop``.
        samples: prompts whose answers are shown in the report.
        copies: answers to each prompt of the test split where an evaluator reads answers; the
            validation split gets one.
        answer: a regular expression that finds the final answer in a text, for ``exact_match``: the
            first group of its last match, as in ``#### (.+)``.
        stop: ends the run early: by number of the validation split, how much worse than the best
            so far it may get. The student is then that of an evaluation before.
    """

    every: Annotated[int, Ge(1)] | None = 100
    metrics: tuple[str, ...] = ()
    select: str | None = None
    samples: Annotated[int, Ge(0)] = 6
    copies: Annotated[int, Ge(1)] = 1
    answer: str | None = None
    stop: dict[str, Positive] = field(default_factory=dict)

    def __post_init__(self) -> None:
        try:
            re.compile(self.answer or "")
        except re.error as error:
            raise Failure(f"eval.answer: {self.answer!r} is no pattern: {error}") from error


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """Seed, threads (null leaves torch's choice), and how many checkpoints stay."""

    seed: Annotated[int, Ge(0)] = 0
    threads: Annotated[int, Ge(1)] | None = None
    keep: Annotated[int, Ge(1)] = 2
