"""Answers sampled from a language model: batched, cached, reproducible sample by sample."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor
from torch.nn.functional import pad

from stillroom.data.draws import uniform
from stillroom.models.text import CausalLM, mode
from stillroom.rollouts.decoding import decode

_BLOCK = 128
"""Tokens that are summed at once: few next to a vocabulary, many next to one token."""


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How a token is drawn. ``temperature`` 0 takes the likeliest."""

    temperature: Annotated[float, Ge(0)] = 1.0
    top_p: Annotated[float, Gt(0), Le(1)] = 1.0
    top_k: Annotated[int, Ge(1)] | None = None
    max_new_tokens: Annotated[int, Ge(1)] = 128


def pick(logits: Tensor, u: Tensor, sampling: Sampling) -> Tensor:
    """One token a row by the inverse of the cumulative distribution: [B, V], [B] -> [B].

    The row is never sorted, and never copied to float64: sums are float64 over blocks of tokens,
    then within the one block that ``u`` falls into. ``top_k`` keeps ``k`` tokens, whichever of
    those that are as likely as the last.
    """
    if sampling.temperature == 0:
        return logits.argmax(-1)
    ids = None
    if sampling.top_k is not None and sampling.top_k < logits.shape[-1]:
        ids = logits.topk(sampling.top_k, sorted=False).indices.sort().values
        logits = logits.gather(1, ids)
    logits = logits.float()
    weights = logits - logits.amax(-1, keepdim=True)
    if sampling.temperature != 1:
        weights.div_(sampling.temperature)
    weights.exp_()
    if sampling.top_p < 1:
        weights, kept = _nucleus(weights, sampling.top_p)
        ids = kept if ids is None else ids.gather(1, kept)
    found = _located(weights, u.to(weights.device))
    return found if ids is None else ids.gather(1, found[:, None]).squeeze(1)


def _nucleus(weights: Tensor, top_p: float) -> tuple[Tensor, Tensor]:
    """The fewest likeliest columns of a share ``top_p``, rising, and their weights: [B, k] both.

    Where a row needs fewer than another its further weights are 0.
    """
    enough = top_p * weights.sum(-1, keepdim=True, dtype=torch.float64)
    size = 0
    while True:
        size = min(max(_BLOCK, size * 8), weights.shape[-1])
        best, columns = weights.topk(size)
        mass = best.cumsum(-1, dtype=torch.float64)
        if size == weights.shape[-1] or (mass[:, -1:] >= enough).all():
            break
    columns, order = columns.sort()
    return best.masked_fill(mass - best >= enough, 0).gather(1, order), columns


def _located(weights: Tensor, u: Tensor) -> Tensor:
    """The first column of each row up to which weights sum to more than ``u`` of all: [B]."""
    blocks = weights
    if spare := -weights.shape[1] % _BLOCK:
        blocks = pad(weights, (0, spare))
    blocks = blocks.unflatten(1, (-1, _BLOCK))
    sums = blocks.sum(-1).cumsum(-1, dtype=torch.float64)
    aim = u.to(sums)[:, None] * sums[:, -1:]
    at = torch.searchsorted(sums, aim, right=True).clamp_max(sums.shape[1] - 1)  # of nan: the last
    within = blocks[torch.arange(len(u), device=at.device), at[:, 0]].cumsum(-1, dtype=sums.dtype)
    aim = aim - pad(sums, (1, 0)).gather(1, at)
    # Rounded otherwise than its sum, the block may seem to end before the aim.
    aim = torch.minimum(aim, within[:, -1:].nextafter(torch.zeros_like(aim)))
    found = at * _BLOCK + torch.searchsorted(within, aim, right=True)
    return found.squeeze(1).clamp_max(weights.shape[1] - 1)


@torch.no_grad()
def sample(
    model: CausalLM,
    prompts: Sequence[Sequence[int]],
    id: Tensor,
    n: int = 1,
    *,
    seed: int,
    sampling: Sampling,
) -> list[list[int]]:
    """``n`` answers to each prompt, in prompt order; a stop id that came is kept.

    The number behind (sample ``id``, copy, position) is ``uniform(seed, id, copy, position)``.

    Raises:
        Failure: a prompt with ``max_new_tokens`` would not fit the model's context.
    """
    limit = sampling.max_new_tokens
    draws = numbers(seed, id, n, limit).to(model.model.device)

    def choose(logits: Sequence[Tensor], rows: Tensor, t: int) -> tuple[Tensor, dict[str, Tensor]]:
        return pick(logits[0], draws[rows, t], sampling), {}

    with mode(model, training=False):
        return decode([model], prompts, n, limit, choose).tokens


def numbers(seed: int, id: Tensor, n: int, limit: int, *stream: int) -> Tensor:
    """[B * n, limit] ``uniform(seed, id, copy, position)`` of ``n`` copies of each sample ``id``.

    A further number, ``stream``, gives others that are independent of these.
    """
    keys, copies = id.cpu().repeat_interleave(n), torch.arange(n).repeat(len(id))
    return uniform(seed, keys[:, None], copies[:, None], torch.arange(limit), *stream)
