"""Views of examples: shifted, mirrored, resized, noisy and mixed inputs, anew in each pass."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Lt
from torch import Tensor
from torch.nn import functional

from stillroom.core import Batch, Failure
from stillroom.data.draws import uniform

_VIEWS = 0x7669657773
"""Counter that keeps these draws apart from others of the same seed."""
_EACH = torch.arange(5)
"""Numbers that are drawn for each view: down, right, flip, zoom, noise."""


@dataclass(frozen=True, kw_only=True)
class Places:
    """Which examples of a step a batch holds, counted since the first step.

    Args:
        seed: of the stream.
        passes: [B] the pass over the data of each.
        step: the first sample of the step.
        own: [b] those that the step of this process is about.
        before: [b] the one before each in the step, the last before the first.
    """

    seed: int
    passes: Tensor
    step: int
    own: Tensor
    before: Tensor


@dataclass(frozen=True, kw_only=True)
class Views:
    """How inputs are changed when they are learned from (data augmentation); labels stay.

    Source: the protocols of arXiv 2106.05237. Everything is drawn by the seed, the example and the
    pass, ``mixup`` by the seed and the step: a run that was taken up again, micro-batches and
    processes do not change a view. Evaluation sees none. Images [channels, height, width] and
    signals [channels, length] can be moved; what comes in from outside is 0.

    Args:
        shift: up to so many places in each direction, whole ones.
        flip: mirrors half of the examples, left and right.
        scale: resizes about the centre by a factor within ``1 - scale`` and ``1 + scale``.
        noise: standard deviation of what is added to each number, after the others.
        mixup: ``m x_i + (1 - m) x_(i-1)`` of the views of a step, ``m`` uniform in [1/2, 1] and one
            for the step; so the label is that of the larger part, and no label is mixed.
        teacher: what the teacher sees: ``same`` as the student, its ``own`` draws, or ``clean``,
            the example as it is.
    """

    shift: Annotated[int, Ge(0)] = 0
    flip: bool = False
    scale: Annotated[float, Ge(0), Lt(1)] = 0.0
    noise: Annotated[float, Ge(0)] = 0.0
    mixup: bool = False
    teacher: Literal["same", "own", "clean"] = "same"

    def check(self, batch: Batch) -> None:
        """Raises Failure where the examples are none that can be changed so."""
        if "x" not in batch or not batch.x.is_floating_point():
            got = f"{str(batch.x.dtype)[6:]} numbers" if "x" in batch else "texts"
            raise Failure(f"data.views: are of inputs of floating point, and these are {got}")
        moves = self.shift or self.flip or self.scale
        if moves and batch.x.dim() not in (3, 4):
            raise Failure(
                "data.views: shift, flip and scale move places, and these examples are "
                f"{list(batch.x.shape[1:])}: leave them out, or give images or signals"
            )

    def of(self, batch: Batch, places: Places) -> Batch:
        """The student's views as ``x``, and the teacher's as ``x_teacher`` where it has others."""
        own = batch if len(places.own) == batch.size else batch.only(places.own)
        seen = self._drawn(batch, places, who=0)
        if self.teacher == "same":
            return own.add(x=seen)
        if self.teacher == "clean":
            return own.add(x=seen, x_teacher=own.x)
        return own.add(x=seen, x_teacher=self._drawn(batch, places, who=1))

    def _drawn(self, batch: Batch, places: Places, who: int) -> Tensor:
        """Views [b, ...] of one of the two who look."""
        whose = (batch.id[:, None], places.passes[:, None])
        down, right, flip, zoom, noise = uniform(places.seed, _VIEWS, *whose, who, _EACH).unbind(1)
        x = batch.x
        if self.scale:
            x = _resized(x, 1 - self.scale + 2 * self.scale * zoom)
        if self.flip:
            mirrored = (flip < 0.5).view(-1, *[1] * (x.dim() - 1))
            x = torch.where(mirrored, x.flip(-1), x)
        if self.shift:
            far = 2 * self.shift + 1
            x = _shifted(x, self.shift, (far * down).long(), (far * right).long())
        if self.noise:
            x = x + self.noise * _normal(x, noise)
        if not self.mixup:
            return x[places.own]
        part = float(uniform(places.seed, _VIEWS, places.step, who))
        larger = max(part, 1 - part)
        return larger * x[places.own] + (1 - larger) * x[places.before]


def _resized(x: Tensor, factor: Tensor) -> Tensor:
    """Each image larger by its factor [B] about the centre, of the same size; bilinear."""
    image = x.unsqueeze(2) if x.dim() == 3 else x
    turn = torch.zeros(len(x), 2, 3, dtype=x.dtype)
    turn[:, 0, 0] = turn[:, 1, 1] = (1 / factor).to(x.dtype)
    grid = functional.affine_grid(turn, list(image.shape), align_corners=False)
    return functional.grid_sample(image, grid, align_corners=False).reshape(x.shape)


def _shifted(x: Tensor, most: int, down: Tensor, right: Tensor) -> Tensor:
    """Each image moved by ``down - most`` and ``right - most`` places, [B] each."""
    image = x.unsqueeze(2) if x.dim() == 3 else x
    tall = image.shape[2] > 1
    rims = (most, most, most, most) if tall else (most, most)
    padded = functional.pad(image, rims)
    rows = torch.arange(image.shape[2]) + (2 * most - down[:, None] if tall else 0 * down[:, None])
    columns = torch.arange(image.shape[3]) + 2 * most - right[:, None]
    each = torch.arange(len(x))[:, None, None]
    return padded[each, :, rows[:, :, None], columns[:, None, :]].movedim(-1, 1).reshape(x.shape)


def _normal(x: Tensor, drawn: Tensor) -> Tensor:
    """Standard normal numbers for each example, from one draw [B] an example."""
    made = torch.empty_like(x)
    draw = torch.Generator()
    for one, number in zip(made, drawn.tolist(), strict=True):
        one.normal_(generator=draw.manual_seed(int(number * 2**53)))
    return made
