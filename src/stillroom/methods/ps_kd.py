"""Progressive self-distillation: learn from one's own predictions of the pass before."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge, Le
from torch import nn
from torch.nn import functional

from stillroom.core import Batch, Method, Needs, Paper, Run, Setup, Term, Update
from stillroom.methods._bases import one_said
from stillroom.nets.bank import Bank


@dataclass(frozen=True, kw_only=True)
class PSKD(Method):
    """Learn from a mixture of the label and one's own prediction of the pass before.

    ``- sum_c target_c log softmax(student)_c`` with
    ``target = (1 - a_t) * onehot(label) + a_t * p_before[id]`` and ``a_t = a * t / passes`` in
    pass t = 1, 2, ...; p_before is the student's softmax for the same sample one pass earlier
    (equations 3 and 4). In the first pass it is the label itself.

    Differences: the table is filled from the training forward of the same step, as in the
    authors' code, not by a second pass over the data.

    Args:
        alpha: a, the weight that past predictions reach in the last pass.
    """

    paper = Paper(
        "2006.12000", "Kim, Ji, Yoon, Hwang, 2021", "Self-Knowledge Distillation with "
        "Progressive Refinement of Targets"
    )  # fmt: skip
    needs = Needs(teacher=set(), student={"logits"}, planned=True)
    modality = "image"
    family = "self"

    alpha: Annotated[float, Ge(0), Le(1)] = 0.8

    def players(self, setup: Setup) -> Mapping[str, nn.Module]:
        logits = one_said(setup).logits
        return {"before": Bank(setup.samples, logits.shape[-1], dtype=logits.dtype)}

    def prepare(self, run: Run, batch: Batch) -> Batch:
        before = run.players["before"]  # read before any micro-batch writes
        label = functional.one_hot(batch.labels, before.values.shape[-1]).to(before.values)
        return batch.add(label=label, past=before.read(batch.id, label))

    def updates(self, run: Run, batch: Batch) -> Iterator[Update]:
        logits = run.student(batch).logits
        a = self.alpha * min(1.0, (run.epoch + 1) / max(1.0, run.epochs))
        target = (1 - a) * batch.label + a * batch.past
        run.players["before"].write(batch.id, logits.softmax(-1))
        yield Update(Term(-(target * logits.log_softmax(-1)).sum(-1)))

    def after(self, run: Run, batch: Batch) -> None:
        before = run.players["before"]  # each process has written its own samples only
        before.write(run.gather(batch.id), run.gather(before.values[batch.id]))
