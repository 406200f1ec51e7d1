"""A teacher with a tokenizer of its own: it reads what the student reads, told in its tokens."""

from __future__ import annotations

from typing import Any

import torch

from stillroom.core import Batch, Signals
from stillroom.data.retelling import Retelling
from stillroom.teachers.local import Local


class Foreign(Local):
    """A frozen network that scores its own tokens for the same prompts and answers.

    It gives ``spans``: by the name of a pairing (``retelling.Retold``) what the network says at the
    row that goes with the student's, and ``paired`` [N], 1 where there is one and 0 where what
    stands there means nothing; ``nodes`` [N] beside ``within``; and ``common``, which tells how
    scores of both can be compared. ``answer`` is all that it says of its own M rows, with
    ``owner`` [M], the example of the batch that each belongs to; ``features`` are there alone. What
    a network with another vocabulary says is for ``per_row(..., foreign=True)``.

    Args:
        network: as of ``Local``.
        retelling: from the student's tokenizer to that of the network.
    """

    def __init__(self, network: Any, retelling: Retelling) -> None:
        super().__init__(network)
        self.retelling = retelling
        self.signals = frozenset({"spans", "text"} | (self.signals & {"features"}))

    def __call__(self, batch: Batch, *, grad: bool = False) -> Signals:
        told = self.retelling(batch)
        said = super().__call__(told.batch, grad=grad)
        kind = "hidden" if "hidden" in said else "logits"
        exact = torch.promote_types(said[kind].dtype, torch.float32)
        scores = {name: value for name, value in said.items() if name != "features"}
        pairs = {
            name: Signals(
                {**scores, kind: said[kind][rows.clamp_min(0)], "paired": (rows >= 0).to(exact)}
            )
            for name, rows in told.pairs.items()
        }
        answer = Signals(said, owner=told.batch.owner)
        return Signals(pairs, answer=answer, nodes=told.nodes, common=self.retelling.common)
