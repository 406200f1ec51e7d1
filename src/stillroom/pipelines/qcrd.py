"""QCRD: rationales of the majority are learned, and the others pushed away as far as is useful."""

# Longer than a file should be: the loss and its discriminator are of this pipeline alone.

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from annotated_types import Ge, Gt
from torch import Tensor, nn
from torch.nn.functional import softplus

from stillroom.core import (
    Batch,
    Lesson,
    Method,
    Needs,
    Paper,
    Pipeline,
    Run,
    Setup,
    Term,
    Update,
    Work,
)
from stillroom.data.further import REJECTED
from stillroom.data.rows import Row
from stillroom.data.text import completions_of
from stillroom.losses.preference import preference
from stillroom.methods._bases import PairMethod
from stillroom.traces.voting import voted

SECOND = "positive_2"
"""The column of a further rationale of the majority; it repeats the first where there is none."""


@dataclass(frozen=True, kw_only=True)
class QCRD(Pipeline):
    """Contrastive distillation of rationales that a vote has parted, weighed by their quality.

    1. The teacher writes ``n`` rationales to each question. Those whose answer is that of the
       majority (self-consistency) are positives, the others negatives; a question without a
       majority is left out. No gold answer is used.
    2. ``L = a D(r+) min_{r in S+} l(x, r) + b (1 - D(r-)) max(0, delta - l(x, r-))``, mean over
       questions, with ``l(x, r) = mean_t -log p(r_t | x, r_<t)`` and r+ the closest positive. A
       negative that is ``delta`` nats a token away has no gradient: without that end its term
       falls without bound.
    3. ``D(r) = sigmoid(w^T tanh(W max_t h_t))``, the quality of a rationale, h_t the student's
       last states, learns ``-log D(r+) - log(1 - D(r-))`` of the same questions beside it. The
       student has no gradient through D, nor D through the student's term. It begins at 1/2.

    ``quality: false`` sets both weights of D to 1; without ``negatives`` there is nothing that D
    could learn from, and what is left is step-by-step distillation of the majority's rationales.

    Recorded: ``qcrd/positive``, l of the closest positive, ``qcrd/pairs``, the share of questions
    that have a negative, and, 0 for the others, ``qcrd/negative``, l of the negative,
    ``qcrd/active``, whether it is below delta, ``qcrd/good`` and ``qcrd/bad``, D of both.

    Differences: two positives and one negative of a question are read, the first that differ. D
    reads the student's own states in place of an encoder of its own, and learns from the first step
    on: it is not trained before by words that were masked and replaced. Samples of an earlier
    student as negatives, the task of the answer alone (its prefix ``predict``) and the weight that
    falls by .9 are left out. Unconfirmed: the places of the weights; which negative of several
    counts.

    Args:
        n: rationales of the teacher to each question.
        temperature: of these; null leaves it to the teacher.
        positive: a, the weight of positives.
        negative: b, that of negatives.
        delta: how far a negative is pushed away, in nats a token.
        negatives: whether there is the second term.
        quality: whether D weighs both terms.
    """

    paper = Paper(
        "2405.13014", "Wang, Li, Xu et al., 2024",
        "QCRD: Quality-guided Contrastive Rationale Distillation for Large Language Models",
    )  # fmt: skip
    needs = Needs(teacher={"text"}, fresh=True)
    modality = "text"
    family = "reasoning"

    n: Annotated[int, Ge(1)] = 5
    temperature: Annotated[float, Ge(0)] | None = 0.7
    positive: Annotated[float, Gt(0)] = 0.5
    negative: Annotated[float, Ge(0)] = 0.5
    delta: Annotated[float, Gt(0)] = 3.0
    negatives: bool = True
    quality: bool = True

    def questions(self, work: Work) -> int:
        return self.n * len(work.rows)

    def run(self, work: Work) -> Lesson:
        asked = work.ask("answer", work.rows, n=self.n, temperature=self.temperature)
        told = voted(work.verified(asked), lambda row: row["provenance"]["verified"]["answer"])
        good, bad = (_texts(told, agrees=agrees) for agrees in (True, False))
        asked_of = {row["id"] for row in told}
        work.tell(
            "the vote on rationales",
            positives=sum(row["provenance"]["vote"]["agrees"] is True for row in told),
            negatives=sum(row["provenance"]["vote"]["agrees"] is False for row in told),
            no_majority=len(asked_of - good.keys()),
            both=len(good.keys() & bad.keys()),
        )
        rows = [
            {
                **first,
                SECOND: others[0]["completion"] if others else first["completion"],
                REJECTED: bad.get(id, [first])[0]["completion"],
            }
            for id, (first, *others) in good.items()
        ]
        return Lesson("contrast", rows, work.steps, self.method)

    @property
    def method(self) -> Method:
        """The loss of the lesson."""
        return _Contrast(
            positive=self.positive,
            negative=self.negative if self.negatives else 0.0,
            delta=self.delta,
            quality=self.quality and self.negatives,
        )


@dataclass(frozen=True, kw_only=True)
class _Contrast(PairMethod):
    """The closest positive pulled, the negative pushed to ``delta``, both weighed by D."""

    paper = QCRD.paper
    needs = Needs(teacher={"text"}, student={"hidden"}, texts={SECOND, REJECTED})
    modality = "text"
    family = "reasoning"

    positive: float
    negative: float
    delta: float
    quality: bool

    def players(self, setup: Setup) -> Mapping[str, nn.Module]:
        student: Any = setup.student
        return {"quality": _Quality(student)} if self.quality else {}

    def prepare(self, run: Run, batch: Batch) -> Batch:
        """Which further texts are none, but repeat the first."""
        first = completions_of(batch)
        second, pairs = (
            torch.tensor(
                [a != b for a, b in zip(first, completions_of(batch[name]), strict=True)]
            ).to(batch.examples)
            for name in (SECOND, REJECTED)
        )
        return batch.add(second=second * batch.examples, pairs=pairs * batch.examples)

    def updates(self, run: Run, batch: Batch) -> Iterator[Update]:
        far, read = self._read(run, batch, torch.ones_like(batch.second))
        other, also = self._read(run, batch[SECOND], batch.second)
        closer = (batch.second > 0) & (other < far)
        far, read = torch.where(closer, other, far), torch.where(closer[:, None], also, read)
        run.log(**{"qcrd/positive": far.detach(), "qcrd/pairs": batch.pairs})
        if not self.negative:
            yield Update(Term(far, "examples", self.positive, "positive"))
            return
        wrong, bad = self._read(run, batch[REJECTED], batch.pairs)
        hinge = preference(
            torch.zeros_like(wrong), -wrong, beta=1.0, margin=self.delta, shape="hinge"
        )
        good, poor = self._weights(run, read, bad)
        told = {"negative": wrong, "active": (hinge > 0).to(wrong)}
        if self.quality:
            told |= {"good": good, "bad": 1 - poor}
        run.log(**{f"qcrd/{k}": v.detach() * batch.pairs for k, v in told.items()})
        yield Update(
            [
                Term(good * far, "examples", self.positive, "positive"),
                Term(batch.pairs.to(far) * poor * hinge, "examples", self.negative, "negative"),
            ]
        )
        if self.quality:
            judge = run.players["quality"]
            value = softplus(-judge(read)) + softplus(judge(bad))
            yield Update(Term(value, "pairs", name="quality"), players=("quality",))

    def _read(self, run: Run, half: Batch, there: Tensor) -> tuple[Tensor, ...]:
        """Of texts that are there their l [B], and their largest states [B, d], detached.

        Others are 0. One is always read, so that all processes do as much.
        """
        at = there.nonzero().flatten()
        at = at if len(at) else at.new_zeros(1)
        part = half.only(at) if len(at) < half.size else half
        said = run.student(part)
        far = -self.scored(part, self.said(said, part), mean=True)
        states = said.hidden.detach().to(far)
        read = states.new_full((part.size, states.shape[1]), -torch.inf)
        owner = part.owner[:, None].expand_as(states)
        read = read.scatter_reduce(0, owner, states, "amax")
        return tuple(v.new_zeros(half.size, *v.shape[1:]).index_add(0, at, v) for v in (far, read))

    @torch.no_grad()
    def _weights(self, run: Run, read: Tensor, bad: Tensor) -> tuple[Tensor, Tensor]:
        """``D(r+)`` and ``1 - D(r-)``."""
        if not self.quality:
            one = read.new_ones(len(read))
            return one, one
        judge = run.players["quality"]
        return judge(read).sigmoid(), judge(bad).neg().sigmoid()


class _Quality(nn.Module):
    """D before its sigmoid: two layers on states [B, d], 0 at first -> [B]."""

    def __init__(self, student: Any) -> None:
        super().__init__()
        self.first = nn.Linear(student.width, student.width)
        self.last = nn.Linear(student.width, 1)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)
        self.to(next(student.parameters()))

    def forward(self, read: Tensor) -> Tensor:
        return self.last(self.first(read.to(self.first.weight)).tanh()).squeeze(-1)


def _texts(told: Sequence[Row], *, agrees: bool) -> dict[Any, list[Row]]:
    """By question the rows that agree with its majority, or do not; no text twice."""
    found: dict[Any, dict[str, Row]] = {}
    for row in told:
        if row["provenance"]["vote"]["agrees"] is agrees:
            found.setdefault(row["id"], {}).setdefault(row["completion"].strip(), row)
    return {id: list(rows.values()) for id, rows in found.items()}
