"""DistiLLM: skew KL on sequences of data, student and a replay buffer, as validation asks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from annotated_types import Ge, Gt, Le, Lt
from torch import Tensor, nn

from stillroom.core import Batch, Needs, Paper, Run, Setup
from stillroom.data.text import collate
from stillroom.losses.divergences import skew_forward_kl, skew_reverse_kl
from stillroom.losses.policy import label_logp
from stillroom.methods._bases import TokenMethod
from stillroom.nets.replay import ReplayBuffer


class _Adaptive(nn.Module):
    """phi, the validation loss that the next one is held against, and how many there were."""

    share: Tensor
    loss: Tensor
    readings: Tensor

    def __init__(self, share: float) -> None:
        super().__init__()
        self.register_buffer("share", torch.tensor(share, dtype=torch.float64))
        self.register_buffer("loss", torch.zeros((), dtype=torch.float64))
        self.register_buffer("readings", torch.zeros((), dtype=torch.long))


@dataclass(frozen=True, kw_only=True)
class DistiLLM(TokenMethod):
    """Adaptive off-policy distillation: skew KL on data, own answers and replayed own answers.

    ``SKL_a = KL(t || a t + (1 - a) s)`` (``form`` forward) or
    ``SRKL_a = KL(s || (1 - a) t + a s)`` (reverse), with teacher t and student s, and
    ``L = (1 - label_weight) D + label_weight CE(label)``. Step k of K draws r in [0, 1) and learns

    - from new answers of the student, if ``r < phi (1 - k / K)``, or ``r < phi`` and the buffer is
      not full; they enter the buffer, from which the oldest go;
    - from answers out of the buffer, if ``r < phi`` else;
    - from the data, if ``r >= phi``.

    After a validation with a loss ``v >= previous + tolerance``, ``phi <- min(phi + rise, 1)``.

    Differences: entries are drawn from the buffer with replacement, one an example. The validation
    loss is the cross-entropy of the validation split (``nll``). ``since: validation`` is ours: the
    code compares with the loss at the last rise, which suits a student that was tuned before; one
    with fresh weights never comes back to its first loss. ``staleness`` is ours, too. Unconfirmed:
    where ``label_weight`` counts, it does on the student's own tokens as well. The term on a
    pre-training corpus is left out.

    Args:
        form: of the skew KL.
        alpha: a, how much of the one distribution is mixed into the other; 0 is plain KL.
        label_weight: the share of the cross-entropy with the sequence's own tokens.
        start: phi before the first rise, the probability of the student's own answers.
        rise: of phi.
        tolerance: in nats a token, by how much the loss must be worse.
        since: what a validation loss is held against: that at the last rise of phi (the first one,
            before any), or that of the validation before.
        capacity: sequences in the buffer.
        staleness: steps after which an entry is not read any more and counts as absent, also where
            the buffer is asked whether it is full; null keeps all.
        sample_temperature: of the student's answers; the divergence is at temperature 1.
    """

    paper = Paper(
        "2402.03898", "Ko et al., 2024", "DistiLLM: Towards Streamlined Distillation for Large "
        "Language Models"
    )  # fmt: skip
    needs = Needs(
        teacher={"topk"}, student={"logits"}, rollouts=True, fresh=True, planned=True,
        metrics={"nll"},
    )  # fmt: skip
    modality = "text"
    family = "on-policy"

    form: Literal["forward", "reverse"] = "forward"
    alpha: Annotated[float, Ge(0), Lt(1)] = 0.1
    label_weight: Annotated[float, Ge(0), Le(1)] = 0.0
    start: Annotated[float, Ge(0), Le(1)] = 0.0
    rise: Annotated[float, Gt(0), Le(1)] = 0.1
    tolerance: Annotated[float, Ge(0)] = 0.1
    since: Literal["rise", "validation"] = "rise"
    capacity: Annotated[int, Ge(1)] = 1000
    staleness: Annotated[int, Ge(1)] | None = None
    sample_temperature: Annotated[float, Gt(0)] = 1.0

    def players(self, setup: Setup) -> Mapping[str, nn.Module]:
        replay = ReplayBuffer(self.capacity, setup.longest, collate)
        return {"adaptive": _Adaptive(self.start), "replay": replay}

    def sequences(self, run: Run, batch: Batch) -> Batch:
        buffer, share = run.players["replay"], float(run.players["adaptive"].share)
        draw, full = run.uniform(), len(buffer.places(run, self.staleness)) == buffer.capacity
        own = draw < share
        new = own and (not full or draw < share * (1 - run.progress))
        kinds = {"generated": new, "replayed": own and not new, "phi": share}
        run.log(**{f"distillm/{name}": float(value) for name, value in kinds.items()})
        if new:
            batch = run.rollout(batch, temperature=self.sample_temperature)
            buffer.write(run, batch)
            return batch
        return buffer.read(run, batch, self.staleness) if own else batch

    def objective(self, student: Tensor, teacher: Any, labels: Tensor) -> Tensor:
        divergence = skew_forward_kl if self.form == "forward" else skew_reverse_kl
        value, w = divergence(student, teacher, alpha=self.alpha), self.label_weight
        return value if w == 0 else (1 - w) * value - w * label_logp(student, labels)

    def validated(self, run: Run, values: Mapping[str, float]) -> None:
        state = run.players["adaptive"]
        told = state.loss.new_tensor([values["nll"]])
        now = float(run.gather(told).mean())  # the same to the bit on every process
        first = int(state.readings) == 0
        worse = not first and now >= float(state.loss) + self.tolerance
        if worse:
            state.share.add_(self.rise).clamp_max_(1.0)
        if first or worse or self.since == "validation":
            state.loss.fill_(now)
        state.readings.add_(1)
