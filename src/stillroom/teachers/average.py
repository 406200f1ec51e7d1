"""The student's own moving average as its teacher (mean teacher, EMA)."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from stillroom.teachers.local import Local


class Average(Local):
    """A frozen copy of the student whose weights follow it: ``a <- decay a + (1 - decay) w``.

    It starts as the student is and is moved by ``follow`` after each step; what the student does
    not learn is shared, its buffers are copied. Source: mean teachers (arXiv 1703.01780).

    Args:
        student: a network with ``snapshot()``.
        decay: near 1; the average reaches back some ``1 / (1 - decay)`` steps.
    """

    def __init__(self, student: Any, decay: float) -> None:
        super().__init__(student.snapshot())
        self.decay = decay

    @torch.no_grad()
    def follow(self, student: nn.Module) -> None:
        """One step towards the student's weights."""
        pairs = zip(self.network.parameters(), student.parameters(), strict=True)
        for own, theirs in pairs:
            if theirs.requires_grad:
                own.lerp_(theirs.to(own), 1 - self.decay)
        for own, theirs in zip(self.network.buffers(), student.buffers(), strict=True):
            own.copy_(theirs)
