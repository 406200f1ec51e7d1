"""Processes of a data-parallel run: sums, gathers and gradients over all of them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from accelerate import PartialState
from torch import Tensor, nn

from stillroom.core import Batch, Signals

BUCKET = 2**24
"""Elements that are reduced in one call."""


class Processes:
    """This process among the others. Launched by ``accelerate launch`` or ``torchrun``."""

    def __init__(self) -> None:
        state = PartialState(cpu=not torch.cuda.is_available())
        self.rank, self.world = state.process_index, state.num_processes
        self.device = torch.device(state.device or "cpu")

    @property
    def main(self) -> bool:
        return self.rank == 0

    def total(self, value: Tensor) -> Tensor:
        """The sum over processes."""
        if self.world == 1:
            return value
        value = value.detach().clone()
        dist.all_reduce(value)
        return value

    def most(self, value: int) -> int:
        """The largest of the numbers that the processes gave."""
        if self.world == 1:
            return value
        told = torch.tensor(value, device=self.device)
        dist.all_reduce(told, dist.ReduceOp.MAX)
        return int(told)

    def anywhere(self, said: bool) -> bool:
        """Whether any process said so."""
        return bool(self.most(int(said)))

    def everyone(self, value: Any) -> list[Any]:
        """What each process gave, by rank."""
        if self.world == 1:
            return [value]
        said: list[Any] = [None] * self.world
        dist.all_gather_object(said, value)
        return said

    def wait(self) -> None:
        if self.world > 1:
            dist.barrier()

    def gather(self, value: Any) -> Any:
        """Tensors of all processes, joined along the first axis, with gradient.

        Shares have equal sizes. In the backward pass each process gets the sum of all processes'
        gradients for its share.
        """
        if self.world == 1:
            return value
        if isinstance(value, Batch):
            joined = Batch({k: self.gather(v) for k, v in value.items()})
            joined.row_fields = value.row_fields
            return joined
        if isinstance(value, Signals | dict):
            return type(value)({k: self.gather(v) for k, v in value.items()})
        return _Gather.apply(value) if isinstance(value, Tensor) else value

    def reduce_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Adds up the gradients of all processes, in flat buckets of one dtype.

        Every process has run the same graph, so the same parameters have gradients everywhere.
        """
        if self.world == 1:
            return
        grads = [p.grad for p in parameters if p.grad is not None]
        for dtype in dict.fromkeys(g.dtype for g in grads):
            bucket: list[Tensor] = []
            for grad in (g for g in grads if g.dtype == dtype):
                if bucket and sum(g.numel() for g in bucket) + grad.numel() > BUCKET:
                    _reduce(bucket)
                    bucket = []
                bucket.append(grad)
            _reduce(bucket)


def _reduce(bucket: list[Tensor]) -> None:
    flat = torch.cat([g.flatten() for g in bucket])
    dist.all_reduce(flat)
    for grad, share in zip(bucket, flat.split([g.numel() for g in bucket]), strict=True):
        grad.copy_(share.view_as(grad))


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        ctx.size = len(value)
        shares = [torch.empty_like(value) for _ in range(dist.get_world_size())]
        dist.all_gather(shares, value.contiguous())
        return torch.cat(shares)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        grad = grads[0].contiguous().clone()
        dist.all_reduce(grad)
        return grad[dist.get_rank() * ctx.size :][: ctx.size]
