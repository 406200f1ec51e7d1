"""Trilateral geometry: learn for each sample how far to trust the teacher, how far the label."""

from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Any

import torch
from annotated_types import Ge, Gt
from torch import Tensor, nn
from torch.nn.functional import one_hot

from stillroom.core import Batch, Method, Needs, Paper, Run, Setup, Term, Update
from stillroom.losses.divergences import forward_kl
from stillroom.losses.policy import label_logp
from stillroom.methods._bases import one_said
from stillroom.nets.centroids import Centroids


@dataclass(frozen=True, kw_only=True)
class TGeoKD(Method):
    """Learn for each sample how much of the teacher to take, so that held-out samples gain by it.

    ``J_in(theta, omega) = mean_i [ a_i tau^2 KL(softmax(t_i / tau) || softmax(s_i / tau))
    + (1 - a_i) CE(y_i, s_i) ]``, ``a_i = sigmoid(MLP_omega(geometry_i))``

    The geometry of a sample is what lies between four vectors of probabilities: S of the student, T
    of the teacher, G the label, M the teacher's mean over the training samples of that label:
    the squares of M - S, G - S, T - S, T - G, M - G and the four vectors, 9 C numbers for C
    classes, without gradient. In a step first the controller learns, then the student:

    - ``omega -= rate * grad_omega J_out(theta - eta grad_theta J_in(theta, omega))`` with ``J_out``
      the cross-entropy on rows of the stream ``held``, through one step of gradient descent that is
      differentiated (second order) and then thrown away;
    - ``theta -= rate * grad_theta J_in(theta, omega)``.

    M is exact from the first step on: before it the teacher reads the whole training set once.
    ``ratio`` in the log is the mean a_i, ``ratio_right`` and ``ratio_wrong`` are those where the
    teacher's likeliest class is the label or is not.

    Differences: the published script computes a_i without gradient, so that its controller
    never learns (``learned: false``), and takes the cross-entropy of a softmax of probabilities;
    neither is so here. Batches are drawn, where the script has full ones. Unconfirmed: that the
    paper unrolls one step; the inner step is plain gradient descent whatever the student's
    optimiser.

    A controller that learns fast can saturate early, and trust the teacher where it errs: give it a
    rate below the student's (``train.lr``, by player).

    A run of 400 steps took 2.2 CPU seconds in the recipe's world, and plain distillation 0.7: the
    student is passed two further times, and the gradient of a gradient taken.

    Args:
        temperature: tau.
        inner_rate: eta; of a controller that learns by Adam it says little more than how far
            the step looks ahead.
        width: of the controller's first hidden layer; the second has half of it.
        learned: whether the controller learns; without it ``held`` is not read and a_i stay those
            of a fresh controller.
    """

    paper = Paper(
        "2312.15112", "Hu, Wu, Li, Ma, Chen, Wang, Yan, Liu, 2024", "Less or More From Teacher: "
        "Exploiting Trilateral Geometry For Knowledge Distillation"
    )  # fmt: skip
    needs = Needs(
        teacher={"logits"}, student={"logits"}, whole=True, streams={"train", "held"}
    )  # fmt: skip
    modality = "image"
    family = "sample-weighting"

    temperature: Annotated[float, Gt(0)] = 1.5
    inner_rate: Annotated[float, Gt(0)] = 0.1
    width: Annotated[int, Ge(2)] = 32
    learned: bool = True

    def streams(self) -> Set[str]:
        return self.needs.streams if self.learned else {"train"}

    def players(self, setup: Setup) -> Mapping[str, nn.Module]:
        logits = one_said(setup).logits
        classes = logits.shape[-1]
        controller = _Controller(classes, self.width, logits.dtype)
        return {"controller": controller, "means": Centroids(classes, classes)}

    def prepare(self, run: Run, batch: Batch) -> Batch:
        means = run.players["means"]
        if run.step == 0:
            for rows in run.everything("train"):
                chances = run.teacher(rows).logits.softmax(-1)
                means.add(chances, run.gather(rows.labels), run.gather(rows.mask))
        return batch.add(held=run.next("held")) if self.learned else batch

    def updates(self, run: Run, batch: Batch) -> Iterator[Update]:
        teacher, rows = run.teacher(batch).logits, run.gather(batch)
        if self.learned:
            value = self._looked_ahead(run, rows, teacher)
            yield Update(Term(value, over="held.mask", name="held"), players=("controller",))
        student = run.student(batch).logits
        ratio = self._ratio(run.players, student, teacher, rows.labels).detach()
        right, counts = teacher.argmax(-1) == rows.labels, rows.mask > 0
        for name, which in {"": right | ~right, "_right": right, "_wrong": ~right}.items():
            if (which := which & counts).any():
                run.log(**{f"ratio{name}": ratio[which]})
        yield Update(Term(self._mixed(ratio, student, teacher, rows.labels)))

    def _looked_ahead(self, run: Run, rows: Batch, teacher: Tensor) -> Tensor:
        """[H] cross-entropy on held rows after one step on the others, with omega's gradient."""
        student = run.players["student"]
        weights = {n: p for n, p in student.named_parameters() if p.requires_grad}

        def said(weights: Mapping[str, Tensor], rows: Batch) -> Tensor:
            # what a layer counts while it reads (a batch norm's means) is that of the real steps
            aside = {name: value.clone() for name, value in student.named_buffers()}
            return run.functional("student", {**aside, **weights}, rows).logits

        logits = said(weights, rows)
        ratio = self._ratio(run.players, logits, teacher, rows.labels)
        value = self._mixed(ratio, logits, teacher, rows.labels)
        mask = rows.mask
        inner = (torch.where(mask > 0, value, 0) * mask).sum() / mask.sum().clamp_min(1e-9)
        slopes = torch.autograd.grad(
            inner, [*weights.values()], create_graph=True, materialize_grads=True
        )
        pairs = zip(weights.items(), slopes, strict=True)
        ahead = {name: w - self.inner_rate * slope for (name, w), slope in pairs}
        return -label_logp(said(ahead, rows.held), rows.held.labels)

    def _ratio(
        self, players: Mapping[str, Any], student: Tensor, teacher: Tensor, labels: Tensor
    ) -> Tensor:
        """[B] a_i."""
        s, t = student.detach().softmax(-1), teacher.softmax(-1)
        mean = players["means"].means().to(s)[labels]
        return players["controller"](s, t, one_hot(labels, s.shape[-1]).to(s), mean)

    def _mixed(self, ratio: Tensor, student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
        """[B] ``a_i`` of the teacher's loss and the rest of the label's."""
        tau = self.temperature
        soft = tau**2 * forward_kl(student / tau, teacher / tau)
        return ratio * soft - (1 - ratio) * label_logp(student, labels)


class _Controller(nn.Module):
    """From probabilities S, T, G, M [B, C] of a sample to a_i [B] in (0, 1)."""

    def __init__(self, classes: int, width: int, dtype: torch.dtype) -> None:
        super().__init__()
        sizes, parts = [9 * classes, width, width // 2, 1], []
        for a, b in pairwise(sizes):
            parts += [nn.Linear(a, b, dtype=dtype), nn.LeakyReLU()]
        self.layers = nn.Sequential(*parts[:-1])

    def forward(self, s: Tensor, t: Tensor, g: Tensor, m: Tensor) -> Tensor:
        edges = [(m - s) ** 2, (g - s) ** 2, (t - s) ** 2, (t - g) ** 2, (m - g) ** 2]
        return self.layers(torch.cat([*edges, s, t, g, m], dim=-1)).squeeze(-1).sigmoid()
