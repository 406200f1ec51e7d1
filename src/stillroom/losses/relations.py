"""Relational distillation: match the geometry of a batch of embeddings, not the embeddings.

Student and teacher widths may differ; no projector is needed. Values do not change where either
side is rotated, moved or scaled by a positive number, and follow a reordering of the examples.
Both losses compare the examples of a batch with each other, so the batch must not be split.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import smooth_l1_loss

from stillroom.core import Failure


def distance(student: Tensor, teacher: Tensor) -> Tensor:
    """RKD distance loss: pairwise Euclidean distances, relative to their mean, by Huber.

    ``psi(i, j) = ||a_i - a_j|| / mu``, mu = mean of that side's distances that are above 0
    ``D_i = mean_j huber(psi_s(i, j) - psi_t(i, j))``
    ``huber(u) = u^2 / 2 if |u| <= 1 else |u| - 1/2``

    ``student`` [n, d], ``teacher`` [n, e] -> [n]; the mean over i is the mean over all n * n
    ordered pairs, the diagonal included. The gradient flows through mu. n <= 2 gives 0. A side
    whose examples all coincide has distances 0. Source: Park et al. (arXiv 1904.05068, section
    3.2.1), who sum over pairs; we take the mean, as their code does.

    Raises ``Failure`` where the two are not [n, width] with one n.
    """
    _check(student, teacher)
    gap = smooth_l1_loss(_distances(student), _distances(teacher), reduction="none")
    return gap.mean(1)


def angle(student: Tensor, teacher: Tensor) -> Tensor:
    """RKD angle loss: cosines of the angles of all triplets of examples, by Huber.

    ``e_ij = (a_i - a_j) / ||a_i - a_j||``, ``psi(i, j, k) = <e_ij, e_kj>``
    ``A_j = mean_ik huber(psi_s(i, j, k) - psi_t(i, j, k))``

    ``student`` [n, d], ``teacher`` [n, e] -> [n], one value a vertex j; the mean over j is the
    mean over all n^3 ordered triples. The direction between examples that coincide is taken as
    0, without gradient. Holds n^2 d + n^3 numbers a side: made for n in the hundreds. Source: Park
    et al. (arXiv 1904.05068, section 3.2.2), who sum over triples; we take the mean, as their
    code does.

    Raises ``Failure`` where the two are not [n, width] with one n.
    """
    _check(student, teacher)
    gap = smooth_l1_loss(_cosines(student), _cosines(teacher), reduction="none")
    return gap.mean((1, 2))


def _check(student: Tensor, teacher: Tensor) -> None:
    if student.dim() != 2 or teacher.dim() != 2 or len(student) != len(teacher):
        raise Failure(
            "relations need one embedding an example from each side, [n, width]; got student "
            f"{list(student.shape)} and teacher {list(teacher.shape)}: pool or gather both alike"
        )


def _precise(embedding: Tensor) -> Tensor:
    return embedding.to(torch.promote_types(embedding.dtype, torch.float32))


def _distances(embedding: Tensor) -> Tensor:
    """[n, n] distances divided by the mean of those above 0."""
    points = _precise(embedding)
    # not by matrix product: |a|^2 + |b|^2 - 2ab loses small distances of points far from 0; and
    # cdist has gradient 0, not NaN, where points coincide
    apart = torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist")
    mean = apart.sum() / (apart > 0).sum().clamp(min=1)
    return apart / torch.where(mean > 0, mean, 1.0)


def _cosines(embedding: Tensor) -> Tensor:
    """[n, n, n] cosines of the angle at the first index, between the other two."""
    points = _precise(embedding)
    arrows = points.unsqueeze(0) - points.unsqueeze(1)
    length = torch.linalg.vector_norm(arrows, dim=-1, keepdim=True)
    here = length == 0
    unit = (arrows / length.masked_fill(here, 1.0)).masked_fill(here, 0.0)
    return unit @ unit.transpose(1, 2)
