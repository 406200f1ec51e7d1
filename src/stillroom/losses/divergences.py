"""How far a student's distribution over a vocabulary or classes is from its teacher's.

Each public function takes logits ``f(student, teacher)``, [..., V] each, and gives [...], in nats.
The folder is the contract: every public function here is tested for being a divergence, so
nothing else may stand here. All work on log-probabilities, in float32 where less is given, and in
float64 where that is given. Gradients flow to both arguments; what must not learn is detached by
the caller. A squared temperature is the business of the caller, too.

The teacher may give some tokens alone (``core.Sparse``): with its largest ones and the rest as one
more, both sides become distributions over ``k + 1`` classes; its draws serve forward KL alone.

A logit of ``-inf`` rules a token out. ``0 log 0`` is 0, so a token that both sides rule out adds
nothing to value and gradient. A Kullback-Leibler sum is infinite, and says so, where the second
distribution rules out what the first one allows.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from stillroom.core import Failure
from stillroom.losses import _slopes
from stillroom.losses._slopes import by_formula, log_probs
from stillroom.losses.sparse import forward_kl_of_draws

SKEWED = "0 is the plain KL divergence, at 1 nothing is left of it"


@by_formula(_slopes.forward_kl, of_draws=forward_kl_of_draws)
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
    log_s, log_t = log_probs(student, teacher)
    return _kl(log_t, log_s)


@by_formula(_slopes.reverse_kl)
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
    log_s, log_t = log_probs(student, teacher)
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
    _check("jsd", beta=beta, says="0 is forward KL, 1 reverse KL, 0.5 the symmetric divergence")
    if beta == 0:
        return forward_kl(student, teacher)
    if beta == 1:
        return reverse_kl(student, teacher)
    return _jsd(student, teacher, beta=beta)


def jeffreys(student: Tensor, teacher: Tensor) -> Tensor:
    """Jeffreys divergence, the symmetrised KL: forward and reverse KL added up.

    ``J = KL(p_t || p_s) + KL(p_s || p_t) = sum_v (p_t(v) - p_s(v)) (log p_t(v) - log p_s(v))``

    Jeffreys 1946. Not halved.

    By hand, teacher (.75, .25), student (.5, .5):
    ``.25 ln 1.5 - .25 ln .5 = .1014 + .1733 = .2747``

    >>> student, teacher = torch.tensor([0.5, 0.5]).log(), torch.tensor([0.75, 0.25]).log()
    >>> round(float(jeffreys(student, teacher)), 4)
    0.2747
    """
    return forward_kl(student, teacher) + reverse_kl(student, teacher)


def skew_forward_kl(student: Tensor, teacher: Tensor, *, alpha: float = 0.1) -> Tensor:
    """Skew KL divergence: forward KL to a student that a little of the teacher is mixed into.

    ``KL(p_t || alpha p_t + (1 - alpha) p_s)``

    Bounded by ``-ln alpha``; alpha 0 is forward KL. Source: DistiLLM (arXiv 2402.03898).
    Raises ``Failure`` where alpha lies outside [0, 1).

    By hand at alpha .1, teacher (.75, .25), student (.5, .5), so m = (.525, .475):
    ``.75 ln(.75/.525) + .25 ln(.25/.475) = .2675 - .1605 = .1070``

    >>> student, teacher = torch.tensor([0.5, 0.5]).log(), torch.tensor([0.75, 0.25]).log()
    >>> round(float(skew_forward_kl(student, teacher)), 4)
    0.107
    """
    _check("skew_forward_kl", alpha=alpha, says=SKEWED, below_one=True)
    if alpha == 0:
        return forward_kl(student, teacher)
    return _skew_forward_kl(student, teacher, alpha=alpha)


def skew_reverse_kl(student: Tensor, teacher: Tensor, *, alpha: float = 0.1) -> Tensor:
    """Skew reverse KL divergence: reverse KL to a teacher mixed with a little of the student.

    ``KL(p_s || (1 - alpha) p_t + alpha p_s)``

    Bounded by ``-ln alpha``; alpha 0 is reverse KL. Source: DistiLLM (arXiv 2402.03898).
    Raises ``Failure`` where alpha lies outside [0, 1).

    By hand at alpha .1, teacher (.75, .25), student (.5, .5), so m = (.725, .275):
    ``.5 ln(.5/.725) + .5 ln(.5/.275) = -.1858 + .2989 = .1131``

    >>> student, teacher = torch.tensor([0.5, 0.5]).log(), torch.tensor([0.75, 0.25]).log()
    >>> round(float(skew_reverse_kl(student, teacher)), 4)
    0.1131
    """
    _check("skew_reverse_kl", alpha=alpha, says=SKEWED, below_one=True)
    if alpha == 0:
        return reverse_kl(student, teacher)
    return _skew_reverse_kl(student, teacher, alpha=alpha)


def alpha_divergence(student: Tensor, teacher: Tensor, *, alpha: float = 0.5) -> Tensor:
    """Alpha divergence of Amari and Cichocki, from reverse KL (alpha 0) to forward KL (alpha 1).

    ``D = (1 - sum_v p_t(v)^alpha p_s(v)^(1 - alpha)) / (alpha (1 - alpha))``

    The ends are its limits; alpha 0.5 is four times the squared Hellinger distance. Note that
    jsd's beta runs the other way. Source: Cichocki and Amari, Entropy 12 (2010). Raises
    ``Failure`` where alpha lies outside [0, 1].

    By hand at alpha .5, teacher (.75, .25), student (.5, .5):
    ``4 (1 - sqrt(.375) - sqrt(.125)) = 4 (1 - .6124 - .3536) = .1363``

    >>> student, teacher = torch.tensor([0.5, 0.5]).log(), torch.tensor([0.75, 0.25]).log()
    >>> round(float(alpha_divergence(student, teacher)), 4)
    0.1363
    """
    _check("alpha_divergence", alpha=alpha, says="0 is reverse KL, 1 forward KL")
    if alpha == 0:
        return reverse_kl(student, teacher)
    if alpha == 1:
        return forward_kl(student, teacher)
    log_s, log_t = log_probs(student, teacher)
    overlap = (alpha * log_t + (1 - alpha) * log_s).logsumexp(-1)
    return -overlap.expm1() / (alpha * (1 - alpha))


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
    log_s, log_t = log_probs(student, teacher)
    return 0.5 * (log_s.exp() - log_t.exp()).abs().sum(-1)


@by_formula(_slopes.jsd)
def _jsd(student: Tensor, teacher: Tensor, *, beta: float) -> Tensor:
    log_s, log_t = log_probs(student, teacher)
    log_m = _mixture(log_s, log_t, beta)
    return beta * _kl(log_t, log_m) + (1 - beta) * _kl(log_s, log_m)


@by_formula(_slopes.skew_forward_kl)
def _skew_forward_kl(student: Tensor, teacher: Tensor, *, alpha: float) -> Tensor:
    log_s, log_t = log_probs(student, teacher)
    return _kl(log_t, _mixture(log_s, log_t, alpha))


@by_formula(_slopes.skew_reverse_kl)
def _skew_reverse_kl(student: Tensor, teacher: Tensor, *, alpha: float) -> Tensor:
    log_s, log_t = log_probs(student, teacher)
    return _kl(log_s, _mixture(log_s, log_t, 1 - alpha))


def _kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """``sum_v p (log p - log q)`` with ``0 log 0 = 0``, in value and in gradient."""
    gap = (log_p - log_q).masked_fill(log_p.isneginf(), 0.0)
    return (log_p.exp() * gap).sum(-1)


def _mixture(log_s: Tensor, log_t: Tensor, weight: float) -> Tensor:
    """``log(weight p_t + (1 - weight) p_s)``; any number where both are zero."""
    # logaddexp has no gradient at (-inf, -inf); _kl drops whatever stands in its place
    some_s = log_s.masked_fill(log_s.isneginf() & log_t.isneginf(), 0.0)
    return torch.logaddexp(log_t + math.log(weight), some_s + math.log1p(-weight))


def _check(function: str, *, says: str, below_one: bool = False, **value: float) -> None:
    ((name, number),) = value.items()
    if not 0 <= number <= 1 or (below_one and number == 1):
        raise Failure(
            f"{function} needs {name} in [0, 1{')' if below_one else ']'}, got {number}: {says}"
        )
