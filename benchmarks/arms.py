"""One loss by several libraries, from hidden states through the head; and the bare products.

A divergence is ``forward_kl``, ``reverse_kl`` or ``jsd`` (beta 0.5); with ``+labels`` the
cross-entropy of the labels is added with weight 1. Each arm returns the mean over rows, whose
``backward`` leaves gradients at the student's hidden states and head.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from importlib.util import find_spec

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.oracle import Inputs
from stillroom.core import Head, Signals
from stillroom.extras import extra
from stillroom.losses import divergences
from stillroom.losses.per_row import per_row
from stillroom.losses.policy import label_logp

BETA = {"forward_kl": 0.0, "reverse_kl": 1.0, "jsd": 0.5}
WHY = "the other libraries of a benchmark"
BLOCK = 512
"""Rows of one bare product, so that its buffers fit; more rows a product are no faster."""

Arm = Callable[[Inputs, str], Tensor]


def stillroom(x: Inputs, divergence: str) -> Tensor:
    """``per_row`` with an objective of one or two terms."""
    name, _, label = divergence.partition("+")
    distance = getattr(divergences, name)

    def objective(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
        value = distance(student, teacher)
        return value - label_logp(student, labels) if label else value

    student = Signals(hidden=x.hidden, head=Head(x.weight))
    teacher = Signals(hidden=x.their_hidden, head=Head(x.their_weight))
    return per_row(objective, student, teacher, x.labels).mean()


def trl_gkd(x: Inputs, divergence: str) -> Tensor:
    """``GKDTrainer.generalized_jsd_loss`` of logits of all rows, as its trainer makes them."""
    trainer = extra("trl.experimental.gkd", "bench", why=WHY).GKDTrainer
    with torch.no_grad():
        theirs = functional.linear(x.their_hidden, x.their_weight)
    mine = functional.linear(x.hidden, x.weight)
    return trainer.generalized_jsd_loss(mine, theirs, beta=BETA[divergence])


def trl_chunked(x: Inputs, divergence: str) -> Tensor:
    """``ChunkedDivergenceFunction``, the loss of ``DistillationTrainer``."""
    kernel = extra("trl.kernels.chunked_divergence", "bench", why=WHY).ChunkedDivergenceFunction
    given = (x.hidden, x.weight, None, x.their_hidden, x.their_weight, None)
    return kernel.apply(*given, BETA[divergence])[0].mean()


def liger(x: Inputs, divergence: str, *, compiled: bool = False) -> Tensor:
    """``LigerFusedLinearJSDLoss``, the variant in plain torch; chunks of 1024 rows."""
    losses = extra("liger_kernel.chunked_loss", "bench", why=WHY)
    name, _, label = divergence.partition("+")
    weights = {"weight_hard_loss": float(bool(label)), "weight_soft_loss": 1.0}
    loss = losses.LigerFusedLinearJSDLoss(**weights, beta=BETA[name], compiled=compiled)
    return loss(x.hidden, x.weight, x.their_hidden, x.their_weight, x.labels)


def liger_compiled(x: Inputs, divergence: str) -> Tensor:
    """The same under ``torch.compile``, which is its default."""
    return liger(x, divergence, compiled=True)


ARMS: dict[str, Arm] = {
    "stillroom": stillroom,
    "TRL GKD": trl_gkd,
    "TRL chunked": trl_chunked,
    "Liger": liger,
    "Liger compiled": liger_compiled,
}
LABELS_TOO = ("stillroom", "Liger", "Liger compiled")
"""Arms that add the cross-entropy of labels in the same pass."""


def present(divergence: str) -> dict[str, Arm]:
    """The arms whose library is installed and that know the divergence."""
    packages = {"TRL": "trl", "Liger": "liger_kernel"}
    return {
        name: arm
        for name, arm in ARMS.items()
        if (name in LABELS_TOO or "+" not in divergence)
        and find_spec(packages.get(name.partition(" ")[0], "stillroom")) is not None
    }


class Bare:
    """The four matrix products of a loss and its gradients, alone, into buffers that are warm.

    Logits of student and teacher, the gradient of the states, the gradient of the head. Of each
    the layouts are tried once, and the fastest is kept.
    """

    def __init__(self, x: Inputs, dtype: torch.dtype) -> None:
        self.count = len(x.hidden)
        rows, (vocab, width) = min(BLOCK, self.count), x.weight.shape
        self.mine, self.head = x.hidden.detach().to(dtype), x.weight.detach().to(dtype)
        self.theirs, self.their_head = x.their_hidden.to(dtype), x.their_weight.to(dtype)
        logits = [torch.zeros(vocab * rows, dtype=dtype) for _ in range(2)]
        self.tall, self.their_tall = (one.view(vocab, rows) for one in logits)
        self.wide, self.their_wide = (one.view(rows, vocab) for one in logits)
        self.d_hidden = torch.zeros(rows, width, dtype=dtype)
        self.d_head = torch.zeros(vocab, width, dtype=dtype)
        self.rows = rows
        self.kept = {name: self._fastest(ways) for name, ways in self._ways().items()}

    def _ways(self) -> dict[str, dict[str, Callable[[], object]]]:
        rows = self.rows
        h, t = self.mine[:rows], self.theirs[:rows]
        mm, head, their_head = torch.mm, self.head, self.their_head
        return {
            "student logits": {
                "W h'": lambda: mm(head, h.T, out=self.tall),
                "h W'": lambda: mm(h, head.T, out=self.wide),
            },
            "teacher logits": {
                "W h'": lambda: mm(their_head, t.T, out=self.their_tall),
                "h W'": lambda: mm(t, their_head.T, out=self.their_wide),
            },
            "d_hidden": {
                "G' W": lambda: mm(self.tall.T, head, out=self.d_hidden),
                "G W": lambda: mm(self.wide, head, out=self.d_hidden),
            },
            "d_head": {
                "G h": lambda: mm(self.tall, h, out=self.d_head),
                "+= G h": lambda: self.d_head.addmm_(self.tall, h),
                "G' h": lambda: mm(self.wide.T, h, out=self.d_head),
            },
        }

    @staticmethod
    def _fastest(ways: dict[str, Callable[[], object]]) -> tuple[str, Callable[[], object]]:
        took: dict[str, list[float]] = {name: [] for name in ways}
        for turn in range(4):
            for name, way in ways.items():
                begun = time.process_time()
                way()
                took[name] += [time.process_time() - begun] if turn else []
        best = min(ways, key=lambda name: statistics.median(took[name]))
        return best, ways[best]

    @property
    def layouts(self) -> dict[str, str]:
        """Which layout was the fastest, by product."""
        return {product: name for product, (name, _) in self.kept.items()}

    def __call__(self) -> None:
        for _ in range(0, self.count, self.rows):
            for _, way in self.kept.values():
                way()
