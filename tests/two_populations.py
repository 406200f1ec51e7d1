"""A method of the tests: two populations with counts of their own in one step."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from stillroom.core import Batch, Method, Needs, Run, Term, Update
from stillroom.losses.divergences import forward_kl
from stillroom.losses.per_row import per_row
from stillroom.losses.policy import label_logp


@dataclass(frozen=True, kw_only=True)
class TwoPopulations(Method):
    """``mean KL(teacher || student)`` of the data's tokens, ``+ 0.5 * mean CE`` of a corpus's."""

    paper = None
    needs = Needs(teacher={"logits"}, streams={"train", "corpus"})
    modality = "text"
    family = "test"

    def prepare(self, run: Run, batch: Batch) -> Batch:
        return batch.add(corpus=run.next("corpus"))

    def updates(self, run: Run, batch: Batch) -> Iterator[Update]:
        corpus = batch.corpus
        close = per_row(_kl, run.student(batch), run.teacher(batch), batch.labels)
        keep = per_row(_nll, run.student(corpus), None, corpus.labels)
        yield Update(
            [Term(close, name="close"), Term(keep, over="corpus.mask", weight=0.5, name="keep")]
        )


def _kl(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    return forward_kl(student, teacher)


def _nll(student: Tensor, teacher: Tensor | None, labels: Tensor) -> Tensor:
    return -label_logp(student, labels)
