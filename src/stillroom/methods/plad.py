"""Pseudo-preference pairs: the teacher's answer over what the fine-tuned student once wrote."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor, nn

from stillroom.core import Batch, Needs, Paper, Run, Setup, Term, Update
from stillroom.data.likeness import rouge_l
from stillroom.data.text import completions_of
from stillroom.losses.per_row import per_row
from stillroom.losses.policy import nll
from stillroom.losses.preference import preference
from stillroom.methods._bases import PairMethod, weighted


@dataclass(frozen=True, kw_only=True)
class PLaD(PairMethod):
    """Preference distillation from a teacher's text: its answer should be likelier than one's own.

    The teacher is stronger, so its answer y+ to a question is taken to be better than y-, a sample
    of the student. No logits of the teacher, no judge.

    1. ``warmup`` of the steps: cross-entropy with y+, as in SeqKD.
    2. A frozen copy of that student writes y- to each question: the same one at every visit.
    3. ``L = mean over pairs of max(0, m - s(y+ | x) + s(y- | x)) + anchor CE(y+)``, s the sum, or
       mean, of the log-probabilities of an answer's tokens, and m the ``beta`` of ``rank``, or in
       ``margin`` ``beta (q(y+) - q(y-)) = beta (1 - q(y-))``, q the ROUGE-L of token ids with y+:
       an answer that is nearly right is pushed away less.

    A pair of equal answers is no pair: it is in no mean. A row's column ``weight`` weighs it.

    Recorded: ``plad/dropped``, the share of equal pairs, ``plad/active``, the share of pairs that
    have a gradient (the hinge has none where y+ wins by m), ``plad/chosen`` and ``plad/rejected``,
    mean log-probabilities of a token (both may fall: the anchor is against that), ``plad/margin``,
    the mean of ``s(y+) - s(y-)``, and ``plad/tokens``, the length of y-.

    Differences: y- is written anew at each visit, by the same copy from the same random numbers,
    in place of a file of samples. Unconfirmed: beta 1 and an anchor of 1 over tokens, that scores
    are means over tokens, the exact forms of both losses and what q is, and that the optimiser is
    fresh in the second stage.

    Args:
        warmup: share of the steps that imitate.
        version: m, see above.
        beta: by how much y+ shall win, in nats; of a token where scores are means.
        refresh: after how many steps of the second stage y- is of the student as it is then; null
            is never.
        sample_temperature: of y-.
        anchor: weight of the cross-entropy with y+ in the second stage.
    """

    paper = Paper(
        "2406.02886", "Zhang et al., 2024", "PLaD: Preference-based Large Language Model "
        "Distillation with Pseudo-Preference Pairs"
    )  # fmt: skip
    needs = Needs(teacher={"text"}, student={"logits"}, rollouts=True, planned=True)
    modality = "text"
    family = "preference"

    warmup: Annotated[float, Ge(0), Le(1)] = 0.5
    version: Literal["rank", "margin"] = "rank"
    beta: Annotated[float, Ge(0)] = 1.0
    refresh: Annotated[int, Ge(1)] | None = None
    sample_temperature: Annotated[float, Gt(0)] = 1.0
    mean: bool = True
    anchor: Annotated[float, Ge(0)] = 1.0

    def players(self, setup: Setup) -> Mapping[str, nn.Module]:
        student: Any = setup.student
        return {"writer": student.snapshot()}

    def prepare(self, run: Run, batch: Batch) -> Batch:
        since = run.step - self._warm(run)
        if since < 0:
            return batch
        if since == 0:
            run.reset("student")
        if since == 0 or (self.refresh is not None and since % self.refresh == 0):
            run.players["writer"].load_state_dict(run.players["student"].state_dict())
        samples = run.rollout(batch, player="writer", temperature=self.sample_temperature)
        said, own = completions_of(batch), completions_of(samples)
        told = list(zip(said, own, strict=True))
        differs = torch.tensor([a != b for a, b in told]).to(batch.examples)
        run.log(**{"plad/dropped": 1 - differs})
        run.log(**{"plad/tokens": torch.tensor([float(len(b)) for b in own])})
        return batch.add(
            samples=samples,
            pairs=batch.examples * differs,
            gain=torch.tensor([1 - rouge_l(b, a) for a, b in told]).to(differs),
        )

    def _warm(self, run: Run) -> int:
        return round(self.warmup * run.steps)

    def updates(self, run: Run, batch: Batch) -> Iterator[Update]:
        if run.step < self._warm(run):
            value = per_row(nll, run.student(batch), None, batch.labels)
            yield Update(Term(weighted(value, batch, batch.owner), name="text"))
            return
        halves = batch, batch.samples
        logp = [self.said(run.student(half), half) for half in halves]
        pairs = list(zip(halves, logp, strict=True))
        gap = self.scored(*pairs[0]) - self.scored(*pairs[1])
        value = self._hinge(gap, batch)
        with torch.no_grad():
            chosen, rejected = (self.scored(*pair, mean=True) for pair in pairs)
            active = ((value > 0) & (batch.pairs > 0)).double()
            told = {"chosen": chosen, "rejected": rejected, "margin": gap, "active": active}
            run.log(**{f"plad/{name}": number.detach() for name, number in told.items()})
        term = Term(weighted(value, batch), "pairs", name=self.version)
        yield Update([term, *self.anchored(batch, logp[0])])

    def _hinge(self, gap: Tensor, batch: Batch) -> Tensor:
        wanted = self.beta * batch.gain.to(gap) if self.version == "margin" else self.beta
        zero = torch.zeros_like(gap)
        return preference(gap, zero, beta=1.0, margin=wanted, shape="hinge")
