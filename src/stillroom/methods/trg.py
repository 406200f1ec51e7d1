"""Token-level relationship graph: keep how alike the patches of a whole batch are."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from annotated_types import Ge, Gt
from torch import Tensor, nn

from stillroom.core import Batch, Needs, Paper, Run, Setup, Signals, Term, Update
from stillroom.losses import token_graph
from stillroom.losses.divergences import forward_kl
from stillroom.losses.policy import label_logp
from stillroom.methods._bases import FeatureMethod
from stillroom.models.taps import MAP
from stillroom.rollouts.sampling import uniform


@dataclass(frozen=True, kw_only=True)
class TRG(FeatureMethod):
    """A reconstruction of the token-level relationship graph: keep how alike patches are.

    That there is a graph over tokens with a local, a global and a contextual term on top of
    knowledge distillation is the paper's; the formulas are standard forms put in their places.

    ``w_y CE(label, student) + w_s T^2 KL(teacher / T || student / T)
    + w_l local + w_g global + w_c context``

    A token is a cell of a feature map or a patch, u_i of the teacher and v_i = P s_i of the student
    with a learned linear P, both at length 1; N_i are the k tokens of OTHER images in the batch
    that the teacher holds most alike token i.

    - local: ``mean_i KL( softmax_{j in N_i}(u_i . u_j / t) || softmax_{j in N_i}(v_i . v_j / t) )``
    - global: ``- mean_i log( exp(v_i . u_i / t) / sum_j exp(v_i . u_j / t) )``
    - context: within one image, ``mean_i KL( softmax_j(u_i . u_j / t) || softmax_j(v_i . v_j / t)
      )`` over all its tokens

    i and j of the first two run over tokens that are drawn in each step, as many of each image and
    the same of both networks. The finer grid is averaged down to the coarser; a class token is left
    out. ``overlap`` in the log is the share of the teacher's neighbours that are the student's,
    too.

    Differences: which parts of the formulas differ from the paper's is not known. Unconfirmed: all
    of them, and all defaults; whether tokens are drawn, and how; one fixed temperature t.

    Args:
        student_layer: whose tokens are compared; ``map`` is the last layer that has places.
        teacher_layer: the same of the teacher.
        tokens: drawn from a batch for the graph, at most; each image gives at least one.
        neighbours: k.
        graph_temperature: t, of similarities.
        local_weight: w_l.
        global_weight: w_g.
        context_weight: w_c.
        temperature: T, of class scores.
        soft_weight: w_s.
        label_weight: w_y.
    """

    paper = Paper(
        "2306.12442", "Zhang, Liu, He, 2023", "Knowledge Distillation via Token-level "
        "Relationship Graph"
    )  # fmt: skip
    needs = Needs(teacher={"logits", "maps"}, student={"logits", "maps"}, whole=True)
    modality = "image"
    family = "relations"

    student_layer: str = MAP
    teacher_layer: str = MAP
    tokens: Annotated[int, Ge(1)] = 256
    neighbours: Annotated[int, Ge(1)] = 8
    graph_temperature: Annotated[float, Gt(0)] = 0.1
    local_weight: Annotated[float, Ge(0)] = 1.0
    global_weight: Annotated[float, Ge(0)] = 1.0
    context_weight: Annotated[float, Ge(0)] = 1.0
    temperature: Annotated[float, Gt(0)] = 4.0
    soft_weight: Annotated[float, Ge(0)] = 1.0
    label_weight: Annotated[float, Ge(0)] = 1.0

    def players(self, setup: Setup) -> Mapping[str, nn.Module]:
        own, other = token_graph.aligned(*self.tried(setup))
        dtype = torch.promote_types(own.dtype, torch.float32)
        return {"projector": nn.Linear(own.shape[-1], other.shape[-1], bias=False, dtype=dtype)}

    def prepare(self, run: Run, batch: Batch) -> Batch:
        # by sample, so that the order of a batch and the process do not matter
        numbers = uniform(int(run.uniform() * 2**53), batch.id.cpu())
        return batch.add(draw=(numbers * 2**53).long().to(batch.id.device))

    def updates(self, run: Run, batch: Batch) -> Iterator[Update]:
        student, teacher, batch = run.student(batch), run.teacher(batch), run.gather(batch)
        own, other = self._tokens(student, teacher, run.players)
        v, u, image = self._graph(own.detach(), other, batch)
        near = [token_graph.neighbours(x, image, self.neighbours) for x in (u, v)]
        if near[0].numel():
            run.log(overlap=token_graph.overlap(*near))
        terms = self.loss(student, teacher, batch, run.players)
        yield Update(terms, players=("student", *self.moving(run.players)))

    def loss(
        self, student: Signals, teacher: Signals, batch: Batch, nets: Mapping[str, Any]
    ) -> Sequence[Term]:
        T, t = self.temperature, self.graph_temperature
        own, other = self._tokens(student, teacher, nets)
        v, u, image = self._graph(own, other, batch)
        near = token_graph.neighbours(u, image, self.neighbours)
        terms = {
            "label": (self.label_weight, -label_logp(student.logits, batch.labels)),
            "soft": (self.soft_weight, T**2 * forward_kl(student.logits / T, teacher.logits / T)),
            "local": (self.local_weight, self._each(token_graph.local(v, u, near, t), batch)),
            "global": (self.global_weight, self._each(token_graph.contrast(v, u, t), batch)),
            "context": (self.context_weight, token_graph.context(own, other, t)),
        }
        return [Term(value, weight=w, name=name) for name, (w, value) in terms.items()]

    def _tokens(
        self, student: Signals, teacher: Signals, nets: Mapping[str, Any]
    ) -> tuple[Tensor, Tensor]:
        """All tokens, the student's brought to the teacher's width: [B, N, e] twice."""
        own, other = token_graph.aligned(*self.said(student, teacher))
        projector = nets["projector"]
        return projector(own.to(projector.weight)), other

    def _graph(self, own: Tensor, other: Tensor, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Those that are drawn, [M, e] twice, and the image of each, [M]."""
        size, places = own.shape[:2]
        each = max(1, min(places, self.tokens // size))
        numbers = uniform(0, batch.draw.cpu().unsqueeze(1), torch.arange(places))
        image = torch.arange(size, device=own.device)
        row, place = image.unsqueeze(1), numbers.argsort(1)[:, :each].to(own.device)
        return (
            own[row, place].flatten(0, 1),
            other[row, place].flatten(0, 1),
            image.repeat_interleave(each),
        )

    def _each(self, value: Tensor, batch: Batch) -> Tensor:
        """[M], tokens of one image side by side, to the mean of each image [B]."""
        return value.unflatten(0, (batch.size, -1)).mean(1)
