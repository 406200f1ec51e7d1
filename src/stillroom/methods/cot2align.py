"""CoT2Align: states of plain answers and of chains of thought, aligned by optimal transport."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor, nn

from stillroom.core import Batch, Method, Needs, Paper, Run, Setup, Signals, Term, Update
from stillroom.losses.per_row import per_row
from stillroom.losses.policy import nll
from stillroom.losses.transport import (
    cosine_cost,
    side_by_side,
    softmax_cost,
    sorted_distance,
    transport,
)
from stillroom.models.taps import EMBEDDING, LAST
from stillroom.nets.projectors import Projectors

LAYERS = (EMBEDDING, LAST)
States = Mapping[str, tuple[Tensor, Tensor]]
"""By layer, the states of each example's answer [B, n, d] and which are there [B, n]."""


@dataclass(frozen=True, kw_only=True)
class CoT2Align(Method):
    """Cross-tokenizer distillation by optimal transport of plain answers and chains of thought.

    ``L = (1 - alpha) L_CE + alpha (w_kd L_KD + w_ot L_OT + w_crc L_CRC + w_cst L_CST)``

    With a plain answer and one with its chain of thought (column ``cot``) to each prompt, and
    ``A(s, t) = W(emb_S(s), emb_T(t) P_emb) + W(last_S(s), last_T(t) P_last)``: ``L_OT`` is A of the
    plain answers of both models, ``L_CRC`` of the student's plain answer and the teacher's chain
    of thought, ``L_CST`` of the chains of thought of both. W is ``losses.transport``, with
    ``C_ij = 1 - softmax_j(U_i . V_j / sqrt(d))`` or ``1 - cos(U_i, V_j)``; P are trained with the
    student. ``L_CE`` and ``L_KD`` are means of those of the plain answer and of the other.

    Differences: L_KD is the distance of ``uld``, by index, in place of dual-space distillation. The
    prompt, which both models share, is in no sequence: states are those that say an answer's
    tokens, from the last of the prompt on. Unconfirmed, as there is no official code: alpha, which
    pair L_OT takes, that L_KD counts both answers, and all that concerns W (from code of the
    group for another task).

    Args:
        alpha: share of the distillation.
        kd_weight: w_kd.
        ot_weight: w_ot.
        crc_weight: w_crc.
        cst_weight: w_cst.
        cost: ``softmax`` is nearly flat over long answers, so it teaches little there.
        eps: how far the plan is spread.
        iterations: of Sinkhorn, at most.
        unroll: sends gradients through the plan as well.
    """

    paper = Paper(
        "2502.16806", "Le et al., 2025", "CoT2Align: Cross-Chain of Thought Distillation via "
        "Optimal Transport Alignment for Language Models with Different Tokenizers"
    )  # fmt: skip
    needs = Needs(teacher={"spans", "features"}, student={"logits", "features"}, texts={"cot"})
    modality = "text"
    family = "cross-tokenizer"

    alpha: Annotated[float, Ge(0), Le(1)] = 0.5
    kd_weight: Annotated[float, Ge(0)] = 1.0
    ot_weight: Annotated[float, Ge(0)] = 1.0
    crc_weight: Annotated[float, Ge(0)] = 1.0
    cst_weight: Annotated[float, Ge(0)] = 1.0
    cost: Literal["softmax", "cosine"] = "softmax"
    eps: Annotated[float, Gt(0)] = 0.1
    iterations: Annotated[int, Ge(1)] = 100
    unroll: bool = False

    def layers(self) -> Mapping[str, Sequence[str]]:
        return {"student": LAYERS, "teacher": LAYERS}

    def players(self, setup: Setup) -> Mapping[str, nn.Module]:
        if not self._pairs():
            return {}
        one = setup.batch.part(0, 1)
        with torch.no_grad():
            own, other = setup.student(one), setup.teachers["teacher"](one)
        return {"projectors": Projectors(own.features, other.answer.features)}

    def updates(self, run: Run, batch: Batch) -> Iterator[Update]:
        halves = {"": batch, "cot.": batch.cot}
        own = {name: run.student(half) for name, half in halves.items()}
        asked = halves.items() if self.alpha else ()
        other = {name: run.teacher(half) for name, half in asked}
        terms = [
            term
            for name, half in halves.items()
            for term in self._each(name, half, own[name], other.get(name))
        ]
        if self._pairs():
            project = run.players["projectors"]
            students = {name: _student(own[name], half) for name, half in halves.items()}
            teachers = {
                name: _placed(project(said.answer.features), said.answer.owner, batch.size)
                for name, said in other.items()
            }
            for name, (mine, theirs, weight) in self._pairs().items():
                far = self._apart(students[mine], teachers[theirs])
                terms.append(Term(far, over="examples", weight=self.alpha * weight, name=name))
        yield Update(terms, players=("student", *self.moving(run.players)))

    def _pairs(self) -> dict[str, tuple[str, str, float]]:
        """By term, whose answers are compared, and its weight; those that count."""
        pairs = {
            "ot": ("", "", self.ot_weight),
            "crc": ("", "cot.", self.crc_weight),
            "cst": ("cot.", "cot.", self.cst_weight),
        }
        return {name: told for name, told in pairs.items() if self.alpha * told[-1]}

    def _each(self, name: str, batch: Batch, own: Signals, other: Signals | None) -> Iterator[Term]:
        """Half of L_CE and of L_KD."""
        text = per_row(nll, own, None, batch.labels)
        yield Term(text, over=f"{name}mask", weight=(1 - self.alpha) / 2, name=f"{name}text")
        weight = self.alpha * self.kd_weight / 2
        if other is not None and weight:
            told = other.index
            counted, owner = told.paired * batch.mask, batch.owner
            tokens = counted.new_zeros(batch.size).index_add(0, owner, counted)
            share = counted / tokens.clamp_min(1)[owner]
            far = per_row(_distance, own, told, None, foreign=True, share=share)
            each = far.new_zeros(batch.size).index_add(0, owner, far)
            yield Term(each, over=f"{name}examples", weight=weight, name=f"{name}distance")

    def _apart(self, students: States, teachers: States) -> Tensor:
        """[B] the transport distance, added up over layers."""
        told = {"eps": self.eps, "iterations": self.iterations, "unroll": self.unroll}
        far = []
        for (u, a), (v, b) in ((students[layer], teachers[layer]) for layer in LAYERS):
            cost = cosine_cost(u, v) if self.cost == "cosine" else softmax_cost(u, v, b)
            far.append(transport(cost, a, b, **told))
        return torch.stack(far).sum(0)


def _student(said: Signals, batch: Batch) -> States:
    """States that say the last answer: rows of earlier turns, and masked ones, are not there."""
    place = batch.positions.flatten()[batch.rows] + 1
    there = batch.mask * (place >= batch.prompt[batch.owner])
    return _placed(said.features, batch.owner, batch.size, there)


def _placed(
    features: Mapping[str, Tensor], owner: Tensor, size: int, there: Tensor | None = None
) -> States:
    there = torch.ones_like(owner, dtype=torch.float32) if there is None else there
    real = side_by_side(there, owner, size)
    return {k: (side_by_side(states, owner, size), real) for k, states in features.items()}


def _distance(student: Tensor, teacher: Tensor, labels: None, share: Tensor) -> Tensor:
    return share * sorted_distance(student, teacher)
