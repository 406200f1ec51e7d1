"""Answers that a second network has a say in: interleaved and mixed sampling, token by token.

Student and guide (a teacher's network with the same vocabulary) read in lockstep, each with its own
cache. At every place a rule sees the logits of both and two uniform numbers of independent streams,
picks the token, and may note numbers of it.

A guide that checks drafts of several tokens at a time, as in speculative decoding, gives sequences
of the same law: it keeps the tokens before the first one that is refused, so each token is chosen
from the same two distributions. Drafts are about speed alone, so their length is no field here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Protocol

import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor

from stillroom.core import Failure
from stillroom.models.text import CausalLM, mode
from stillroom.rollouts.decoding import Answers, decode
from stillroom.rollouts.sampling import Sampling, numbers, pick


class Rule(Protocol):
    """How a token comes from two distributions; its fields are hyper-parameters."""

    def check(self, sampling: Sampling) -> None:
        """Raises Failure where the rule means nothing under the student's ``sampling``."""
        ...

    def choose(
        self, own: Tensor, other: Tensor, u: Tensor, sampling: Sampling
    ) -> tuple[Tensor, Mapping[str, Tensor]]:
        """A column of the logits for each row, and what is noted of it: each [B].

        ``own`` and ``other`` [B, V] are raw logits of student and guide, ``u`` [B, 2] uniform: the
        first column holds the numbers that the student alone would be sampled with, so a token
        drawn by them and ``sampling`` is the one that it would have written.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class Interleaved:
    """The student proposes; what is not among the guide's likeliest is drawn from the guide.

    ``y ~ q``, kept where fewer than ``top_k`` tokens are likelier than it under p; else ``y ~ p``
    (Speculative Knowledge Distillation, arXiv 2410.11325). It is the rank in the guide's whole
    distribution, before its ``temperature`` and ``top_p``. With ``top_k`` of the whole vocabulary
    the student's own samples come, bit for bit. Notes ``replaced``, 1 where the guide wrote.

    Args:
        top_k: how many of the guide's tokens are good enough; equals of the last are kept too.
        temperature: of the guide's draws; 0 takes its likeliest.
        top_p: of the guide's draws.
    """

    top_k: Annotated[int, Ge(1)] = 25
    temperature: Annotated[float, Ge(0)] = 1.0
    top_p: Annotated[float, Gt(0), Le(1)] = 1.0

    def check(self, sampling: Sampling) -> None:
        """Any sampling of the student will do."""

    def choose(
        self, own: Tensor, other: Tensor, u: Tensor, sampling: Sampling
    ) -> tuple[Tensor, Mapping[str, Tensor]]:
        proposed = pick(own, u[:, 0], sampling)
        likelier = (other > other.gather(1, proposed[:, None])).sum(-1)
        replaced = likelier >= self.top_k
        told = Sampling(temperature=self.temperature, top_p=self.top_p)
        token = torch.where(replaced, pick(other, u[:, 1], told), proposed)
        return token, {"replaced": replaced.float()}


@dataclass(frozen=True, kw_only=True)
class Mixed:
    """One token from ``(1 - a) q + a p``: teacher-mixed sampling (MiniLLM, arXiv 2306.08543).

    Which of the two writes is drawn first, with probability ``share`` the guide, then a token from
    that one: the law of the mixture. With a share of 0 the student's own samples come, bit for bit.
    Notes ``importance``, ``q(y) / ((1 - a) q(y) + a p(y))``, at most ``1 / (1 - a)``.

    Args:
        share: a, of the guide.
    """

    share: Annotated[float, Ge(0), Le(1)] = 0.2

    def check(self, sampling: Sampling) -> None:
        told = (sampling.temperature, sampling.top_p, sampling.top_k)
        if told != (1.0, 1.0, None):
            raise Failure(
                "mixed sampling weighs each token by its probability under the student, so it is "
                "drawn at temperature 1 with nothing cut off; got temperature "
                f"{told[0]:g}, top_p {told[1]:g}, top_k {told[2]}"
            )

    def choose(
        self, own: Tensor, other: Tensor, u: Tensor, sampling: Sampling
    ) -> tuple[Tensor, Mapping[str, Tensor]]:
        writer = torch.where((u[:, 1] < self.share)[:, None], other, own)
        token = pick(writer, u[:, 0], sampling)
        q, p = (_probability(logits, token) for logits in (own, other))
        return token, {"importance": q / ((1 - self.share) * q + self.share * p)}


def _probability(logits: Tensor, token: Tensor) -> Tensor:
    exact = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return (exact.gather(1, token[:, None]).squeeze(1) - exact.logsumexp(-1)).exp()


@dataclass(frozen=True)
class Guided:
    """A student that writes with a guide, by a rule. Both have one vocabulary.

    Where their heads differ in V, the columns that both have are used.
    """

    student: CausalLM
    guide: CausalLM
    rule: Rule

    @torch.no_grad()
    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        id: Tensor,
        n: int = 1,
        *,
        seed: int,
        sampling: Sampling,
    ) -> Answers:
        """``n`` answers to each prompt, as ``sampling.sample`` gives of one network.

        Behind (sample ``id``, copy, position) are ``uniform(seed, id, copy, position)``, as of the
        student alone, and ``uniform(seed, id, copy, position, 1)``. An answer ends with a stop id
        of the student; rows that ended are dropped in both caches.

        Raises:
            Failure: rule and ``sampling`` do not go together, the two networks have different views
                of the vocabulary, or a prompt with ``max_new_tokens`` exceeds a context.
        """
        self.rule.check(sampling)
        _check_views(self.student, self.guide)
        limit = sampling.max_new_tokens
        streams = numbers(seed, id, n, limit), numbers(seed, id, n, limit, 1)
        draws = torch.stack(streams, -1).to(self.student.model.device)

        def choose(logits: Sequence[Tensor], rows: Tensor, t: int) -> Any:
            width = min(part.shape[-1] for part in logits)
            own, other = (part[:, :width] for part in logits)
            return self.rule.choose(own, other, draws[rows, t], sampling)

        with mode(self.student, training=False), mode(self.guide, training=False):
            return decode([self.student, self.guide], prompts, n, limit, choose)


def _check_views(student: CausalLM, guide: CausalLM) -> None:
    views = [m.view.ids if m.view is not None and m.view.on else None for m in (student, guide)]
    told = [None if ids is None else ids.tolist() for ids in views]
    if told[0] != told[1]:
        sizes = ["the whole vocabulary" if ids is None else f"{len(ids)} tokens" for ids in told]
        raise Failure(
            f"the student writes {sizes[0]} and its guide {sizes[1]}, not the same ones: narrow "
            "both to the same view, or neither"
        )
