"""The one loop that writes answers: batched, cached, with one network or several in lockstep."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from stillroom.core import Failure
from stillroom.models.text import CausalLM
from stillroom.models.view import tokens

Choose = Callable[[Sequence[Tensor], Tensor, int], tuple[Tensor, Mapping[str, Tensor]]]
"""``choose(logits, rows, t)``: of the [B, V] logits of each network, which answers these are [B],
and how many tokens they have, to a column for each [B], and numbers [B] to note of it by name."""


@dataclass(frozen=True)
class Answers:
    """Tokens of each answer, and what was noted of each token: [tokens of all answers] by name."""

    tokens: list[list[int]]
    notes: Mapping[str, Tensor]


class _Reader:
    """A network that reads on, with a cache of what it has read."""

    def __init__(self, model: CausalLM, prompts: tuple[Tensor, Tensor, Tensor], n: int) -> None:
        self.model, self.cache = model, DynamicCache(config=model.model.config)
        self.logits = model.next_logits(*prompts, self.cache).repeat_interleave(n, 0)
        if n > 1:
            self.cache.batch_repeat_interleave(n)

    def read(self, token: Tensor, place: Tensor, real: Tensor) -> None:
        self.logits = self.model.next_logits(token[:, None], place, real, self.cache)


def decode(
    models: Sequence[CausalLM], prompts: Sequence[Sequence[int]], n: int, limit: int, choose: Choose
) -> Answers:
    """``n`` answers to each prompt, in prompt order, of at most ``limit`` tokens.

    All networks read the same. Tokens and stop ids are those of the first; a stop id that came is
    kept. The answers of a prompt share its prefix: it is read once, then its cache is repeated.

    Raises:
        Failure: a prompt with ``limit`` more would not fit a model's context.
    """
    _check_fits(models, prompts, limit)
    own, device = models[0], models[0].model.device
    ids, real = _left_padded(prompts, device)
    positions = (real.long().cumsum(1) - 1).clamp_min(0)
    readers = [_Reader(model, (ids, positions, real), n) for model in models]
    real = real.repeat_interleave(n, 0)
    place = positions[:, -1:].repeat_interleave(n, 0)
    stops = torch.tensor(own.stop_ids, device=device)
    rows = torch.arange(len(real), device=device)  # which answer each row of the caches writes
    drawn = torch.zeros(len(rows), limit, dtype=torch.long, device=device)
    lengths = torch.full((len(rows),), limit, device=device)
    alive = torch.ones(len(rows), dtype=torch.bool, device=device)
    noted: dict[str, Tensor] = {}
    for t in range(limit):
        columns, notes = choose([reader.logits for reader in readers], rows, t)
        token = tokens(own, columns)
        drawn[rows, t] = token
        for name, value in notes.items():
            noted.setdefault(name, value.new_zeros(drawn.shape))[rows, t] = value
        ended = torch.isin(token, stops) & alive
        lengths[rows[ended]] = t + 1
        alive &= ~ended
        if not own.anywhere(bool(alive.any())) or t + 1 == limit:
            break
        if alive.sum() * 2 <= len(rows):  # finished rows cost as much as living ones: drop them
            kept = alive.nonzero().squeeze(1) if alive.any() else rows.new_zeros(1)
            rows, token, real, place = rows[kept], token[kept], real[kept], place[kept]
            alive = alive[kept]
            for reader in readers:
                reader.cache.batch_select_indices(kept)
        real = torch.cat([real, real.new_ones(len(rows), 1)], 1)
        place = place + 1
        for reader in readers:
            reader.read(token, place, real)
    said = torch.arange(limit, device=device) < lengths[:, None]
    answers = [row[:k] for row, k in zip(drawn.tolist(), lengths.tolist(), strict=True)]
    return Answers(answers, {name: values[said] for name, values in noted.items()})


def _check_fits(models: Sequence[CausalLM], prompts: Sequence[Sequence[int]], limit: int) -> None:
    longest = max(len(p) for p in prompts)
    for model in models:
        if model.context is not None and longest + limit > model.context:
            raise Failure(
                f"a prompt of {longest} tokens and max_new_tokens {limit} exceed the context of "
                f"{model.context}: shorten the prompts or lower max_new_tokens"
            )


def _left_padded(prompts: Sequence[Sequence[int]], device: Any) -> tuple[Tensor, Tensor]:
    length = max(len(p) for p in prompts)
    ids = torch.zeros(len(prompts), length, dtype=torch.long)
    real = torch.zeros(len(prompts), length, dtype=torch.bool)
    for i, prompt in enumerate(prompts):
        ids[i, length - len(prompt) :] = torch.tensor(prompt)
        real[i, length - len(prompt) :] = True
    return ids.to(device), real.to(device)
