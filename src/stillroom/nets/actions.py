"""A bounded value of every next token: the critic of methods that match action values."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from stillroom.core import Head, Signals


class ActionValues(nn.Module):
    """``f(s, v) = tanh(<W h(s), e_v> / sqrt(d))`` of all tokens at once, in (-1, 1).

    h is what the student's head reads, from which no gradient goes back; W [d, d] begins at
    ``begin`` times the identity and e [V, d] as the rows of that head: at 0 all values are 0, at 1
    they are a squashed copy of the student's logits. The root keeps logits of trained models out of
    the flat ends of the tanh.

    Such a critic sees little of what cross-entropy has fitted: where the student's head is at that
    optimum, ``E (p(v) - q(v)) h = 0`` for each v, and so is the gap of every f linear in h.

    Args:
        head: of the student.
        begin: see above.
    """

    def __init__(self, head: Head, begin: float) -> None:
        super().__init__()
        kept = torch.promote_types(head.weight.dtype, torch.float32)
        rows = head.weight.detach().to(kept)
        self.states = nn.Parameter(begin * torch.eye(rows.shape[1]).to(rows))
        self.tokens = nn.Parameter(rows.clone())
        self.ids: Tensor | None = None

    @property
    def head(self) -> Head:
        """From what ``forward`` gave last to its scores: of all tokens, or of a view's."""
        rows = self.tokens if self.ids is None else self.tokens[self.ids]
        return Head(rows, scale=len(self.states) ** -0.5, soft_cap=1.0, ids=self.ids)

    def forward(self, student: Signals) -> Signals:
        """The scores at the student's rows, as ``hidden`` [N, d] and ``head``; of its tokens."""
        self.ids = student.head.ids
        # differences of scores are small beside the scores, so bfloat16 has too few digits
        with torch.autocast(self.states.device.type, enabled=False):
            states = student.hidden.detach().to(self.states) @ self.states.T
        return Signals(hidden=states, head=self.head)
