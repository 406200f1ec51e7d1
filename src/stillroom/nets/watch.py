"""What a critic's scores are worth: logged, and noted where it need not read."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from stillroom.core import Batch, Run
from stillroom.nets.average import Averages

WATCHED = 20
"""Steps of the critic before anything is said of it: a few pairs tell nothing."""


def averages() -> Averages:
    """The player ``watch``: how often critic, length and end picked the teacher, lately."""
    return Averages(3, decay=0.9)


def watch(run: Run, duel: Batch, samples: Batch, theirs: Tensor, own: Tensor) -> float:
    """Logs whether the critic judges more than length and the end; returns its recent accuracy.

    Scores [n] of samples and of the teacher's answer to the same prompts, from before the critic
    learns from them: the accuracy is held out. A tie counts a half.
    """
    group = samples.size // duel.size
    length, ends = _length(samples), _ends(run, samples)
    longer = _length(duel).repeat_interleave(group) - length
    closed = _ends(run, duel).repeat_interleave(group) - ends
    wins, by_length, by_end = _won(theirs - own), _won(longer), _won(closed)
    seen = {
        "critic_accuracy": wins,
        "score_gap": theirs - own,
        "length": length,
        "eos_rate": ends,
        "length_accuracy": by_length,
        "eos_accuracy": by_end,
    }
    run.log(**{f"gad/{name}": value for name, value in seen.items()})
    now = torch.stack([x.double().mean() for x in (wins, by_length, by_end)])
    recent = run.players["watch"]
    won, *bare = recent(run.gather(now[None]).mean(0)).tolist()
    for rule, right in zip(("length", "EOS"), bare, strict=True):
        if recent.steps >= WATCHED and won > 0.75 and max(right, 1 - right) > won - 0.05:
            run.note(
                f"GAD: the critic need not read: {rule} alone tells teacher from student about "
                "as well as its scores (gad/critic_accuracy beside gad/length_accuracy and "
                "gad/eos_accuracy); its reward may carry nothing else"
            )
    return won


def _length(batch: Batch) -> Tensor:
    """Tokens of each answer, on whichever side the padding is."""
    return (batch.real.sum(1) - batch.prompt).double()


def _ends(run: Run, batch: Batch) -> Tensor:
    """1 where an answer came to its end, 0 where it was cut."""
    student: Any = run.players["student"]
    last = batch.ids.gather(1, batch.last[:, None]).squeeze(1)
    return torch.isin(last, last.new_tensor(student.stop_ids)).double()


def _won(gap: Tensor) -> Tensor:
    """1 where positive, 0 where negative, a half for a tie."""
    return (torch.sign(gap) + 1) / 2
