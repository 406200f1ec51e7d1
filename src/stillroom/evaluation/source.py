"""How far a student is from the source of a made-up world itself, whatever its teacher was."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from stillroom.core import Failure
from stillroom.data.markov import Markov
from stillroom.evaluation.suite import View, mean
from stillroom.losses.divergences import forward_kl, reverse_kl
from stillroom.losses.per_row import per_row

SURE = 0.9
"""Where the source gives one token more than this, it is sure."""
COLUMNS = {
    "source_kl": ("KL(source || student), nats a token of the source's text", "lower"),
    "source_kl_sure": ("the same where the source is sure", "lower"),
    "source_kl_broad": ("the same elsewhere", "lower"),
    "source_reverse_kl": ("KL(student || source), nats a token of the student's text", "lower"),
    "invalid": ("sampled tokens that may not follow", "lower"),
}


def measure(view: View) -> dict[str, float]:
    """Exact divergences from the source, and what the student's samples break.

    Raises:
        Failure: the data are not of the world ``markov``.
    """
    if not isinstance(view.world, Markov):
        raise Failure("eval.metrics: source compares with the source of the world markov alone")
    network = view.world.teacher()
    told = torch.cat(
        [per_row(_given, view.student(b), network(b), b.labels).cpu() for b in view.batches()]
    )
    sure = told[:, 1] > SURE
    return {
        "source_kl": mean([told[:, 0]]),
        "source_kl_sure": mean([told[sure, 0]]),
        "source_kl_broad": mean([told[~sure, 0]]),
        **_written(view, network),
    }


def _written(view: View, network: Any) -> dict[str, float]:
    """Of what the student writes, at whatever temperature the recipe samples."""
    far, broken = [], []
    for _, batch in view.answered():
        far.append(per_row(_reverse, view.student(batch), network(batch), batch.labels))
        ids, rows = batch.ids.flatten(), batch.rows
        allowed = view.world.allowed.to(ids.device)
        broken.append((~allowed[ids[rows - 1], ids[rows], batch.labels]).double())
    return {"source_reverse_kl": mean(far), "invalid": mean(broken)}


def _given(student: Tensor, source: Tensor, labels: Tensor) -> Tensor:
    """The divergence, and the largest probability of the source."""
    largest = source.softmax(-1).amax(-1)
    return torch.stack([forward_kl(student, source), largest], -1)


def _reverse(student: Tensor, source: Tensor, labels: Tensor) -> Tensor:
    return reverse_kl(student, source)
