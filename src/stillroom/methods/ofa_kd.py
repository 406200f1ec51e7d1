"""One-for-all distillation between families: student's early exits learn the teacher's logits."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Literal

import torch
from annotated_types import Ge, Gt
from torch import Tensor, nn
from torch.nn.functional import one_hot

from stillroom.core import Batch, Failure, Method, Needs, Paper, Setup, Signals, Term
from stillroom.losses.per_row import per_row
from stillroom.losses.policy import nll
from stillroom.methods._bases import one_said
from stillroom.nets.exits import Exit


@dataclass(frozen=True, kw_only=True)
class OFAKD(Method):
    """Distil across architectures (CNN, ViT, MLP): early exits of the student learn teacher logits.

    ``w_l * CE(label, student) + w_h * L(head) + w_e * sum_k L(exit_k)``

    With ``p = softmax(teacher / T)``, ``q`` the same of the student's head, or of an exit branch
    after one of its layers, and c the label:

    - paper: ``L(q) = -(1 + p_c)^gamma log q_c - sum_(j != c) p_j log q_j``
    - code: ``L(q) = -sum_j ((p_j + 1[j = c])^gamma - 1[j = c]) log q_j``

    No features are compared, so nothing has to fit: each stage of the student is asked for the
    teacher's last word. Gamma above 1 gives the label more weight; the form of the code damps the
    other classes by it, too, and is the cross-entropy with p at gamma 1. The teacher says logits
    alone. Exits are players: they learn with the student and are no part of it. There is no T^2.

    Differences: paper and authors' code differ, and both forms are here. Exits are smaller: blocks
    keep the width of their layer (the code widens the last to the teacher's, which is not asked
    for), tokens are not merged to 7 x 7, and group norm stands for batch norm, which would let a
    batch that is split give other numbers. Unconfirmed: what an exit on a vector [B, d] is, as of a
    perceptron without tokens; here linear layers with ReLU.

    Args:
        temperature: T; softens both sides.
        gamma: of the head and of all exits; the paper tunes it by pair (1 and 1.5).
        form: as the paper has the formula, or as its code does, by which its numbers were made.
        exit_layers: names of the student's layers with an exit, the first ones first; each exit
            has as many blocks as names come after it.
        exit_gammas: one for each exit layer; None takes ``gamma`` for all.
        label_weight: w_l.
        head_weight: w_h.
        exit_weight: w_e; 0 makes no exits.
    """

    paper = Paper(
        "2310.19444",
        "Hao, Guo, Han, Tang, Hu, Wang, Xu, 2023",
        "One-for-All: Bridge the Gap Between Heterogeneous Architectures in Knowledge Distillation",
    )
    needs = Needs(teacher={"logits"}, student={"features", "logits"})
    modality = "image"
    family = "logits"

    temperature: Annotated[float, Gt(0)] = 1.0
    gamma: Annotated[float, Gt(0)] = 1.5
    form: Literal["code", "paper"] = "code"
    exit_layers: tuple[str, ...] = ("last",)
    exit_gammas: tuple[Annotated[float, Gt(0)], ...] | None = None
    label_weight: Annotated[float, Ge(0)] = 1.0
    head_weight: Annotated[float, Ge(0)] = 1.0
    exit_weight: Annotated[float, Ge(0)] = 1.0

    def __post_init__(self) -> None:
        if self.exit_gammas is not None and len(self.exit_gammas) != len(self.exit_layers):
            raise Failure(
                f"exit_gammas: there are {len(self.exit_gammas)} for {len(self.exit_layers)} exit "
                "layers; give one for each, or gamma alone"
            )

    @property
    def _exits(self) -> dict[str, float]:
        """Gamma of each layer that has an exit."""
        gammas = self.exit_gammas or [self.gamma] * len(self.exit_layers)
        return dict(zip(self.exit_layers, gammas, strict=True)) if self.exit_weight else {}

    def layers(self) -> Mapping[str, Sequence[str]]:
        return {"student": [*self._exits]} if self._exits else {}

    def players(self, setup: Setup) -> Mapping[str, nn.Module]:
        if not self._exits:
            return {}
        said = one_said(setup)
        last = len(self._exits) - 1
        made = [
            Exit(said.features[layer], said.logits.shape[-1], last - k)
            for k, layer in enumerate(self._exits)
        ]
        return {"exits": nn.ModuleList(made)}

    def loss(
        self, student: Signals, teacher: Signals, batch: Batch, nets: Mapping[str, Any]
    ) -> Sequence[Term]:
        terms = []
        if self.label_weight:
            value = per_row(nll, student, None, batch.labels)
            terms.append(Term(value, weight=self.label_weight, name="label"))
        if self.head_weight:
            value = per_row(self.objective, student, teacher, batch.labels)
            terms.append(Term(value, weight=self.head_weight, name="head"))
        for k, (layer, gamma) in enumerate(self._exits.items()):
            said = Signals(logits=nets["exits"][k](student.features[layer]))
            value = per_row(partial(self.objective, gamma=gamma), said, teacher, batch.labels)
            terms.append(Term(value, weight=self.exit_weight, name=f"exit/{layer}"))
        return terms

    def objective(
        self, student: Tensor, teacher: Tensor, labels: Tensor, gamma: float | None = None
    ) -> Tensor:
        """[n] L of logits [n, C], [n, C] and labels [n]."""
        gamma, exact = gamma or self.gamma, torch.promote_types(student.dtype, torch.float32)
        log_q = (student / self.temperature).log_softmax(-1, dtype=exact)
        p = (teacher.detach() / self.temperature).softmax(-1, dtype=exact)
        true = one_hot(labels, p.shape[-1]).to(p)
        if self.form == "code":
            weight = (p + true) ** gamma - true
        else:
            weight = torch.where(true > 0, (1 + p) ** gamma, p)
        return -(weight * log_q).sum(-1)
