"""One pass over the LM heads: the values of an objective and, beside them, its gradients."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from stillroom.core import Failure, Head, Objective, Sparse

BUDGET = 2**28
"""Bytes that the logits of one block of rows may take, both sides together, in float32."""
MOST_ROWS = 256
"""Rows of a block where the budget allows more: matrix products gain nothing beyond."""
MOST_VALUES = 8
"""Numbers a row that an objective may return side by side, where several are measured at once."""
TILE = 1024
"""Tokens whose logits are made by one product: larger ones leave the cache."""
SLICE = 2**17
"""Logits that the objective sees at once: what it makes on the way stays in the cache."""


@dataclass(frozen=True)
class Task:
    """What ``per_row`` was asked, checked; labels count the head's rows.

    ``theirs`` [N, d] or, without ``their_head``, logits [N, V] or some tokens of each row.
    ``foreign`` logits are of other tokens than the student's, and stay as they are. ``heads`` names
    the inputs that are what further networks said: states with their head, or logits without one;
    the objective gets logits of both.
    """

    objective: Objective
    rows: Tensor
    head: Head
    theirs: Tensor | Sparse | None
    their_head: Head | None
    labels: Tensor | None
    inputs: Mapping[str, Tensor | None]
    foreign: bool = False
    heads: Mapping[str, Head | None] = field(default_factory=dict)

    @property
    def tensors(self) -> tuple[Tensor | None, ...]:
        """What may learn on the student's side: states, weight, bias, row inputs."""
        return (self.rows, self.head.weight, self.head.bias, *self.inputs.values())

    @property
    def widths(self) -> tuple[int, int]:
        """Columns of the logits of both sides; 0 where there is no teacher."""
        if self.their_head is not None:
            return len(self.head.weight), len(self.their_head.weight)
        return len(self.head.weight), 0 if self.theirs is None else self.theirs.shape[-1]

    @property
    def further(self) -> list[int]:
        """Columns of the logits of ``heads``."""
        return [self._columns(name) for name in self.heads]

    def _columns(self, name: str) -> int:
        head, given = self.heads[name], self.inputs[name]
        assert given is not None
        return given.shape[-1] if head is None else len(head.weight)

    @property
    def width(self) -> int:
        """Columns of the student's logits that are used: those that all have."""
        own, other = self.widths
        return min([own, *([] if self.foreign or not other else [other]), *self.further])

    @property
    def their_width(self) -> int:
        """Columns of the teacher's."""
        return self.widths[1] if self.foreign else self.width

    @property
    def block_size(self) -> int:
        columns = sum(self.widths) + sum(self.further)
        return max(1, min(MOST_ROWS, len(self.rows), BUDGET // (4 * columns)))

    def narrowed(self, theirs: Any) -> Any:
        """Logits of the columns that are used; of some tokens a row, those among the columns."""
        width = self.their_width
        if theirs is None or theirs.shape[-1] <= width:
            return theirs
        return theirs.below(width) if isinstance(theirs, Sparse) else theirs[:, :width]

    def further_logits(self, name: str, products: Tensor) -> Tensor:
        """Logits of a further network, of the columns that are used."""
        head = self.heads[name]
        return (products if head is None else head.finished(products))[:, : self.width]

    def value(self, student: Tensor, teacher: Any, *others: Tensor | None) -> Tensor:
        """The objective on some rows: logits of both, labels, row inputs."""
        labels, *inputs = others
        named = dict(zip(self.inputs, inputs, strict=True))
        return checked(self.objective(student, teacher, labels, **named), len(student))


def checked(value: Tensor, rows: int) -> Tensor:
    """``value``; raises Failure where it is not one value a row, or a few side by side."""
    if value.shape[:1] != (rows,) or value.dim() > 2 or value.shape[1:2] > (MOST_VALUES,):
        raise Failure(
            f"the objective returned shape {list(value.shape)} for {rows} rows; return one value "
            "a row (or a few side by side), neither reduced nor one a token of the vocabulary"
        )
    return value


def measured(task: Task) -> Tensor:
    """The values alone: two matrix products."""
    walk = _Walk(task)
    walk.go()
    return walk.values


def scored(task: Task, again: Callable[[], Tensor]) -> Tensor | None:
    """The values, their gradient by ``task.tensors`` at hand: four matrix products.

    None where that is not all that is asked for: the objective holds tensors that learn, or gives
    several numbers a row. ``again`` gives the same values with a graph, for second derivatives.
    """
    walk = _Walk(task, learning=True)
    return _Deposit.apply(walk, again, *task.tensors) if walk.go() else None


class _Walk:
    """A walk over all rows in blocks: their ``values``, and ``gradients`` of ``task.tensors``.

    The logits of a block are made once, by tiles of the vocabulary; slice by slice their gradient,
    that of each value times its entry of ``scale`` [N], takes the place of the student's. From
    there it is multiplied on to states and head, except for the ``last`` block: it waits for the
    gradient that arrives in the backward pass, so that scaling by it costs no pass of its own.
    """

    def __init__(self, task: Task, *, learning: bool = False, scale: Tensor | None = None) -> None:
        self.task, self.learning, self.scale = task, learning, scale
        self.values = self.last = task.rows.new_empty(0)
        self.last_at = slice(0, 0)
        self.gradients: dict[int, Tensor] = {}
        bias = task.head.bias
        self.head = replace(task.head, bias=None if bias is None else bias.detach())

    def gradient(self, place: int) -> Tensor | None:
        """That of ``task.tensors[place]``, from zeros at first; None where it does not learn."""
        tensor = self.task.tensors[place]
        if tensor is None or not self.learning or not tensor.requires_grad:
            return None
        if place not in self.gradients:
            # filled, though most of it is written to: a product into untouched memory is slow
            self.gradients[place] = torch.zeros_like(tensor, dtype=_exact(tensor))
        return self.gradients[place]

    @torch.no_grad()
    def go(self) -> bool:
        """Whether it came to the end: not where gradients of other tensors are asked for."""
        task, size = self.task, self.task.block_size
        own = task.rows.new_empty(size, task.width, dtype=_exact(task.rows))
        other = None
        if isinstance(task.theirs, Tensor) and task.their_head is not None:
            other = task.theirs.new_empty(size, task.their_width, dtype=_exact(task.theirs))
        room = {
            name: given.new_empty(size, task.width, dtype=_exact(given))
            for name, given in task.inputs.items()
            if given is not None and task.heads.get(name) is not None
        }
        with torch.autocast(task.rows.device.type, enabled=False):
            for start in range(0, max(1, len(task.rows)), size):
                if self.learning and start:
                    self._spread(1.0)
                at = slice(start, min(start + size, len(task.rows)))
                self.last_at, self.last = at, own[: at.stop - at.start]
                if not self._block(other, room):
                    return False
        return True

    @torch.no_grad()
    def finished(self, slope: Tensor) -> dict[int, Tensor]:
        """``gradients`` of the sum of the values, each times its entry of ``slope`` [N]."""
        same = bool((slope == slope[:1]).all())
        if not same and self.last_at.start:  # earlier blocks are summed up already
            walk = _Walk(self.task, learning=True, scale=slope)
            walk.go()
            return walk.finished(torch.ones_like(slope))
        if not same:
            self.last *= slope.unsqueeze(-1)
        for place, made in self.gradients.items():
            if place not in (1, 2):  # has an entry a row, those of the last block yet to come
                made *= slope.view(-1, *[1] * (made.dim() - 1))
        with torch.autocast(slope.device.type, enabled=False):
            self._spread(float(slope[0]) if same and len(slope) else 1.0)
        return self.gradients

    def _block(self, other: Tensor | None, room: Mapping[str, Tensor]) -> bool:
        task, at = self.task, self.last_at
        n = at.stop - at.start
        own = _products(task.rows[at], task.head, self.last)
        targets: Any = None if task.theirs is None else task.theirs[at]
        if other is not None and task.their_head is not None:
            targets = _products(targets, task.their_head, other[:n])
        further = self._further(at, room)
        step = max(1, SLICE // task.width)
        for low in range(0, max(1, n), step):
            part = slice(low, min(low + step, n))
            goal = None if targets is None else task.narrowed(targets[part])
            if goal is not None and task.their_head is not None:
                goal = task.their_head.finished(goal)
            said = {name: task.further_logits(name, made[part]) for name, made in further.items()}
            if not self._slice(slice(at.start + low, at.start + part.stop), own[part], goal, said):
                return False
        return True

    def _further(self, at: slice, room: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What comes of the states of further networks by their heads, finished later."""
        made = {}
        for name, head in self.task.heads.items():
            given = self.task.inputs[name]
            assert given is not None
            made[name] = given[at]
            if head is not None:
                made[name] = _products(given[at], head, room[name][: at.stop - at.start])
        return made

    def _slice(self, at: slice, own: Tensor, goal: Any, further: Mapping[str, Tensor]) -> bool:
        """Values of a few rows; afterwards ``own`` is their gradient."""
        task = self.task
        leaf = own.detach().requires_grad_(self.learning)
        inputs = [
            further.get(name)
            if tensor is None or name in further
            else tensor[at].detach().requires_grad_(self.learning and tensor.requires_grad)
            for name, tensor in task.inputs.items()
        ]
        labels = None if task.labels is None else task.labels[at]
        with torch.set_grad_enabled(self.learning):
            value = task.value(self.head.finished(leaf), goal, labels, *inputs)
        if not at.start:
            self.values = value.new_empty(len(task.rows), *value.shape[1:])
        self.values[at] = value.detach()
        if not self.learning:
            return True
        leaves = [leaf, *(t for t in inputs if t is not None and t.requires_grad)]
        if value.dim() > 1 or _reaches_others(value, leaves):
            return False
        slopes: Sequence[Tensor | None] = [None] * len(leaves)
        if value.requires_grad:
            factors = torch.ones_like(value) if self.scale is None else self.scale[at].to(value)
            slopes = torch.autograd.grad(value, leaves, factors, allow_unused=True)
        made = (self.gradient(place) for place in range(3, len(task.tensors)))
        places = [own, *(one[at] for one in made if one is not None)]
        for place, slope in zip(places, slopes, strict=True):
            place.zero_() if slope is None else place.copy_(slope)
        return True

    def _spread(self, factor: float) -> None:
        """From the gradient of the last block's logits to those of states, weight and bias.

        It and the sums of blocks before it are multiplied by ``factor``.
        """
        task, at, slopes = self.task, self.last_at, self.last
        rows, dtype = task.rows[at], _fast(task.rows, slopes)
        hidden, weight, bias = (self.gradient(place) for place in range(3))
        before = factor if at.start else 0.0
        for low in range(0, task.width, TILE):
            part = slice(low, min(low + TILE, task.width))
            tile, theirs = slopes[:, part], task.head.weight[part]
            if hidden is not None:
                _add(hidden[at], tile, theirs, dtype, float(low > 0), factor)
            if weight is not None:
                _add(weight[part], tile.T, rows, dtype, before, factor)
        if bias is not None:
            bias.mul_(factor)[: task.width].add_(slopes.sum(0), alpha=factor)


class _Deposit(torch.autograd.Function):
    """Hands over the gradients that a walk has made with its values."""

    @staticmethod
    def forward(ctx: Any, walk: _Walk, again: Callable[[], Tensor], *tensors: Any) -> Tensor:
        ctx.walk, ctx.again = walk, again
        ctx.save_for_backward(*tensors)
        values, walk.values = walk.values, walk.values.new_empty(0)
        return values

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> Any:
        slope, walk, ctx.walk = slopes[0], ctx.walk, None
        tensors = ctx.saved_tensors  # raises where one was changed in place since
        if walk is None or torch.is_grad_enabled():
            return None, None, *_by_graph(ctx, slope)
        made = walk.finished(slope)
        del walk
        # popped: autograd takes over a tensor that nobody else holds, without a copy
        return (
            None,
            None,
            *(
                made.pop(place).to(tensor.dtype) if place in made else None
                for place, tensor in enumerate(tensors)
            ),
        )


def _by_graph(ctx: Any, slope: Tensor) -> list[Tensor | None]:
    """The same with a graph: a second derivative is asked for, or a second backward pass."""
    create = torch.is_grad_enabled()
    asked = [tensor for tensor in ctx.saved_tensors if tensor is not None and tensor.requires_grad]
    with torch.enable_grad():
        found = iter(
            torch.autograd.grad(ctx.again(), asked, slope, create_graph=create, allow_unused=True)
        )
    return [next(found) if any(t is one for one in asked) else None for t in ctx.saved_tensors]


def _products(rows: Tensor, head: Head, out: Tensor) -> Tensor:
    """``rows W^T`` into ``out``, by tiles of the vocabulary; with a head's bias still to come."""
    dtype = _fast(rows, out)
    for low in range(0, out.shape[1], TILE):
        part = slice(low, min(low + TILE, out.shape[1]))
        _add(out[:, part], rows, head.weight[part].T, dtype, 0.0, 1.0)
    return out


def _add(out: Tensor, a: Tensor, b: Tensor, dtype: torch.dtype, beta: float, alpha: float) -> None:
    """``out = beta out + alpha a @ b``, multiplied in ``dtype``; beta 0 does not read ``out``."""
    a, b = a.to(dtype), b.to(dtype)
    if dtype == out.dtype:
        torch.addmm(out, a, b, beta=beta, alpha=alpha, out=out)
    elif beta:
        out.mul_(beta).add_(a @ b, alpha=alpha)
    else:
        out.copy_(a @ b).mul_(alpha)


def _fast(rows: Tensor, out: Tensor) -> torch.dtype:
    """A GPU multiplies in the dtype of the states; elsewhere float32 is exact and hardly slower."""
    return rows.dtype if rows.is_cuda else out.dtype


def _exact(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)


def _reaches_others(value: Tensor, leaves: Sequence[Tensor]) -> bool:
    """Whether the graph of ``value`` ends in a tensor that learns and is none of ``leaves``."""
    seen, todo = set(), [value.grad_fn]
    while todo:
        node: Any = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        leaf = getattr(node, "variable", None)
        if leaf is not None and not any(leaf is one for one in leaves):
            return True
        todo += [following for following, _ in node.next_functions]
    return False
