"""Imperfect data: the student's own mistakes written into the data's answers, in one pass."""

from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Literal

import torch
from annotated_types import Ge, Le
from torch import Tensor

from stillroom.core import Batch, Needs, Paper, Run
from stillroom.losses.divergences import jsd
from stillroom.losses.per_row import per_row
from stillroom.losses.policy import entropy, label_logp
from stillroom.methods._bases import TokenMethod
from stillroom.rollouts.sampling import Sampling, pick, uniform


@dataclass(frozen=True, kw_only=True)
class KID(TokenMethod):
    """Distillation on imperfect answers: prefixes with the student's mistakes, without generation.

    Of each answer ``y`` of the data a share of the tokens, ``M``, is predicted anew by the student
    in one forward pass over ``y`` itself, and written in: ``y~_i = argmax q(. | x, y_<i)`` for
    ``i`` in ``M``, ``y~_i = y_i`` elsewhere. Both sides are then compared on that:
    ``(1 - w) D_beta(p(. | x, y~_<i) || q(. | x, y~_<i)) + w CE(y_i)``, with the data's token as
    label. With ``share`` 0 it is offline distillation; so it is more and more as the student
    learns to predict the data, which ``kid/changed``, the share of changed tokens, tells.

    Differences: the end of an answer stays, and no other end is written: predictions are among the
    tokens that end nothing. Unconfirmed: share, rule, divergence, whether predictions are the
    likeliest tokens and whether the label counts; that predictions are made from the data's
    prefixes, not from masked ones, which would take a mask token.

    Args:
        share: r, of the tokens of each answer that are predicted, rounded up or down by chance.
        rule: which: ``random``, or ``uncertain``, where the student's entropy is highest.
        sample_temperature: of predictions; 0 takes the likeliest token.
        beta: 0 is KL(teacher || student), 1 is KL(student || teacher), between them JSD.
        label_weight: w, the share of the cross-entropy with the data's token.
    """

    paper = Paper(
        "2410.11371", "Zhong et al., 2024", "Learning from Imperfect Data: Towards Efficient "
        "Knowledge Distillation of Autoregressive Language Models for Text-to-SQL"
    )  # fmt: skip
    needs = Needs(teacher={"topk"}, student={"logits"}, fresh=True)
    modality = "text"
    family = "on-policy"

    share: Annotated[float, Ge(0), Le(1)] = 0.3
    rule: Literal["random", "uncertain"] = "random"
    sample_temperature: Annotated[float, Ge(0)] = 0.0
    beta: Annotated[float, Ge(0), Le(1)] = 0.0
    label_weight: Annotated[float, Ge(0), Le(1)] = 0.0

    def sequences(self, run: Run, batch: Batch) -> Batch:
        if self.share == 0:
            return batch
        stops = torch.tensor(run.players["student"].stop_ids, device=batch.ids.device)
        spots, owner, seed = batch.rows + 1, batch.owner, int(run.uniform() * 2**53)
        gold = batch.ids.flatten()[spots]  # not the labels, which may be anything where masked
        place = spots - owner * batch.ids.shape[1] - batch.real.int().argmax(1)[owner]
        allowed = (batch.mask > 0) & (place >= batch.prompt[owner]) & ~torch.isin(gold, stops)

        def numbers(kind: int, who: Tensor, where: Tensor | int) -> Tensor:
            where = where.cpu() if isinstance(where, Tensor) else where
            return uniform(seed, who.cpu(), where, kind).to(gold.device)

        predicted, doubt = self._read(run, batch, stops, numbers(0, batch.id[owner], place))
        order = numbers(1, batch.id[owner], place) if self.rule == "random" else -doubt
        goal = self.share * _sums(allowed, owner, batch.size) + numbers(2, batch.id, 0)
        chosen = first(order, allowed, owner, goal.floor())
        run.log(**{"kid/changed": (chosen & (predicted != gold))[batch.mask > 0].double()})
        ids = batch.ids.flatten().index_copy(0, spots[chosen], predicted[chosen])
        return batch.add(ids=ids.view_as(batch.ids))

    def divergence(self, student: Tensor, target: Tensor) -> Tensor:
        return jsd(student, target, beta=self.beta)

    def objective(self, student: Tensor, teacher: Tensor | None, labels: Tensor) -> Tensor:
        soft, w = super().objective(student, teacher, labels), self.label_weight
        return soft if w == 0 else (1 - w) * soft - w * label_logp(student, labels)

    def _read(self, run: Run, batch: Batch, stops: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        """The token that the student says at each row, no end among them, and its entropy: [N]."""
        said = run.ask("student", batch)
        head = said.get("head")
        barred = stops if head is None else head.columns(stops)
        objective = partial(self._said, barred=barred)
        told = per_row(objective, said, None, None, u=u)
        columns = told[:, 0].long()
        return columns if head is None or head.ids is None else head.ids[columns], told[:, 1]

    def _said(self, student: Tensor, _teacher: Any, _labels: Any, *, u: Tensor, barred: Tensor):
        """Both side by side, in float64, which holds any id."""
        allowed = student.index_fill(-1, barred, -torch.inf)
        tokens = pick(allowed, u, Sampling(temperature=self.sample_temperature))
        doubt = entropy(student) if self.rule == "uncertain" else tokens
        return torch.stack([tokens.double(), doubt.double()], -1)


def first(order: Tensor, allowed: Tensor, owner: Tensor, goal: Tensor) -> Tensor:
    """[N] the ``goal`` [B] rows of each example that come first by ``order``, of those allowed."""
    by = order.double().masked_fill(~allowed, torch.inf).argsort(stable=True)
    by = by[owner[by].argsort(stable=True)]
    sizes = _sums(torch.ones_like(allowed), owner, len(goal))
    starts = sizes.cumsum(0) - sizes
    rank = torch.empty_like(owner)
    rank[by] = torch.arange(len(by), device=by.device) - starts[owner[by]]
    return allowed & (rank < goal[owner])


def _sums(counted: Tensor, owner: Tensor, size: int) -> Tensor:
    """[B] of the rows of each example."""
    return owner.new_zeros(size).index_add(0, owner, counted.to(owner.dtype))
