"""How far a student's distribution over a vocabulary or classes is from its teacher's.

Each public function takes logits ``f(student, teacher)``, [..., V] each, and gives [...], in nats.
The folder is the contract: every public function here is tested for being a divergence, so
nothing else may stand here. All work on log-probabilities, in float32 where less is given, and in
float64 where that is given. Gradients flow to both arguments; what must not learn is detached by
the caller. A squared temperature is the business of the caller, too.

A logit of ``-inf`` rules a token out. ``0 log 0`` is 0, so a token that both sides rule out adds
nothing to value and gradient. A Kullback-Leibler sum is infinite, and says so, where the second
distribution rules out what the first one allows.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from stillroom.core import Failure


def forward_kl(student: Tensor, teacher: Tensor) -> Tensor:
    """Forward KL divergence, mode-covering: the loss of classic knowledge distillation.

    ``KL(teacher || student) = sum_v p_t(v) (log p_t(v) - log p_s(v))``

    Kullback and Leibler 1951; as a distillation loss Hinton et al. (arXiv 1503.02531), who write
    the cross-entropy, which has the same gradient for the student.

    By hand, teacher (.75, .25), student (.5, .5):
    ``.75 ln 1.5 + .25 ln .5 = .3041 - .1733 = .1308``

    >>> student, teacher = torch.tensor([0.5, 0.5]).log(), torch.tensor([0.75, 0.25]).log()
    >>> round(float(forward_kl(student, teacher)), 4)
    0.1308
    """
    log_s, log_t = _log_probs(student, teacher)
    return _kl(log_t, log_s)


def reverse_kl(student: Tensor, teacher: Tensor) -> Tensor:
    """Reverse KL divergence, mode-seeking: punishes what the teacher would hardly say.

    ``KL(student || teacher) = sum_v p_s(v) (log p_s(v) - log p_t(v))``

    As a distillation loss MiniLLM (arXiv 2306.08543); here exact over the vocabulary, for one row.

    By hand, teacher (.75, .25), student (.5, .5):
    ``.5 ln(2/3) + .5 ln 2 = -.2027 + .3466 = .1438``

    >>> student, teacher = torch.tensor([0.5, 0.5]).log(), torch.tensor([0.75, 0.25]).log()
    >>> round(float(reverse_kl(student, teacher)), 4)
    0.1438
    """
    log_s, log_t = _log_probs(student, teacher)
    return _kl(log_s, log_t)


def jsd(student: Tensor, teacher: Tensor, *, beta: float = 0.5) -> Tensor:
    """Generalised Jensen-Shannon divergence between forward (beta 0) and reverse KL (beta 1).

    ``m = beta p_t + (1 - beta) p_s``
    ``D = beta KL(p_t || m) + (1 - beta) KL(p_s || m)``

    Bounded by ``ln 2``; symmetric at ``beta = 0.5``. The formula tends to 0 at both ends, where
    only its slope is a KL divergence; we DEFINE beta 0 as forward and 1 as reverse KL, which is
    what practice means by these names, so the function jumps there. Source: GKD (arXiv 2306.13649,
    section 2). Raises ``Failure`` where beta lies outside [0, 1].

    By hand, teacher (.75, .25), student (.5, .5), so m = (.625, .375):
    ``.5 (.75 ln 1.2 + .25 ln(2/3)) + .5 (.5 ln .8 + .5 ln(4/3)) = .5 (.0354 + .0323) = .0338``

    >>> student, teacher = torch.tensor([0.5, 0.5]).log(), torch.tensor([0.75, 0.25]).log()
    >>> round(float(jsd(student, teacher)), 4)
    0.0338
    """
    if not 0 <= beta <= 1:
        raise Failure(
            f"jsd needs beta in [0, 1], got {beta}: 0 is forward KL, 1 reverse KL, "
            "0.5 the symmetric Jensen-Shannon divergence"
        )
    if beta == 0:
        return forward_kl(student, teacher)
    if beta == 1:
        return reverse_kl(student, teacher)
    log_s, log_t = _log_probs(student, teacher)
    # logaddexp has no gradient at (-inf, -inf); _kl drops whatever stands in its place
    some_s = log_s.masked_fill(log_s.isneginf() & log_t.isneginf(), 0.0)
    log_m = torch.logaddexp(log_t + math.log(beta), some_s + math.log1p(-beta))
    return beta * _kl(log_t, log_m) + (1 - beta) * _kl(log_s, log_m)


def total_variation(student: Tensor, teacher: Tensor) -> Tensor:
    """Total variation distance: half the L1 distance of the two probability vectors, in [0, 1].

    ``TV = 1/2 sum_v |p_s(v) - p_t(v)|``

    As a distillation loss f-DISTILL (arXiv 2307.15190). Its gradient does not shrink as the two
    come close; at equality it is taken as 0.

    By hand, teacher (.75, .25), student (.5, .5): ``(.25 + .25) / 2 = .25``

    >>> student, teacher = torch.tensor([0.5, 0.5]).log(), torch.tensor([0.75, 0.25]).log()
    >>> round(float(total_variation(student, teacher)), 4)
    0.25
    """
    log_s, log_t = _log_probs(student, teacher)
    return 0.5 * (log_s.exp() - log_t.exp()).abs().sum(-1)


def _log_probs(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probabilities of both, in one dtype that has at least the precision of float32."""
    if student.shape[-1] != teacher.shape[-1]:
        raise Failure(
            f"student logits {list(student.shape)} and teacher logits {list(teacher.shape)} "
            "differ in the last axis; both must score the same classes or tokens"
        )
    dtype = torch.promote_types(torch.promote_types(student.dtype, teacher.dtype), torch.float32)
    return student.log_softmax(-1, dtype=dtype), teacher.log_softmax(-1, dtype=dtype)


def _kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """``sum_v p (log p - log q)`` with ``0 log 0 = 0``, in value and in gradient."""
    gap = (log_p - log_q).masked_fill(log_p.isneginf(), 0.0)
    return (log_p.exp() * gap).sum(-1)
