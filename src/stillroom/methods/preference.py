"""Preference learning from pairs of answers in the data: DPO, SimPO, IPO, hinge, REDI."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from annotated_types import Ge, Gt, Le, Lt
from torch import Tensor, nn

from stillroom.core import Batch, Failure, Needs, Paper, Run, Setup, Term, Update
from stillroom.losses.preference import Shape, preference
from stillroom.methods._bases import PairMethod, weighted


@dataclass(frozen=True, kw_only=True)
class Preference(PairMethod):
    """Preference loss on the data's pairs of answers: DPO, SimPO, IPO, hinge or REDI by settings.

    ``L = mean over pairs of w f(s(y_w) - s(y_l)) + anchor CE(y_w)``, y_w the completion of a row,
    y_l its column ``rejected``, w its column ``weight`` (1 without it), which weighs the whole row.
    ``s(y) = log q(y | x)``, less ``log p(y | x)`` of the student as it was at the start where
    ``reference`` is set; over the tokens of an answer they are summed, or averaged (``mean``).

    - ``sigmoid``: ``f(D) = -(1 - e) log sigmoid(z) - e log sigmoid(-z)`` with ``z = beta D -
      margin``, e the smoothing;
    - ``squared``: ``f(D) = (D - margin - 1 / (2 beta))^2``;
    - ``hinge``: ``f(D) = max(0, margin - beta D)``;
    - ``linear``: ``margin - beta (s(y_w) - alpha s(y_l))``, which has no lower bound.

    =================  ========  ==========  =====  =============  ======  =====  ======
    what               shape     reference   mean   beta           margin  alpha  anchor
    =================  ========  ==========  =====  =============  ======  =====  ======
    DPO                sigmoid   true        false  0.1            0              0
    SimPO              sigmoid   false       true   2              1              0
    IPO                squared   true        false  0.1            0              0
    SLiC, PLaD (rank)  hinge     false       true   1              1              1
    REDI, stage 2      linear    false       true   1              0       0.8    0
    symmetric          linear    false       true   1              0       1      0
    SFT on y_w         linear    false       true   1              0       0      0
    =================  ========  ==========  =====  =============  ======  =====  ======

    Recorded: ``preference/chosen`` and ``preference/rejected``, mean log-probabilities of a token
    of y_w and of y_l (both falling fast is a collapse), ``preference/margin``, the mean of D,
    ``preference/accuracy``, the share of pairs with D > 0 (half of those with D = 0), and of the
    hinge ``preference/active``, the share of pairs that have a gradient.

    Differences: sums run over the answer with its end, as everywhere here. SimPO's margin is
    outside of beta. Weights multiply: the mean is over pairs, not over their weights. Nothing is
    sampled: answers that the student writes now are of other methods.

    Sources: DPO (arXiv 2305.18290), IPO (2310.12036), SLiC (2210.00045, 2305.10425), SimPO
    (2405.14734), PLaD (2406.02886), REDI (2505.24850).

    Args:
        shape: f, see above.
        reference: whether scores are ratios to a frozen copy of the student at the start; without
            it no such copy is made.
        beta: the slope; with means of log-probabilities it wants to be larger by about the length.
        margin: by how much the chosen answer shall win.
        smoothing: e, the share of pairs that may be the wrong way round; of ``sigmoid``.
        alpha: weight of the rejected answer; of ``linear``.
    """

    paper = Paper(
        "2305.18290", "Rafailov et al., 2023", "Direct Preference Optimization: Your Language "
        "Model is Secretly a Reward Model"
    )  # fmt: skip
    needs = Needs(teacher={"text"}, student={"logits"}, texts={"rejected"})
    modality = "text"
    family = "preference"

    shape: Shape = "sigmoid"
    reference: bool = True
    beta: Annotated[float, Gt(0)] = 0.1
    margin: Annotated[float, Ge(0)] = 0.0
    smoothing: Annotated[float, Ge(0), Lt(0.5)] = 0.0
    alpha: Annotated[float, Ge(0), Le(1)] = 0.8

    def __post_init__(self) -> None:
        if self.smoothing and self.shape != "sigmoid":
            raise Failure(
                f"smoothing: {self.shape} has no labels to smooth; set it to 0, or shape: sigmoid"
            )

    def players(self, setup: Setup) -> Mapping[str, nn.Module]:
        student: Any = setup.student
        return {"reference": student.snapshot()} if self.reference else {}

    def prepare(self, run: Run, batch: Batch) -> Batch:
        """The reference's scores, of both answers."""
        if not self.reference:
            return batch
        before = []
        for half in (batch, batch.rejected):
            logp = self.said(run.ask("reference", half), half)
            before.append(half.add(before=self.scored(half, logp)))
        return before[0].add(rejected=before[1])

    def updates(self, run: Run, batch: Batch) -> Iterator[Update]:
        halves = batch, batch.rejected
        logp = [self.said(run.student(half), half) for half in halves]
        pairs = list(zip(halves, logp, strict=True))
        chosen, rejected = (self._score(half, told) for half, told in pairs)
        with torch.no_grad():
            self._tell(run, chosen - rejected, *(self.scored(*p, mean=True) for p in pairs))
        yield Update(
            [
                Term(weighted(self._loss(chosen, rejected), batch), "examples", name="preference"),
                *self.anchored(batch, logp[0]),
            ]
        )

    def _score(self, batch: Batch, logp: Tensor) -> Tensor:
        score = self.scored(batch, logp)
        return score - batch.before if self.reference else score

    def _loss(self, chosen: Tensor, rejected: Tensor) -> Tensor:
        if self.shape == "linear":
            rejected = self.alpha * rejected
        told = {"margin": self.margin, "shape": self.shape, "smoothing": self.smoothing}
        return preference(chosen, rejected, beta=self.beta, **told)

    def _tell(self, run: Run, gap: Tensor, chosen: Tensor, rejected: Tensor) -> None:
        won = (gap > 0).double() + (gap == 0).double() / 2
        told = {"chosen": chosen, "rejected": rejected, "margin": gap, "accuracy": won}
        if self.shape == "hinge":
            told["active"] = (self.beta * gap < self.margin).double()
        run.log(**{f"preference/{name}": value for name, value in told.items()})
