"""What the largest logits say: a teacher with its top scaled up, and cosines by parts of them."""

from __future__ import annotations

import torch
from torch import Tensor


def top_scaled(
    teacher: Tensor, labels: Tensor, top: int, *, gain: float, shift: float, margin: float
) -> Tensor:
    """Top-K scaling of a teacher's logits, and the label put right where the teacher errs.

    In ``I``, the ``top`` largest and the label, of ``rank`` 1, 2, ...:
    ``w = 1 + gain (1 - (rank - 1) / top)``, ``delta = gain shift (mean_I z - mean_rest z)``,
    ``z'_c = z_c w + delta``, with ``z_c / w`` of a negative logit, so that the top never sinks by
    its factor. Where the label is not the largest, ``z'_label = max_c z'_c + margin``. All others
    stay. ``top`` 0 or ``gain`` 0 leave all as it is, mistakes included.

    Equal logits have one rank (that of the best), so those that tie with the last of the top are
    in it, and a label that ties with the largest is right. Where all classes are in I delta is 0.

    ``teacher`` [n, C], ``labels`` [n] -> [n, C], in float32 or better.

    By hand, K = 2, gain .5, no shift: ranks 1 and 2 have w = 1.5 and 1.25.

    >>> z = torch.tensor([[4.0, -1.0, 2.0]])
    >>> top_scaled(z, torch.tensor([0]), 2, gain=0.5, shift=0.0, margin=1.0).tolist()
    [[6.0, -1.0, 2.5]]
    >>> top_scaled(z, torch.tensor([1]), 2, gain=0.5, shift=0.0, margin=1.0).tolist()
    [[6.0, 7.0, 2.5]]
    """
    z = _exact(teacher)
    if not top or not gain:
        return z
    best = z.topk(min(top, z.shape[-1])).values
    rank = 1 + (best.unsqueeze(-2) > z.unsqueeze(-1)).sum(-1)  # of all below the top one more
    label = torch.zeros_like(z, dtype=torch.bool).scatter(-1, labels.unsqueeze(-1), True)
    inside = (rank <= top) | label
    outside = (~inside).sum(-1, keepdim=True)
    gap = _mean(z, inside) - _mean(z, ~inside)
    delta = gain * shift * torch.where(outside > 0, gap, 0.0)
    factor = 1 + gain * (1 - (rank - 1) / top)
    scaled = torch.where(z < 0, z / factor, z * factor) + delta
    moved = torch.where(inside, scaled, z)
    wrong = label & (rank > 1)
    return torch.where(wrong, moved.amax(-1, keepdim=True) + margin, moved)


def parted_cosine(
    student: Tensor, teacher: Tensor, top: int, *, positive: float = 1.0, negative: float = 1.0
) -> Tensor:
    """Decoupled cosine loss of logits: the strongest for, the strongest against, and the rest.

    ``1 - positive cos(P) - negative cos(N) - cos(rest)``, each the cosine of student and teacher
    over some classes: P the teacher's ``top`` largest logits above 0, N its ``top`` smallest below
    0, ties with the last of them included. An empty part is left out. Its least,
    ``1 - positive - negative - 1`` where no part is empty, is reached where the student is the
    teacher times a positive number in each part. A part of one class is 1 or -1 and has no slope.

    It does not change with the scale of either side, but with a number added to all logits of one:
    centre them first where that should not count. A side of zeros in a part counts as cosine 0.

    ``student`` [n, C], ``teacher`` [n, C] -> [n], in float32 or better.

    By hand, K = 2, P = {0, 1}, N = {2, 3}: ``1 - cos 90 - cos 0 = 0``, no rest.

    >>> teacher = torch.tensor([[3.0, 4.0, -1.0, -2.0]])
    >>> value = parted_cosine(torch.tensor([[4.0, -3.0, -2.0, -4.0]]), teacher, 2)
    >>> abs(round(float(value), 4))
    0.0
    """
    own, other = _exact(student), _exact(teacher)
    most = min(top, other.shape[-1])
    strong = weak = torch.zeros_like(other, dtype=torch.bool)
    if most:
        strong = (other > 0) & (other >= other.topk(most).values[..., -1:])
        weak = (other < 0) & (other <= other.topk(most, largest=False).values[..., -1:])
    rest = ~(strong | weak)
    parts = ((positive, strong), (negative, weak), (1.0, rest))
    told = [w * (_unit(own * part) * _unit(other * part)).sum(-1) for w, part in parts]
    return 1 - torch.stack(told).sum(0)


def _unit(x: Tensor) -> Tensor:
    """Of length 1; zeros stay, without gradient."""
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    none = length == 0
    return (x / length.masked_fill(none, 1.0)).masked_fill(none, 0.0)


def _mean(z: Tensor, part: Tensor) -> Tensor:
    """[n, 1] mean over a part of the classes; 0 of none."""
    return (z * part).sum(-1, keepdim=True) / part.sum(-1, keepdim=True).clamp_min(1)


def _exact(value: Tensor) -> Tensor:
    return value.to(torch.promote_types(value.dtype, torch.float32))
