"""Relational distillation: match the geometry of a batch of embeddings, not the embeddings.

Student and teacher widths may differ; no projector is needed. Values do not change where either
side is rotated, moved or scaled by a positive number, and follow a reordering of the examples.
All compare the examples of a batch with each other, so the batch must not be split.
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


def distance_within(student: Tensor, teacher: Tensor, there: Tensor) -> Tensor:
    """The distance loss in many groups at once, each with distances relative to its own mean.

    ``H_gi = sum_j huber(psi_s(i, j) - psi_t(i, j)) / m_g`` over the m_g members i, j of group g,
    ``psi(i, j) = ||a_i - a_j|| / mu_g``, mu_g = mean of the group's distances that are above 0

    ``student`` [G, M, d], ``teacher`` [G, M, e], ``there`` [G, M] (who is a member, as booleans) ->
    [G, M], 0 for who is none. The sum over i is what ``distance`` sums to for the members alone. A
    group of one or two adds 0: one distance, relative to itself, is 1. Source: class-aware and
    instance-aware distillation of L2D (arXiv 2308.06453).

    Raises ``Failure`` where the shapes are not these.
    """
    sizes = {tuple(side.shape[:2]) for side in (student, teacher, there)}
    if student.dim() != 3 or teacher.dim() != 3 or there.dim() != 2 or len(sizes) > 1:
        raise Failure(
            "groups need one embedding a member from each side, [groups, members, width]; got "
            f"student {list(student.shape)}, teacher {list(teacher.shape)} and members "
            f"{list(there.shape)}"
        )
    pairs = there.unsqueeze(2) & there.unsqueeze(1)
    gap = smooth_l1_loss(_distances(student, pairs), _distances(teacher, pairs), reduction="none")
    return gap.sum(2) / there.sum(1, keepdim=True).clamp(min=1)


def _check(student: Tensor, teacher: Tensor) -> None:
    if student.dim() != 2 or teacher.dim() != 2 or len(student) != len(teacher):
        raise Failure(
            "relations need one embedding an example from each side, [n, width]; got student "
            f"{list(student.shape)} and teacher {list(teacher.shape)}: pool or gather both alike"
        )


def _precise(embedding: Tensor) -> Tensor:
    return embedding.to(torch.promote_types(embedding.dtype, torch.float32))


def _distances(embedding: Tensor, pairs: Tensor | None = None) -> Tensor:
    """[..., n, n] distances divided by the mean of those above 0; those of no pair are 0."""
    points = _precise(embedding)
    # not by matrix product: |a|^2 + |b|^2 - 2ab loses small distances of points far from 0; and
    # cdist has gradient 0, not NaN, where points coincide
    apart = torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist")
    if pairs is not None:
        apart = apart.masked_fill(~pairs, 0.0)
    count = (apart > 0).sum((-2, -1), keepdim=True).clamp(min=1)
    mean = apart.sum((-2, -1), keepdim=True) / count
    return apart / torch.where(mean > 0, mean, 1.0)


def _cosines(embedding: Tensor) -> Tensor:
    """[n, n, n] cosines of the angle at the first index, between the other two."""
    points = _precise(embedding)
    arrows = points.unsqueeze(0) - points.unsqueeze(1)
    length = torch.linalg.vector_norm(arrows, dim=-1, keepdim=True)
    here = length == 0
    unit = (arrows / length.masked_fill(here, 1.0)).masked_fill(here, 0.0)
    return unit @ unit.transpose(1, 2)
