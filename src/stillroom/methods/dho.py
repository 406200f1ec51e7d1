"""Semi-supervised distillation with one head for the labels and one for the teacher (dual head)."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor, nn

from stillroom.core import Batch, Failure, Method, Needs, Paper, Run, Setup, Signals, Term, Update
from stillroom.losses.divergences import forward_kl
from stillroom.losses.policy import label_logp
from stillroom.methods._bases import one_said
from stillroom.models.taps import HEADS, LAST
from stillroom.models.two_heads import grown, two_heads


@dataclass(frozen=True, kw_only=True)
class DHO(Method):
    """Few labels and a teacher, each with a head of its own on one trunk; mixed afterwards.

    ``w CE(label, z_1) + (1 - w) T^2 (KL(softmax(teacher / T) || softmax(z_2 / T)) + u KL of the
    unlabelled)``; the student says ``log(a softmax(z_1) + (1 - a) softmax(z_2 / b))``.

    The first head learns from labels alone, the second from the teacher alone, on labelled and
    unlabelled examples; the trunk from both. The second one is grown beside the student's last
    linear layer, and is shipped with it. a and b are those of a grid with the highest accuracy on
    the validation split, chosen at each validation (evaluator ``two_heads``); numbers of other
    evaluators in that validation are still those of the mixture before. The cosine of both losses'
    gradients for the trunk's last state, on labelled examples, is logged as ``cosine``.

    Differences: the paper's large runs take 1 for both weights, which is twice these; heads that
    start from text embeddings, as for students of CLIP, are left out.

    Args:
        heads: 1 teaches both to the student's own head, which is then not mixed.
        temperature: T.
        label_weight: w.
        unlabelled_weight: u; 0 leaves out the stream ``unlabelled``.
    """

    paper = Paper(
        "2505.07675", "Kang, Lee, Jang, Hwang, 2025", "Simple Semi-supervised Knowledge "
        "Distillation from Vision-Language Models via Dual-Head Optimization"
    )  # fmt: skip
    needs = Needs(
        teacher={"logits"},
        student={"features", "logits"},
        streams={"train", "unlabelled"},
        metrics={"mix_weight", "mix_temperature"},
    )
    modality = "image"
    family = "logits"

    heads: Annotated[int, Ge(1), Le(2)] = 2
    temperature: Annotated[float, Gt(0)] = 2.0
    label_weight: Annotated[float, Ge(0), Le(1)] = 0.5
    unlabelled_weight: Annotated[float, Ge(0)] = 1.0

    def streams(self) -> frozenset[str]:
        return frozenset({"train", "unlabelled"} if self.unlabelled_weight else {"train"})

    def layers(self) -> Mapping[str, Sequence[str]]:
        return {"student": [LAST, HEADS] if self.heads == 2 else [LAST]}

    def players(self, setup: Setup) -> Mapping[str, nn.Module]:
        if self.heads == 2:  # before its optimiser is made
            made = grown(setup.student)
            said = one_said(setup).logits
            if said.shape[-1] != (width := made.both.first.out_features):
                raise Failure(
                    f"DHO: the student's last linear layer says {width} numbers and the student "
                    f"{said.shape[-1]} logits; two heads are mixed where the one is the other"
                )
        return {}

    def prepare(self, run: Run, batch: Batch) -> Batch:
        return batch.add(unlabelled=run.next("unlabelled")) if self.unlabelled_weight else batch

    def updates(self, run: Run, batch: Batch) -> Iterator[Update]:
        w, student = self.label_weight, run.student(batch)
        own, taught = self._heads(student)
        label = -label_logp(own, batch.labels)
        soft = self._soft(taught, run.teacher(batch).logits)
        self._log(run, batch, student, label, soft)
        terms = [Term(label, weight=w, name="label"), Term(soft, weight=1 - w, name="teacher")]
        if self.unlabelled_weight:
            further, weight = batch.unlabelled, (1 - w) * self.unlabelled_weight
            _, taught = self._heads(run.student(further))
            soft = self._soft(taught, run.teacher(further).logits)
            terms.append(Term(soft, "unlabelled.mask", weight=weight, name="unlabelled"))
        yield Update(terms)

    def validated(self, run: Run, values: Mapping[str, float]) -> None:
        mixes = two_heads(run.players["student"])
        if self.heads == 2 and mixes is not None:
            mixture = mixes.head_mixture
            chosen = mixture.new_tensor([[values["mix_weight"], values["mix_temperature"]]])
            mixture.copy_(run.gather(chosen)[0])  # the same on every process

    def _heads(self, student: Signals) -> tuple[Tensor, Tensor]:
        """Scores of the labels' head and of the teacher's."""
        if self.heads == 1:
            return student.logits, student.logits
        return student.features[HEADS].unbind(-2)

    def _soft(self, student: Tensor, teacher: Tensor) -> Tensor:
        T = self.temperature
        return T**2 * forward_kl(student / T, teacher.detach() / T)

    def _log(self, run: Run, batch: Batch, student: Signals, label: Tensor, soft: Tensor) -> None:
        state = student.features[LAST]
        if not state.requires_grad:  # heads without a trunk that learns
            return
        both = [torch.autograd.grad(v.sum(), state, retain_graph=True)[0] for v in (label, soft)]
        cosine = torch.cosine_similarity(*(one.flatten(1).double() for one in both), dim=1)
        run.log(cosine=cosine[batch.mask > 0])
