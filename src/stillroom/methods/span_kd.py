"""Distillation across tokenizers by bytes: scores are compared where both sides stand alike."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any

import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor

from stillroom.core import Batch, Method, Needs, Run, Signals, Term
from stillroom.losses.alignment import merged
from stillroom.losses.divergences import jsd
from stillroom.losses.per_row import per_row
from stillroom.losses.policy import label_logp


@dataclass(frozen=True, kw_only=True)
class SpanKD(Method):
    """Cross-tokenizer distillation by byte spans: a divergence over what both can say next.

    ``L = label_weight CE(y) + (1 - label_weight) T^2 D_beta(p || q)`` with teacher p and student q,
    where both are brought to the same outcomes:

    - at places after the same bytes of the answer, classes of tokens that both vocabularies have in
      common (``data.common``): the teacher's ``hello`` counts for ``hel`` where the student writes
      ``hel`` and ``lo``;
    - within a token of the teacher's, the pieces that the student can go on with, as far as the
      teacher's tokens that begin so say it, and anything else as one more (``data.pieces``).

    Elsewhere (the student's one token is several of the teacher's) there is no divergence, which
    counts as 0 in the mean over all tokens; the label counts everywhere. With equal tokenizers and
    ``label_weight`` 0 this is ``gkd``. In steps on the student's own answers (``on_policy``) the
    label, which it has written itself, does not count.

    Differences: it is no paper's. Others compare tokens that both vocabularies have alone, which
    says wrong things of every token whose text the other writes in several.

    Args:
        beta: 0 is KL(teacher || student), 1 is KL(student || teacher), between them JSD.
        temperature: T, of both.
        label_weight: the share of the cross-entropy with the data's token.
        on_policy: the share of steps on the student's own answers.
        sample_temperature: of these.
    """

    paper = None
    needs = Needs(teacher={"spans"}, student={"logits"}, rollouts=True, fresh=True)
    modality = "text"
    family = "cross-tokenizer"

    beta: Annotated[float, Ge(0), Le(1)] = 0.0
    temperature: Annotated[float, Gt(0)] = 1.0
    label_weight: Annotated[float, Ge(0), Le(1)] = 0.5
    on_policy: Annotated[float, Ge(0), Le(1)] = 0.0
    sample_temperature: Annotated[float, Gt(0)] = 1.0

    def prepare(self, run: Run, batch: Batch) -> Batch:
        own = run.uniform() < self.on_policy
        if own:
            batch = run.rollout(batch, temperature=self.sample_temperature)
        return batch.add_rows(given=torch.full_like(batch.mask, float(not own)))

    def loss(
        self, student: Signals, teacher: Signals, batch: Batch, nets: Mapping[str, Any]
    ) -> Term:
        objective = partial(self._objective, common=teacher.common)
        told, within = teacher["bytes"], teacher["within"]
        # the two kinds of places never coincide, so one pass over the head serves both
        source = "hidden" if "hidden" in told else "logits"
        at = told.paired.unsqueeze(-1) > 0
        both = Signals({**told, source: torch.where(at, told[source], within[source])})
        inputs = {
            "paired": told.paired,
            "node": teacher.nodes.where(within.paired > 0, -1),
            "given": batch.given,
        }
        return Term(per_row(objective, student, both, batch.labels, foreign=True, **inputs))

    def _objective(  # noqa: PLR0913 - both sides, labels, row inputs, classes
        self,
        student: Tensor,
        teacher: Tensor,
        labels: Tensor,
        paired: Tensor,
        node: Tensor,
        given: Tensor,
        *,
        common: Any,
    ) -> Tensor:
        t = self.temperature
        own, other = student / t, teacher / t
        classes = (common.own, own), (common.other, other)
        mine, theirs = (merged(x, ids.to(x.device), common.count) for ids, x in classes)
        far = jsd(mine, theirs, beta=self.beta) * paired
        if len(inner := (node >= 0).nonzero().squeeze(1)):
            told = common.pieces.said(other[inner], node[inner], own.shape[-1])
            far = far.index_add(0, inner, jsd(own[inner], told, beta=self.beta))
        far, w = t**2 * far, self.label_weight * given.to(far.dtype)
        return far if self.label_weight == 0 else (1 - w) * far - w * label_logp(student, labels)
