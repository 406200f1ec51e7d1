"""Relational knowledge distillation: keep the geometry of a batch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from annotated_types import Ge

from stillroom.core import Batch, Needs, Paper, Signals, Term
from stillroom.losses import relations
from stillroom.losses.policy import label_logp
from stillroom.methods._bases import FeatureMethod


@dataclass(frozen=True, kw_only=True)
class RKD(FeatureMethod):
    """Keep the geometry of a batch: distances of pairs and angles of triplets of embeddings.

    ``w_d * mean_ij huber(|s_i - s_j| / mu_s - |t_i - t_j| / mu_t)
    + w_a * mean_ijk huber(cos angle_s(i, j, k) - cos angle_t(i, j, k)) + w_l * CE(label, student)``

    mu is the mean of a model's positive distances in the batch; both embeddings may have any
    width (section 3.2).

    Differences: the paper sums over pairs and triplets, here the mean is taken, as in the authors'
    code, so weights do not depend on the size of the batch.

    Args:
        distance_weight: w_d.
        angle_weight: w_a; the paper's ratio to w_d is 2 to 1.
        label_weight: w_l; 0 learns without labels (metric learning), then a classifier that
            stands after the student's embedding does not move.
    """

    paper = Paper("1904.05068", "Park, Kim, Lu, Cho, 2019", "Relational Knowledge Distillation")
    needs = Needs(teacher={"features"}, student={"features", "logits"}, whole=True)
    modality = "any"
    family = "relations"

    distance_weight: Annotated[float, Ge(0)] = 1.0
    angle_weight: Annotated[float, Ge(0)] = 2.0
    label_weight: Annotated[float, Ge(0)] = 0.0

    def loss(
        self, student: Signals, teacher: Signals, batch: Batch, nets: Mapping[str, Any]
    ) -> Sequence[Term]:
        s, t = self.flat(student, teacher)
        terms = [
            Term(relations.distance(s, t), weight=self.distance_weight, name="distance"),
            Term(relations.angle(s, t), weight=self.angle_weight, name="angle"),
        ]
        if self.label_weight:
            ce = -label_logp(student.logits, batch.labels)
            terms.append(Term(ce, weight=self.label_weight, name="label"))
        return terms
