"""Token-level relations: patches or cells of all images of a batch as the nodes of one graph.

Values compare the tokens of a batch with each other, so the batch must not be split. All are in
nats, and follow a reordering of the tokens (of both sides, and of the images that they belong to).
Similarities are cosines divided by a temperature, in float32 or better.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from stillroom.core import Failure
from stillroom.losses.maps import places


def grid(features: Tensor) -> Tensor:
    """Tokens [B, n, d] in their square, as a map [B, d, side, side]; a map [B, d, h, w] stays.

    Of n = side^2 + 1 tokens the first is the class token, and dropped. Tokens that make no square
    are a row of height 1.

    By hand: five tokens, of which the first stands for the image.

    >>> import torch
    >>> grid(torch.tensor([[[9.0], [1.0], [2.0], [3.0], [4.0]]])).tolist()
    [[[[1.0, 2.0], [3.0, 4.0]]]]

    Raises:
        Failure: the features have no places, as those of a linear layer [B, d].
    """
    if features.dim() == 4:
        return features
    tokens = places(features)
    count = tokens.shape[1]
    if math.isqrt(count - 1) ** 2 == count - 1 > 0:
        tokens, count = tokens[:, 1:], count - 1
    side = math.isqrt(count)
    height = side if side**2 == count else 1
    return tokens.transpose(1, 2).unflatten(2, (height, -1))


def aligned(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Maps or tokens of two networks on one grid, as tokens: [B, N, d] and [B, N, e].

    Along each side the finer grid is averaged down to the coarser, so no token is made up.

    Raises:
        Failure: one side has no places, or tokens that make no square beside another grid.
    """
    own, other = grid(student), grid(teacher)
    if own.shape[2:] != other.shape[2:]:
        for one, said in ((own, student), (other, teacher)):
            if said.dim() == 3 and one.shape[2] == 1 < one.shape[3]:
                raise Failure(
                    f"{said.shape[1]} tokens make no square, so they cannot be brought to the "
                    f"other network's grid: student {list(student.shape)}, teacher "
                    f"{list(teacher.shape)}; name layers that have the same places"
                )
        size = (min(own.shape[2], other.shape[2]), min(own.shape[3], other.shape[3]))
        own, other = (functional.adaptive_avg_pool2d(x, size) for x in (own, other))
    return places(own), places(other)


def neighbours(tokens: Tensor, image: Tensor, k: int) -> Tensor:
    """The k most similar tokens of OTHER images, for each token: [M, d], [M] -> indices [M, k].

    Fewer where some token has fewer of them; neither the token itself nor its own image's count.
    """
    strange = image.unsqueeze(1) != image
    near = _cosines(tokens, tokens).masked_fill(~strange, -torch.inf)
    return near.topk(min(k, int(strange.sum(1).min())), dim=1).indices


def local(student: Tensor, teacher: Tensor, near: Tensor, temperature: float) -> Tensor:
    """Local graph loss: how alike a token is to each of its neighbours, as a distribution.

    ``KL( softmax_{j in N_i}(u_i . u_j / t) || softmax_{j in N_i}(v_i . v_j / t) )``

    with u of the teacher and v of the student at length 1. ``student`` [M, d], ``teacher`` [M, e],
    ``near`` [M, k] the neighbours N_i (``neighbours`` of the teacher's) -> [M]; 0 for equal ones.
    """
    own, other = (_cosines(x, x).gather(1, near) / temperature for x in (student, teacher))
    return _kl(other, own)


def contrast(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Global graph loss (InfoNCE): a token is most alike the teacher's token of the same place.

    ``- log( exp(v_i . u_i / t) / sum_j exp(v_i . u_j / t) )``

    ``student`` [M, d], ``teacher`` [M, d] of the same width -> [M]. Not 0 for equal ones.
    """
    scores = _cosines(student, teacher) / temperature
    return functional.cross_entropy(
        scores, torch.arange(len(scores), device=scores.device), reduction="none"
    )


def context(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Contextual loss: how alike the tokens of one image are to each other, row by row.

    ``mean_i KL( softmax_j(u_i . u_j / t) || softmax_j(v_i . v_j / t) )`` over all places i, j

    ``student`` [B, N, d], ``teacher`` [B, N, e] -> [B]; 0 for equal ones.
    """
    own, other = (_cosines(x, x) / temperature for x in (student, teacher))
    return _kl(other, own).mean(1)


def overlap(near: Tensor, other: Tensor) -> Tensor:
    """The share of one graph's neighbours that are the other's too: indices [M, k] -> [M].

    By hand: of 2 and 3 the other has one.

    >>> import torch
    >>> overlap(torch.tensor([[2, 3]]), torch.tensor([[3, 1]])).tolist()
    [0.5]
    """
    return (near.unsqueeze(2) == other.unsqueeze(1)).any(2).double().mean(1)


def _cosines(one: Tensor, other: Tensor) -> Tensor:
    """[.., n, m] cosines of the rows of [.., n, d] and [.., m, d]."""
    one, other = (
        functional.normalize(x.to(torch.promote_types(x.dtype, torch.float32)), dim=-1)
        for x in (one, other)
    )
    return one @ other.transpose(-1, -2)


def _kl(target: Tensor, scores: Tensor) -> Tensor:
    target, scores = target.log_softmax(-1), scores.log_softmax(-1)
    return (target.exp() * (target - scores)).sum(-1)
