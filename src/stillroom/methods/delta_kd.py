"""Delta knowledge distillation: the student makes the move that its teacher made when tuned."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor, nn

from stillroom.core import Batch, Method, Needs, Paper, Run, Setup, Term, Update
from stillroom.losses.divergences import forward_kl
from stillroom.losses.per_row import per_row
from stillroom.losses.policy import label_logp


@dataclass(frozen=True, kw_only=True)
class DeltaKD(Method):
    """Distil what fine-tuning changed in the teacher (raw and tuned) onto the student as it began.

    With the student at its start ``s``, the teacher before (``raw``, r) and after its tuning
    (``teacher``, t), all frozen and at temperature T, the shift of a token v is
    ``d(v) = a * clamp(log p_t(v) - log p_r(v), -c, c)``, and the loss is
    ``(1 - w) * D + w * CE(label, student)`` with, by ``form``,

    - ``shift``: ``D = T^2 * KL(softmax(log p_s + d) || p)``, the student p at temperature T;
    - ``difference``: ``D = mean_K (e - mean_V e)^2`` with ``e = log p - log p_s - d``, where V is
      the vocabulary and K the ``top_k`` tokens that t finds likeliest.

    Where t is r the target is the student as it began, and a = 0 is that, too; where s is r and
    a = 1, nothing clamped, it is ordinary distillation from t. ``delta_kd/clamped``, the share of
    log-ratios beyond c, is logged. Recipes give ``teachers: {teacher: ..., raw: ...}``.

    Differences: a other than 1, the clamp, and the choice of tokens keep in bounds what explodes
    where r is tiny. Unconfirmed: the weights of the two terms, and the paper's variants beside the
    shift, some of which it could not train, so ``difference`` is our reading of them.

    Args:
        form: see above.
        strength: a.
        clamp: c, in nats.
        top_k: with ``shift`` the tokens that move are those among the so many likeliest of t or of
            r; with ``difference`` see above. null is all.
        temperature: T, of all four.
        label_weight: w, the share of the cross-entropy with the data's token.
    """

    paper = Paper(
        "2509.14526", "Cao, Kang, Xing, Jiang, 2025", "Delta Knowledge Distillation for Large "
        "Language Models"
    )  # fmt: skip
    needs = Needs(teacher={"logits"}, student={"logits", "weights"}, teachers={"teacher", "raw"})
    modality = "text"
    family = "logits"

    form: Literal["shift", "difference"] = "shift"
    strength: Annotated[float, Ge(0)] = 1.0
    clamp: Annotated[float, Gt(0)] = 10.0
    top_k: Annotated[int, Ge(1)] | None = None
    temperature: Annotated[float, Gt(0)] = 1.0
    label_weight: Annotated[float, Ge(0), Le(1)] = 0.0

    def players(self, setup: Setup) -> Mapping[str, nn.Module]:
        student: Any = setup.student
        return {"start": student.snapshot()}

    def updates(self, run: Run, batch: Batch) -> Iterator[Update]:
        tuned, raw = run.teacher(batch), run.teacher(batch, name="raw")
        with torch.no_grad():
            share = per_row(self._beyond, tuned, raw, None)
        run.log(**{"delta_kd/clamped": share[batch.mask > 0]})
        frozen = {"raw": raw, "start": run.ask("start", batch)}
        yield Update(
            Term(per_row(self.objective, run.student(batch), tuned, batch.labels, **frozen))
        )

    def objective(
        self, student: Tensor, teacher: Tensor, labels: Tensor, raw: Tensor, start: Tensor
    ) -> Tensor:
        T, w = self.temperature, self.label_weight
        log_t, log_r, log_s = (self._log_probs(z) for z in (teacher, raw, start))
        d = self.strength * (log_t - log_r).clamp(-self.clamp, self.clamp)
        if self.form == "shift":
            value = T**2 * forward_kl(student / T, log_s + self._kept(d, log_t, log_r))
        else:
            value = self._difference(self._log_probs(student) - log_s - d, log_t)
        return value if w == 0 else (1 - w) * value - w * label_logp(student, labels)

    def _log_probs(self, logits: Tensor) -> Tensor:
        dtype = torch.promote_types(logits.dtype, torch.float32)
        return (logits / self.temperature).log_softmax(-1, dtype=dtype)

    def _kept(self, shift: Tensor, *log_probs: Tensor) -> Tensor:
        """The shift, of tokens that are likely to one of these; 0 for the others."""
        if self.top_k is None:
            return shift
        kept = torch.zeros_like(shift, dtype=torch.bool)
        for logp in log_probs:
            kept.scatter_(-1, logp.topk(min(self.top_k, logp.shape[-1])).indices, True)
        return shift.masked_fill(~kept, 0.0)

    def _difference(self, gap: Tensor, log_t: Tensor) -> Tensor:
        centred = gap - gap.mean(-1, keepdim=True)
        if self.top_k is not None:
            centred = centred.gather(-1, log_t.topk(min(self.top_k, log_t.shape[-1])).indices)
        return centred.square().mean(-1)

    def _beyond(self, tuned: Tensor, raw: Tensor, labels: Tensor | None) -> Tensor:
        apart = (self._log_probs(tuned) - self._log_probs(raw)).abs()
        return (apart > self.clamp).to(apart.dtype).mean(-1)
