"""Gradients of divergences by formula: a fraction of the passes that autograd makes.

Each function here takes the log-probabilities of student and teacher, [..., V], and gives the
divergence [...] with its gradient by the student's logits [..., V]. That gradient is ``p (r - sum_v
p r)``, where ``p`` are the student's probabilities and ``r`` the derivative by them.

Mixtures are made of probabilities here: what float32 cannot tell from 0 adds nothing to a sum.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial, wraps
from typing import Any

import torch
from torch import Tensor

from stillroom.core import Failure, Sparse
from stillroom.losses.sparse import coarse

Slope = Callable[..., tuple[Tensor, Tensor]]


def forward_kl(log_s: Tensor, log_t: Tensor) -> tuple[Tensor, Tensor]:
    p_t = log_t.exp()
    return _terms(p_t, log_t, log_s).sum(-1), log_s.exp().sub_(p_t)


def reverse_kl(log_s: Tensor, log_t: Tensor) -> tuple[Tensor, Tensor]:
    p_s = log_s.exp()
    terms = _terms(p_s, log_s, log_t)
    value = terms.sum(-1, keepdim=True)
    return value.squeeze(-1), terms.sub_(p_s.mul_(value))


def jsd(log_s: Tensor, log_t: Tensor, *, beta: float) -> tuple[Tensor, Tensor]:
    p_s, p_t = log_s.exp(), log_t.exp()
    log_m = _mixture(p_s, p_t, beta).log_()
    theirs = _terms(p_t, log_t, log_m).sum(-1)
    terms = _terms(p_s, log_s, log_m)
    own = terms.sum(-1, keepdim=True)
    slope = terms.sub_(p_s.mul_(own)).mul_(1 - beta)
    return beta * theirs + (1 - beta) * own.squeeze(-1), slope


def skew_forward_kl(log_s: Tensor, log_t: Tensor, *, alpha: float) -> tuple[Tensor, Tensor]:
    p_s, p_t = log_s.exp(), log_t.exp()
    mixed = _mixture(p_s, p_t, alpha)
    ratio = p_s * p_t / mixed
    value = _terms(p_t, log_t, mixed.log_()).sum(-1)
    return value, p_s.mul_(ratio.sum(-1, keepdim=True)).sub_(ratio).mul_(1 - alpha)


def skew_reverse_kl(log_s: Tensor, log_t: Tensor, *, alpha: float) -> tuple[Tensor, Tensor]:
    p_s, p_t = log_s.exp(), log_t.exp()
    mixed = _mixture(p_s, p_t, 1 - alpha)
    ratio = (p_s**2 / mixed).mul_(alpha)
    terms = _terms(p_s, log_s, mixed.log_())
    value = terms.sum(-1)
    terms.sub_(ratio)
    return value, terms.sub_(p_s.mul_(terms.sum(-1, keepdim=True)))


def log_probs(student: Tensor, teacher: Tensor | Sparse) -> tuple[Tensor, Tensor]:
    """Log-probabilities of both, in one dtype that has at least the precision of float32."""
    if isinstance(teacher, Sparse):
        return coarse(student, teacher)
    if student.shape[-1] != teacher.shape[-1]:
        raise Failure(
            f"student logits {list(student.shape)} and teacher logits {list(teacher.shape)} "
            "differ in the last axis; both must score the same classes or tokens"
        )
    dtype = torch.promote_types(torch.promote_types(student.dtype, teacher.dtype), torch.float32)
    return student.log_softmax(-1, dtype=dtype), teacher.log_softmax(-1, dtype=dtype)


def by_formula(slope: Slope, of_draws: Callable[..., Tensor] | None = None) -> Callable[..., Any]:
    """Makes a divergence take its gradient for the student from ``slope``.

    Where the teacher learns too, where nothing does and in second derivatives the plain formula
    stands. Options go to both. A teacher's draws go to ``of_draws``.
    """

    def decorate(plain: Callable[..., Tensor]) -> Callable[..., Tensor]:
        @wraps(plain)
        def chosen(student: Tensor, teacher: Tensor | Sparse, **options: float) -> Tensor:
            whole = partial(plain, **options)
            if isinstance(teacher, Sparse):
                if teacher.drawn and of_draws is not None:
                    return of_draws(student, teacher)
                student, teacher = coarse(student, teacher)
            if not (torch.is_grad_enabled() and student.requires_grad) or teacher.requires_grad:
                return whole(student, teacher)
            return _ByFormula.apply(student, teacher, whole, partial(slope, **options))

        return chosen

    return decorate


class _ByFormula(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor, plain: Any, slope: Any) -> Tensor:
        log_s, log_t = log_probs(student, teacher)
        value, ctx.slope = slope(log_s, log_t)
        ctx.plain = plain
        ctx.save_for_backward(student, teacher)
        return value

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> Any:
        (student, teacher), (factor,) = ctx.saved_tensors, slopes
        slope, ctx.slope = ctx.slope, None
        if slope is None or torch.is_grad_enabled():  # again, or a second derivative is asked for
            create = torch.is_grad_enabled()
            with torch.enable_grad():
                value = ctx.plain(student, teacher)
                (slope,) = torch.autograd.grad(value, student, factor, create_graph=create)
            return slope, None, None, None
        return slope.mul_(factor.unsqueeze(-1)).to(student.dtype), None, None, None


def _terms(p: Tensor, log_p: Tensor, log_q: Tensor) -> Tensor:
    """``p (log p - log q)`` with ``0 log 0 = 0``."""
    return (log_p - log_q).masked_fill_(log_p.isneginf(), 0.0).mul_(p)


def _mixture(p_s: Tensor, p_t: Tensor, weight: float) -> Tensor:
    """``weight p_t + (1 - weight) p_s``, never 0."""
    return torch.lerp(p_s, p_t, weight).clamp_min_(torch.finfo(p_s.dtype).tiny)
