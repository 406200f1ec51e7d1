"""Distributions of which some tokens are known: a teacher's most likely ones, or draws from it."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from stillroom.core import Failure, Sparse


def top_k(logits: Tensor, k: int) -> Sparse:
    """The ``k`` most likely tokens of each row, and what is left as one number (``tail``).

    ``logits`` [N, V], k < V. In float32 or better.

    By hand, probabilities (.5, .25, .15, .1): the two largest are .5 and .25, .25 is left.

    >>> told = top_k(torch.tensor([[0.5, 0.25, 0.15, 0.1]]).log(), 2)
    >>> told.ids.tolist(), round(float(told.tail.exp()), 4)
    ([[0, 1]], 0.25)
    """
    if not 0 < k < logits.shape[-1]:
        raise Failure(f"topk:{k}: k must be between 1 and {logits.shape[-1] - 1}")
    logp = _exact(logits).log_softmax(-1)
    values, ids = logp.topk(k)
    tail = logp.scatter(-1, ids, -math.inf).logsumexp(-1)
    return Sparse(ids=ids, logp=values, tail=tail, vocab=logits.shape[-1])


def draws(logits: Tensor, uniform: Tensor, *, proposal: float = 1.0) -> Sparse:
    """Random sampling of tokens, with replacement: an unbiased picture of each distribution.

    ``w_i = c_i t_i / (n q_i)``, where ``t`` are the probabilities, ``q ~ t^proposal`` is drawn
    from, and token ``i`` came ``c_i`` times in ``n`` draws: ``E[w] = t``, and at proposal 1 the
    weights are relative frequencies, which add up to 1.

    ``logits`` [N, V]; ``uniform`` [N, n] independent numbers in [0, 1), one a draw. A token that
    came several times stands once; the places that this leaves are empty. Source: Sparse Logit
    Sampling (arXiv 2503.16870).
    """
    logt = logits.double().log_softmax(-1)
    logq = logt if proposal == 1 else (proposal * logt).log_softmax(-1)
    below = logq.exp().cumsum(-1)
    found = torch.searchsorted(below, uniform.double() * below[..., -1:], right=True)
    ids = found.clamp_max(logits.shape[-1] - 1).sort(-1).values
    new = torch.ones_like(ids, dtype=torch.bool)
    new[..., 1:] = ids[..., 1:] != ids[..., :-1]
    order = torch.argsort((~new).byte(), dim=-1, stable=True)  # first a place of each token
    order = order[..., : int(new.sum(-1).max())] if len(ids) else order
    n = ids.shape[-1]
    places = torch.arange(n, device=ids.device).expand_as(ids)
    starts = torch.where(new, places, n).flip(-1).cummin(-1).values.flip(-1)  # of this or the next
    following = torch.cat([starts[..., 1:], torch.full_like(starts[..., :1], n)], -1)
    count = torch.where(new, following - places, 0).gather(-1, order)
    ids = ids.gather(-1, order)
    logp = (count / n).log() + (logt - logq).gather(-1, ids)
    logp = logp.to(torch.promote_types(logits.dtype, torch.float32))
    return Sparse(ids=ids, logp=logp, vocab=logits.shape[-1])


def coarse(student: Tensor, teacher: Sparse) -> tuple[Tensor, Tensor]:
    """Log-probabilities of both for the teacher's tokens and for all others together, [n, k + 1].

    Both are distributions; a divergence of them is at most that of the whole ones. Gradients flow
    to the student's logits [n, V].

    Raises:
        Failure: the teacher gives draws, from which a divergence other than forward KL is biased.
    """
    if teacher.drawn:
        raise Failure(
            "draws of a teacher give forward KL without bias, and nothing else (a divergence of "
            "estimated probabilities is no estimate of the divergence); take forward KL, or a "
            "teacher that gives topk or logits"
        )
    student = _exact(student)
    empty = teacher.logp.isneginf()
    own = student.gather(-1, teacher.ids).masked_fill(empty, -math.inf)
    named = student.new_zeros(len(student), student.shape[-1] + 1, dtype=torch.bool)
    named.scatter_(-1, teacher.ids.masked_fill(empty, student.shape[-1]), True)
    rest = student.masked_fill(named[:, :-1], -math.inf).logsumexp(-1, keepdim=True)
    theirs = torch.cat([teacher.logp, teacher.tail.unsqueeze(-1)], -1).to(student.dtype)
    return torch.cat([own, rest], -1).log_softmax(-1), theirs.log_softmax(-1)


def forward_kl_of_draws(student: Tensor, teacher: Sparse) -> Tensor:
    """``sum_i w_i (log w_i - log p_i)`` over the tokens that were drawn.

    Its gradient by the student's logits is ``(sum w) p - w``, on average that of forward KL. Its
    value is not: it holds the entropy of the draws in place of the teacher's.
    """
    student = _exact(student)
    logp, empty = teacher.logp.to(student.dtype), teacher.logp.isneginf()
    own = student.gather(-1, teacher.ids) - student.logsumexp(-1, keepdim=True)
    return (logp.exp() * (logp - own).masked_fill(empty, 0.0)).sum(-1)


def _exact(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))
