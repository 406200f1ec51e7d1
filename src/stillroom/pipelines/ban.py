"""BAN: generations of equal networks, each born anew and taught by the one before."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from annotated_types import Ge
from torch import Tensor

from stillroom.core import (
    Batch,
    Failure,
    Lesson,
    Method,
    Needs,
    Paper,
    Pipeline,
    Run,
    Signals,
    Term,
    Work,
)
from stillroom.losses.policy import label_logp
from stillroom.methods._bases import LogitMethod
from stillroom.rollouts.sampling import uniform


@dataclass(frozen=True, kw_only=True)
class BAN(Pipeline):
    """Trains students of their teacher's own size, generation by generation (born-again networks).

    Generation k begins with new random weights and learns what generation k - 1 says; p is the
    teacher's softmax and q the student's, at temperature 1, ``*`` the label, ``m`` the teacher's
    likeliest class. By ``loss``:

    - ``ban``: ``mean_s - sum_i p_i log q_i``, without labels. Its gradient is that of the label's
      logit, ``q_* - p_*``, weighed by the example, and of the others, ``q_i - p_i``;
    - ``ban_l``: the same and the cross-entropy with the label, equally weighed;
    - ``cwtm``: ``sum_s w_s (- log q_*)`` with ``w_s = p_m / sum_u p_m(u)``: the label alone,
      examples weighed by the teacher's confidence;
    - ``dkpp``: as ``ban`` with p_m kept and the other p_i of each example in a random order, new
      at each visit.

    The last two tell what of the gain is the weighing of examples, and what the teacher's wrong
    classes. Generations from the first to the last but one are kept beside the student; the
    evaluator ``ensemble`` reads the mean of all their softmaxes, ``sum_(k >= 1) q_k / K``.

    All lessons have as many steps, ``train.steps`` in all; the last gets what remains.

    Differences: the authors gave no code. A batch's own confidences weigh its examples, so the
    weights' mean over a batch is 1 and the learning rate means the same as without. Unconfirmed:
    that ``ban_l`` weighs both parts alike.

    Args:
        generations: K, of students; 0 is generation 0 alone.
        loss: what they learn by.
        first: generation 0 is the recipe's ``teacher``, or learns the ``labels``, in as many steps
            as each of the others.
    """

    paper = Paper(
        "1805.04770", "Furlanello, Lipton, Tschannen, Itti, Anandkumar, 2018",
        "Born Again Neural Networks",
    )  # fmt: skip
    needs = Needs(teacher={"logits"})
    modality = "image"
    family = "self"

    generations: Annotated[int, Ge(0)] = 3
    loss: Literal["ban", "ban_l", "cwtm", "dkpp"] = "ban"
    first: Literal["teacher", "labels"] = "teacher"

    def questions(self, work: Work) -> int:
        return 0

    def run(self, work: Work) -> Lesson:
        lessons = [(k, self.method) for k in range(1, self.generations + 1)]
        if self.first == "labels":
            lessons.insert(0, (0, _Labels()))
        if not lessons:
            raise Failure("ban.generations: 0 of a teacher trains nothing; give 1 or more")
        part = work.steps // len(lessons)
        if not part:
            raise Failure(
                f"train.steps: {work.steps} steps are too few for {len(lessons)} generations; give "
                "more, or lower pipeline.generations"
            )
        made: dict[str, Path] = {}
        teacher = None
        for k, method in lessons[:-1]:
            told = Lesson(f"generation {k}", None, part, method, teacher=teacher, draw=k)
            teacher = work.teach(told)
            made |= {f"generation-{k}": teacher} if k else {}
        k, method = lessons[-1]
        left = work.steps - part * len(lessons[:-1])
        return Lesson(f"generation {k}", None, left, method, teacher=teacher, draw=k, beside=made)

    @property
    def method(self) -> Method:
        """The loss of a generation."""
        others = {"cwtm": _Weighed, "dkpp": _Permuted}
        return others[self.loss]() if self.loss in others else _Born(labels=self.loss == "ban_l")


@dataclass(frozen=True, kw_only=True)
class _Labels(LogitMethod):
    """The cross-entropy with the label: generation 0."""

    paper = BAN.paper
    needs = Needs()
    modality = "image"
    family = "self"

    def objective(self, student: Tensor, teacher: Any, labels: Tensor) -> Tensor:
        return -label_logp(student, labels)


@dataclass(frozen=True, kw_only=True)
class _Born(LogitMethod):
    """The cross-entropy with the teacher's probabilities, and with the label if told."""

    paper = BAN.paper
    needs = Needs(teacher={"logits"})
    modality = "image"
    family = "self"

    labels: bool = False

    def objective(self, student: Tensor, teacher: Any, labels: Tensor) -> Tensor:
        value = towards(student, teacher.softmax(-1))
        return value - label_logp(student, labels) if self.labels else value


@dataclass(frozen=True, kw_only=True)
class _Permuted(Method):
    """The cross-entropy with the teacher's probabilities, all but the largest in a new order."""

    paper = BAN.paper
    needs = Needs(teacher={"logits"})
    modality = "image"
    family = "self"

    def prepare(self, run: Run, batch: Batch) -> Batch:
        """The seed of this step's orders, the same for all micro-batches and processes."""
        seed = int(run.uniform() * 2**53)
        return batch.add(draw=torch.full_like(batch.id, seed))

    def loss(
        self, student: Signals, teacher: Signals, batch: Batch, nets: Mapping[str, Any]
    ) -> Term | Sequence[Term]:
        p = teacher.logits.detach().softmax(-1)
        numbers = uniform(int(batch.draw[0]), batch.id.cpu()[:, None], torch.arange(p.shape[1]))
        return Term(towards(student.logits, permuted(p, numbers.to(p))))


@dataclass(frozen=True, kw_only=True)
class _Weighed(Method):
    """The cross-entropy with the label, weighed by the teacher's confidence within the batch."""

    paper = BAN.paper
    needs = Needs(teacher={"logits"}, whole=True)
    modality = "image"
    family = "self"

    def loss(
        self, student: Signals, teacher: Signals, batch: Batch, nets: Mapping[str, Any]
    ) -> Term | Sequence[Term]:
        sure = teacher.logits.detach().softmax(-1).amax(-1) * batch.mask
        weight = sure * batch.mask.sum() / sure.sum().clamp(min=torch.finfo(sure.dtype).tiny)
        return Term(-weight * label_logp(student.logits, batch.labels))


def towards(student: Tensor, p: Tensor) -> Tensor:
    """``- sum_i p_i log q_i`` of logits [n, C] and probabilities [n, C] -> [n]."""
    return -(p * student.log_softmax(-1)).sum(-1)


def permuted(p: Tensor, numbers: Tensor) -> Tensor:
    """Probabilities [n, C], the largest in place, the others by rising ``numbers`` [n, C]."""
    largest = p.argmax(-1, keepdim=True)
    places = torch.arange(p.shape[-1], device=p.device).expand_as(p)
    others = places[places != largest].view(len(p), -1)
    order = others.gather(1, numbers.gather(1, others).argsort(-1))
    return p.scatter(1, others, p.gather(1, order))
