"""LELP: each class is split into soft subclasses along directions of the teacher's embedding."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor, nn

from stillroom.core import Batch, Failure, Method, Needs, Paper, Run, Setup, Signals, Term
from stillroom.losses.divergences import forward_kl
from stillroom.losses.per_row import per_row
from stillroom.losses.policy import label_logp
from stillroom.methods._bases import one_said
from stillroom.models.taps import LAST, SCORES
from stillroom.nets.subspaces import Moments, Subspaces, null_space, principal, rotation, scattered


@dataclass(frozen=True, kw_only=True)
class LELP(Method):
    """Few-class distillation: pseudo-subclasses from linear projections of teacher embeddings.

    A reconstruction: structure from the paper, scale and temperatures of the subclass scores by us.

    ``(1 - w) * T^2 * KL(pi || softmax(z / T)) + w * CE(label, log sum_s exp z_(c, s))``
    ``pi_(c, s) = p_c r_(c, s)``, ``r_c = softmax_s(V_c^T (h - m_c) / (scale * beta))``

    Two to five classes say little by their probabilities p = softmax(teacher / T). The teacher's
    last embedding h says more: V_c are the S main directions of class c in what its last layer
    does not read, turned at random so that each has as much variance. The student has S outputs a
    class (``student.net.subclasses``), z [C * S], and a class's probability is their sum. One
    subclass is plain ``kd``, and at large beta classes learn as with it.

    Means m_c, directions and scale are fitted once, before the first step, on each training example
    as it is (without views), and kept as buffers of a player. Where the last layer reads all of h
    (no fewer classes than its width) the embedding is taken as it is. A class of n examples has at
    most n - 1 directions; of one it is a single subclass.

    Differences: KL stands for the paper's cross-entropy, from which it differs by a constant.
    Unconfirmed: scale, which is the root mean square of the scores of a class's own examples, over
    all classes; that the student is softened by T as well, and so T^2; the default beta.

    Args:
        temperature: T, of the classes.
        beta: temperature of the subclasses, in units of the spread of their scores.
        label_weight: w; 0 in the paper's experiments.
        members: whether an example belongs to the class of its label or to the teacher's likeliest.
        directions: main ones, or a control: random orthonormal ones.
        null_space: whether what the teacher's last layer reads is taken out of h first.
        rotate: whether the directions of a class are turned at random.
    """

    paper = Paper(
        "2409.20449",
        "Loo, Iliopoulos, Hu, Vee, 2024",
        "Linear Projections of Teacher Embeddings for Few-Class Distillation",
    )
    needs = Needs(teacher={"features", "logits"}, student={"features", "logits"})
    modality = "image"
    family = "features"

    temperature: Annotated[float, Gt(0)] = 2.0
    beta: Annotated[float, Gt(0)] = 1.0
    label_weight: Annotated[float, Ge(0), Le(1)] = 0.0
    members: Literal["label", "teacher"] = "label"
    directions: Literal["principal", "random"] = "principal"
    null_space: bool = True
    rotate: bool = True

    def layers(self) -> Mapping[str, Sequence[str]]:
        return {"student": [SCORES], "teacher": [LAST]}

    def players(self, setup: Setup) -> Mapping[str, nn.Module]:
        own, theirs = one_said(setup), one_said(setup, "teacher")
        outputs, classes = own.features[SCORES].shape[-1], theirs.logits.shape[-1]
        if own.logits.shape[-1] != classes or outputs % classes:
            raise Failure(
                f"the student's last layer has {outputs} outputs and {own.logits.shape[-1]} "
                f"classes, and the teacher {classes} classes; give the student S outputs a class, "
                "whose probabilities are summed (student: {net: {..., subclasses: S}})"
            )
        h = theirs.features[LAST]
        dtype = torch.promote_types(h.dtype, torch.float32)
        return {"subclasses": Subspaces((classes, h.shape[-1], outputs // classes), dtype)}

    def prepare(self, run: Run, batch: Batch) -> Batch:
        spaces: Any = run.players["subclasses"]
        if spaces.directions.shape[-1] > 1 and not spaces.fitted:
            self._fit(run, spaces)
        return batch

    def _fit(self, run: Run, spaces: Subspaces) -> None:
        """Takes directions from the training set: each of its examples once, as it is."""
        moments, head = Moments.none(spaces.directions[..., 0]), torch.empty(0)
        for batch in run.everything("train"):
            said = run.teacher(batch)
            member = batch.labels if self.members == "label" else said.logits.argmax(-1)
            there = run.gather(batch.mask) > 0
            moments.add(run.gather(said.features[LAST])[there], run.gather(member)[there])
            head = said.head.weight
        draw = torch.Generator().manual_seed(int(run.uniform() * 2**53))
        spaces.take(moments, self._bases(moments, spaces, head, draw))

    def _bases(
        self, moments: Moments, spaces: Subspaces, read: Tensor, draw: torch.Generator
    ) -> list[Tensor]:
        """[D, S_c] orthonormal directions of each class."""
        classes, width, each = spaces.directions.shape
        free = null_space(read) if self.null_space else None
        kept = torch.eye(width).to(moments.sum) if free is None else free
        found = []
        for c in range(classes):
            most = min(each, max(int(moments.count[c]) - 1, 0))
            if self.directions == "principal":
                basis = principal(kept @ moments.covariance(c) @ kept, most)
            else:
                basis = scattered(kept, most, draw)
            turn = rotation(basis.shape[1], draw).to(basis) if self.rotate else None
            found.append(basis if turn is None else basis @ turn)
        return found

    def loss(
        self, student: Signals, teacher: Signals, batch: Batch, nets: Mapping[str, Any]
    ) -> Term | Sequence[Term]:
        scores = Signals(logits=student.features[SCORES])
        within = nets["subclasses"](teacher.features[LAST].detach(), self.beta)
        return Term(per_row(self.objective, scores, teacher, batch.labels, within=within))

    def objective(self, student: Tensor, teacher: Tensor, labels: Tensor, within: Tensor) -> Tensor:
        """[n] of outputs [n, C * S], logits [n, C], labels [n] and log r [n, C, S]."""
        T, w = self.temperature, self.label_weight
        target = (teacher / T).unsqueeze(-1) + within  # logits of pi, for r adds up to 1
        soft = T**2 * forward_kl(student / T, target.flatten(1))
        if w == 0:
            return soft
        classes = student.unflatten(-1, within.shape[1:]).logsumexp(-1)
        return (1 - w) * soft - w * label_logp(classes, labels)
