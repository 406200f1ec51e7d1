"""Moments of two policies: how far apart a critic's values of their next tokens are."""

from __future__ import annotations

import torch
from torch import Tensor


def moment_gap(student: Tensor, teacher: Tensor, scores: Tensor) -> Tensor:
    """Moment matching: expected score of the teacher's next token less that of the student's.

    ``<p_t - p_s, f> = sum_v (p_t(v) - p_s(v)) f(v)``

    Logits [n, V] of both and a critic's ``scores`` [n, V] -> [n]. Of either sign, 0 where both are
    alike or all scores are; with ``|f| <= 1`` at most twice the total variation distance. Source:
    AMMD (arXiv 2406.02959), the expected form of its action moments.

    By hand, teacher (.75, .25), student (.5, .5), scores (1, -1): ``.25 + .25 = .5``

    >>> student, teacher = torch.tensor([0.5, 0.5]).log(), torch.tensor([0.75, 0.25]).log()
    >>> round(float(moment_gap(student, teacher, torch.tensor([1.0, -1.0]))), 4)
    0.5
    """
    own, theirs = (x.softmax(-1, dtype=_dtype(x)) for x in (student, teacher))
    return ((theirs - own) * scores.to(own.dtype)).sum(-1)


def _dtype(value: Tensor) -> torch.dtype:
    """At least float32."""
    return torch.promote_types(value.dtype, torch.float32)
