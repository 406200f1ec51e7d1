"""Adversarial moment matching: as the teacher does, as far as a critic of next tokens can tell."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any

import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor, nn

from stillroom.core import (
    Batch,
    Failure,
    Method,
    Needs,
    Paper,
    Run,
    Setup,
    Signals,
    Term,
    Update,
)
from stillroom.losses.moments import moment_gap
from stillroom.losses.per_row import per_row
from stillroom.losses.policy import label_logp, later_returns, nll
from stillroom.losses.transport import side_by_side
from stillroom.nets.actions import ActionValues


@dataclass(frozen=True, kw_only=True)
class AMMD(Method):
    """Adversarial imitation of the teacher: match the values of next tokens that a critic learns.

    ``D(f) = E_y sum_t g^t r_t``, ``r_t = <p(. | s_t) - q(. | s_t), f(s_t, .)>``, with the teacher
    p, the student q, the state ``s_t = (x, y_<t)`` and a critic ``f(s, v) = tanh(<W h(s), e_v> /
    sqrt(d))``. ``D_off`` has the data's answers y and a critic f1, ``D_on`` the student's own and
    f2; the student minimises ``off_weight max_f1 D_off + on_weight max_f2 D_on``.

    In a step both critics learn first, ``critic_steps`` times on the same answers, the student
    standing still; then the student, once, by their new values:

    - off: ``-sum_t g^t sum_v grad q(v | s_t) f1(s_t, v)``, exact;
    - on: the same with f2, and since it is the student that comes to the states, ``sum_t grad log
      q(y_t | s_t) A_t``, ``A_t = sum_{t' > t} g^t' r_t'`` (held fixed) less the mean of the group's
      other answers at t.

    ``ammd/off`` and ``ammd/on`` are D before the student's step, to be seen falling. At q = p each
    D and its gradient by f are 0 whatever f is; the student's gradient is not, unless f is flat.

    Like logits, the critic's scores of all tokens are made for a block of rows at a time, whatever
    the vocabulary.

    Differences: r_t is the expectation of what the paper samples, with the same gradient on
    average, so a token's return begins after it. Answers are sampled anew in each step and not
    mixed with stored ones, at temperature 1 from all tokens; those that the recipe cuts short count
    up to there. There is no loss on further text. Unconfirmed: the form of f (the root of d is
    ours), its start, equal weights, ``critic_steps``, and the discount.

    Args:
        off_weight: of D_off; 0 leaves it and its critic out.
        on_weight: of D_on; 0 leaves it, its critic and all sampling out.
        critic_steps: updates of the critics before one of the student.
        discount: g.
        group: answers sampled from each prompt; with 1 nothing is taken from returns.
        begin: W is at first this times the identity; at 1 critics like what the student does.
        label_weight: of the cross-entropy with the data's answers, a mean over tokens beside
            sums over answers.
    """

    paper = Paper(
        "2406.02959", "Jia, 2024", "Adversarial Moment-Matching Distillation of Large Language "
        "Models"
    )  # fmt: skip
    needs = Needs(teacher={"logits"}, student={"hidden"}, rollouts=True, fresh=True)
    modality = "text"
    family = "adversarial"

    off_weight: Annotated[float, Ge(0)] = 1.0
    on_weight: Annotated[float, Ge(0)] = 1.0
    critic_steps: Annotated[int, Ge(1)] = 1
    discount: Annotated[float, Gt(0), Le(1)] = 1.0
    group: Annotated[int, Ge(1)] = 2
    begin: Annotated[float, Ge(0)] = 0.0
    label_weight: Annotated[float, Ge(0)] = 0.0

    def __post_init__(self) -> None:
        if not (self.off_weight or self.on_weight):
            raise Failure("off_weight and on_weight are both 0, so there is nothing to match")

    @property
    def _weights(self) -> dict[str, float]:
        """By side, those that count."""
        return {k: w for k, w in (("off", self.off_weight), ("on", self.on_weight)) if w}

    def players(self, setup: Setup) -> Mapping[str, nn.Module]:
        with torch.no_grad():
            head = setup.student(setup.batch.part(0, 1))["head"]
        return {f"critic_{name}": ActionValues(head, self.begin) for name in self._weights}

    def prepare(self, run: Run, batch: Batch) -> Batch:
        if not self.on_weight:
            return batch
        made = run.rollout(batch, self.group, temperature=1.0, top_p=1.0, top_k=None)
        return batch.add(samples=made)

    def updates(self, run: Run, batch: Batch) -> Iterator[Update]:
        sides = {name: self._side(name, run, batch) for name in self._weights}
        for _ in range(self.critic_steps):
            terms = [Term(-s.summed(s.gaps()), s.over, name=name) for name, s in sides.items()]
            yield Update(terms, players=tuple(f"critic_{name}" for name in sides))
        said, terms = {name: run.student(side.batch) for name, side in sides.items()}, []
        for name, side in sides.items():
            with torch.no_grad():
                gaps = side.gaps()
            run.log(**{f"ammd/{name}": side.summed(gaps)})
            later = self._returns(side, gaps) if name == "on" else None
            value = side.steered(said[name], later)
            terms.append(Term(value, side.over, weight=self._weights[name], name=name))
        if self.label_weight:
            own = said["off"] if "off" in said else run.student(batch)
            text = per_row(nll, own, None, batch.labels)
            terms.append(Term(text, weight=self.label_weight, name="text"))
        yield Update(terms)

    def _side(self, name: str, run: Run, batch: Batch) -> "_Side":
        path = "samples." if name == "on" else ""
        batch = batch.samples if path else batch
        own = run.ask("student", batch)
        with torch.no_grad():
            theirs = run.teacher(batch)
        place = torch.arange(len(batch.rows), device=batch.rows.device)
        place = place - torch.searchsorted(batch.owner, batch.owner)
        weight = batch.mask * torch.tensor(self.discount, dtype=torch.float64) ** place
        weight = weight.to(torch.promote_types(own.hidden.dtype, torch.float32))
        critic = run.players[f"critic_{name}"]
        return _Side(f"{path}examples", batch, critic, _still(own), theirs, place, weight)

    def _returns(self, side: "_Side", gaps: Tensor) -> Tensor:
        """[N] A_t."""
        owner = side.batch.owner
        later = later_returns(gaps, owner, torch.ones_like(gaps), mean=False)
        if self.group > 1:
            table = side_by_side(later, owner, side.batch.size).unflatten(0, (-1, self.group))
            others = (table.sum(1, keepdim=True) - table) / (self.group - 1)
            later = later - others.flatten(0, 1)[owner, side.place]
        return (later * (side.weight > 0)).to(side.weight)


@dataclass(frozen=True)
class _Side:
    """One of the two moments: answers, their critic, and what student and teacher say of them."""

    over: str
    batch: Batch
    critic: Any
    own: Signals
    theirs: Signals
    place: Tensor
    """[N] t."""
    weight: Tensor
    """[N] ``g^t``, 0 where a row does not count."""

    def gaps(self) -> Tensor:
        """[N] ``g^t r_t`` with gradient for the critic alone."""
        scores = self.critic(self.own)
        return per_row(_gap, self.own, self.theirs, None, scores=scores, weight=self.weight)

    def steered(self, student: Signals, later: Tensor | None) -> Tensor:
        """[B] what has the student's gradient; the critic's values are held fixed."""
        scores, labels = _still(self.critic(self.own)), self.batch.labels
        told = {"scores": scores, "weight": self.weight, "later": later}
        return self.summed(per_row(_gap, student, self.theirs, labels, **told))

    def summed(self, value: Tensor) -> Tensor:
        """[B] over the rows of each answer."""
        return value.new_zeros(self.batch.size).index_add(0, self.batch.owner, value)


def _gap(
    student: Tensor,
    teacher: Tensor,
    labels: Any,
    scores: Tensor,
    weight: Tensor,
    later: Tensor | None = None,
) -> Tensor:
    """``g^t r_t``, and with returns ``log q(y_t) A_t`` more."""
    value = weight * moment_gap(student, teacher, scores)
    return value if later is None else value + later * label_logp(student, labels)


def _still(said: Signals) -> Signals:
    """The same, from which no gradient goes back."""
    bias = None if said.head.bias is None else said.head.bias.detach()
    head = replace(said.head, weight=said.head.weight.detach(), bias=bias)
    return Signals(hidden=said.hidden.detach(), head=head)
