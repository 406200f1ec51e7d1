"""The area under the risk-coverage curve, by hand and over all orders of those equally sure."""

import itertools
from types import SimpleNamespace

import pytest
import torch

from stillroom.core import Signals
from stillroom.evaluation import selective
from stillroom.evaluation.selective import aurc


def view(chances, labels, parts=1):
    pieces = [
        SimpleNamespace(z=z, labels=y)
        for z, y in zip(chances.log().chunk(parts), labels.chunk(parts), strict=True)
    ]
    return SimpleNamespace(
        student=lambda batch: Signals(logits=batch.z), batches=lambda: iter(pieces)
    )


CHANCES = torch.tensor([[0.6, 0.4], [0.1, 0.9], [0.7, 0.3], [0.2, 0.8]])
LABELS = torch.tensor([1, 1, 0, 0])


@pytest.mark.parametrize("parts", [1, 2, 4])
def test_by_hand(parts):
    """Sure .9 (right), .8 (wrong), .7 (right), .6 (wrong): (0 + 1/2 + 1/3 + 2/4) / 4 = 1/3."""
    told = selective.measure(view(CHANCES, LABELS, parts))
    assert told == {"aurc": pytest.approx(1 / 3)}
    assert set(told) == set(selective.COLUMNS)


def brute(confidence, wrong):
    """The mean area over all orders that confidence leaves open."""
    pairs = list(zip(confidence.tolist(), wrong.tolist(), strict=True))
    areas = []
    for order in itertools.permutations(pairs):
        if all(a[0] >= b[0] for a, b in itertools.pairwise(order)):
            errors = list(itertools.accumulate(e for _, e in order))
            areas.append(sum(e / k for k, e in enumerate(errors, start=1)) / len(errors))
    return sum(areas) / len(areas)


@pytest.mark.parametrize("seed", range(6))
def test_equally_sure_ones_count_as_over_all_their_orders(seed):
    draw = torch.Generator().manual_seed(seed)
    confidence = torch.randint(1, 4, (6,), generator=draw).double() / 4
    wrong = torch.randint(0, 2, (6,), generator=draw).double()
    assert float(aurc(confidence, wrong)) == pytest.approx(brute(confidence, wrong), abs=1e-12)


def test_a_confidence_that_tells_nothing_leaves_the_share_of_errors():
    wrong = torch.tensor([1.0, 0, 0, 1, 0], dtype=torch.float64)
    assert float(aurc(torch.full((5,), 0.5), wrong)) == pytest.approx(0.4)


def test_errors_among_the_surest_cost_more():
    confidence = torch.tensor([0.9, 0.8, 0.7, 0.6])
    first, last = torch.tensor([1.0, 0, 0, 0]), torch.tensor([0.0, 0, 0, 1])
    assert float(aurc(confidence, first)) > float(aurc(confidence, last)) > 0
    assert float(aurc(confidence, torch.zeros(4))) == 0
