"""Distances of logits class by class, each taken as a yes or no of its own.

They see what a softmax throws away: a constant added to all logits of an example moves them, so
none is a divergence of distributions over classes.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid


def binary_kl_norm(student: Tensor, teacher: Tensor) -> Tensor:
    """Binary KL of logit differences (BinaryKL-Norm): 0 where all logits are the teacher's.

    ``sum_c KL(Bernoulli(1/2) || Bernoulli(sigmoid(d_c)))`` with ``d = student - teacher``, which
    is ``sum_c log cosh(d_c / 2)``.

    Logits [..., C] twice -> [...], in nats. The slope of each logit is ``sigmoid(d) - 1/2``, so it
    is bounded by a half however far the two are apart. Nothing is detached, and a temperature is
    the caller's. Source: DHKD (arXiv 2411.08937).

    By hand: differences 0 and ln 4, whose sigmoids are 1/2 and 4/5:
    ``0 + .5 ln(.5 / .8) + .5 ln(.5 / .2) = .2231``

    >>> student, teacher = torch.tensor([1.0, math.log(4) + 2]), torch.tensor([1.0, 2.0])
    >>> round(float(binary_kl_norm(student, teacher)), 4)
    0.2231
    """
    d = student - teacher
    d = d.to(torch.promote_types(d.dtype, torch.float32))
    return -(math.log(2) + (logsigmoid(d) + logsigmoid(-d)) / 2).sum(-1)


def binary_kl(student: Tensor, teacher: Tensor) -> Tensor:
    """KL divergence label by label, for examples that may have several labels at once.

    ``sum_c KL(Bernoulli(sigmoid(teacher_c)) || Bernoulli(sigmoid(student_c)))``

    Logits [..., C] twice -> [...], in nats. As a distillation loss MLD of L2D (arXiv 2308.06453),
    whose code clips probabilities at 1e-8; here logits may be of any size.

    By hand: two labels at which the teacher says 3/4 and the student 1/2:
    ``2 (.75 ln 1.5 + .25 ln .5) = .2616``

    >>> student, teacher = torch.zeros(2), torch.full((2,), math.log(3))
    >>> round(float(binary_kl(student, teacher)), 4)
    0.2616
    """
    exact = torch.promote_types(student.dtype, torch.float32)
    s, t = student.to(exact), teacher.to(exact)
    yes, no = (logsigmoid(t) - logsigmoid(s)), (logsigmoid(-t) - logsigmoid(-s))
    return (t.sigmoid() * yes + (-t).sigmoid() * no).sum(-1)
