"""Weights on the straight line between two networks of one shape."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from stillroom.core import Failure


def check_alike(one: nn.Module, other: nn.Module) -> None:
    """Raises Failure unless both have the same weights by name and shape."""
    sizes: list[Any] = [
        {k: tuple(v.shape) for k, v in n.state_dict().items()} for n in (one, other)
    ]
    differing = [k for k in sizes[0] | sizes[1] if sizes[0].get(k) != sizes[1].get(k)]
    if differing:
        name = differing[0]
        raise Failure(
            f"there is no line between networks of different shapes: of {name!r} one is "
            f"{sizes[0].get(name)} and the other {sizes[1].get(name)}; give student and teacher "
            "the same 'net'"
        )


@torch.no_grad()
def between(one: nn.Module, other: nn.Module, share: float) -> dict[str, Tensor]:
    """``(1 - share) one + share other`` of all weights and floating-point buffers, by name.

    Running statistics of a norm are taken between, too, and not measured anew. Both ends are exact.

    Raises:
        Failure: the networks have not the same weights by name and shape.
    """
    check_alike(one, other)
    end = other.state_dict()
    return {
        name: value.lerp(end[name].to(value), share) if value.is_floating_point() else value
        for name, value in one.state_dict().items()
    }
