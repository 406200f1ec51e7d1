"""KL divergence in two parts: the label against all others, and the others among themselves.

With ``p_g`` the teacher's probability of the label:
``KL(p_t || p_s) = target_kl + (1 - p_g) others_kl``, the decoupling of DKD (arXiv
2203.08679). Forward KL of logits ``f(student, teacher, labels)``, [n, V] twice and [n] -> [n], in
nats; swapped sides give the parts of reverse KL. No probability is divided by another: the others
are told by a label's logit of ``-inf``, the label by its log-odds, so that a teacher who is
certain leaves neither 0 / 0 nor log 0.
"""

from __future__ import annotations

import torch
from torch import Tensor

from stillroom.losses.divergences import forward_kl


def log_odds(logits: Tensor, labels: Tensor) -> Tensor:
    """How sure the label is: the logit of its probability against all others together.

    ``log p_g - log(1 - p_g) = z_g - log sum_(v != g) exp z_v``
    """
    exact = logits.to(torch.promote_types(logits.dtype, torch.float32))
    label = exact.gather(-1, labels.unsqueeze(-1)).squeeze(-1)
    return label - _others(exact, labels).logsumexp(-1)


def target_kl(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    """Target part of decoupled distillation (TCKD): KL of label against not-label.

    ``KL((p_g, 1 - p_g) of the teacher || the student's)``
    """
    own, other = (_binary(log_odds(logits, labels)) for logits in (student, teacher))
    return forward_kl(own, other)


def others_kl(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    """Non-target part of decoupled distillation (NCKD): KL of all but the label, renormalised.

    ``KL(p_t(v | v != g) || p_s(v | v != g))``
    """
    return forward_kl(_others(student, labels), _others(teacher, labels))


def _others(logits: Tensor, labels: Tensor) -> Tensor:
    return logits.scatter(-1, labels.unsqueeze(-1), -torch.inf)


def _binary(odds: Tensor) -> Tensor:
    """Logits of two classes: its log-softmax is log sigmoid of the odds, and of minus them."""
    return torch.stack([odds, torch.zeros_like(odds)], -1)
