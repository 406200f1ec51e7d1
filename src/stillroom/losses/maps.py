"""Features by place: maps of a convolution, tokens of a transformer, and their means."""

from __future__ import annotations

import torch
from torch import Tensor

from stillroom.core import Failure


def places(features: Tensor) -> Tensor:
    """One vector for each place: tokens, patches or cells of a feature map.

    A map [B, d, h, w] (channels first) -> [B, h * w, d], row by row; tokens [B, n, d] stay.

    By hand: two channels of a map of one row and two columns.

    >>> import torch
    >>> places(torch.tensor([[[[1.0, 2.0]], [[3.0, 4.0]]]])).tolist()
    [[[1.0, 3.0], [2.0, 4.0]]]

    Raises:
        Failure: the features have no places, as those of a linear layer [B, d].
    """
    if features.dim() == 4:
        return features.flatten(2).transpose(1, 2)
    if features.dim() == 3:
        return features
    raise Failure(
        f"a layer that says {list(features.shape)} has no places: name one that gives maps "
        "[B, channels, height, width] or tokens [B, tokens, width] ('stillroom show layers' lists "
        "them)"
    )


def pooled(features: Tensor) -> Tensor:
    """Global average pooling: the mean over places, [B, d]; what has none is itself.

    By hand: 1 and 2 have the mean 1.5.

    >>> import torch
    >>> pooled(torch.tensor([[[[1.0, 2.0]], [[3.0, 4.0]]]])).tolist()
    [[1.5, 3.5]]
    """
    return features if features.dim() == 2 else places(features).mean(1)


def class_maps(features: Tensor, weight: Tensor) -> Tensor:
    """Class activation maps (CAM): how much each place says for each class.

    ``A_c = sum_d W_cd F_d`` at every place, the classifier as a 1x1 convolution before pooling.

    ``features`` [B, d, h, w], ``weight`` [C, d] of the classifier -> [B, C, h, w]. Their mean over
    places is the logit where the network pools by the mean and its classifier has no bias. Source:
    Zhou et al. (arXiv 1512.04150).

    By hand: one channel of 2 and 4, weights 1 and -1: logits 3 and -3.

    >>> import torch
    >>> class_maps(torch.tensor([[[[2.0, 4.0]]]]), torch.tensor([[1.0], [-1.0]])).tolist()
    [[[[2.0, 4.0]], [[-2.0, -4.0]]]]

    Raises:
        Failure: the features are no maps, or of another width than the classifier reads.
    """
    if features.dim() != 4 or features.shape[1] != weight.shape[1]:
        raise Failure(
            f"class activation maps need a layer that says [B, {weight.shape[1]}, height, width], "
            f"as the classifier reads {weight.shape[1]} channels; this one says "
            f"{list(features.shape)}: name the last feature map before the mean over places"
        )
    return torch.einsum("bdhw,cd->bchw", features, weight)
