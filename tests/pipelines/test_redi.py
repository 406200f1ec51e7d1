"""REDI: which rationales each stage learns, and that its loss is the page's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from stillroom.core import Failure, Lesson
from stillroom.losses.preference import preference
from stillroom.methods.preference import Preference
from stillroom.methods.seqkd import SeqKD
from stillroom.pipelines.redi import REDI

SAID = {"a": "xyy", "b": "yy", "c": "xx"}
"""Of each question the teacher's rationales in order; x is wrong, y is right."""


class Given:
    """Work whose teacher says ``SAID``, and which keeps what is taught."""

    rows: Sequence[Any] = tuple({"id": id, "prompt": id} for id in SAID)
    validation: Sequence[Any] = ()
    steps, batch, seed = 100, 8, 0

    def __init__(self) -> None:
        self.lessons: list[Lesson] = []
        self.told: list[Any] = []

    def ask(self, what: str, rows: Sequence[Any], *, n: int, temperature: Any = None) -> list[Any]:
        assert what == "answer"
        return [
            {**row, "completion": f"{sign}{i}", "provenance": {}}
            for row in rows
            for i, sign in enumerate(SAID[row["id"]][:n])
        ]

    def verified(self, rows: Sequence[Any]) -> list[Any]:
        return [
            {**r, "provenance": {"verified": {"right": r["completion"][0] == "y"}}} for r in rows
        ]

    def teach(self, lesson: Lesson) -> Any:
        self.lessons.append(lesson)
        return "stage 1"

    def tell(self, what: str, **numbers: float) -> None:
        self.told.append(numbers)


def learned(lesson: Lesson) -> list[tuple[Any, ...]]:
    return [(r["id"], r["completion"], r.get("rejected")) for r in lesson.rows]


def test_right_ones_come_first_and_pairs_are_of_one_question() -> None:
    work: Any = Given()
    last = REDI(n=3, share=0.6, rate=0.5).run(work)
    (first,) = work.lessons
    assert learned(first) == [("a", "y1", None), ("b", "y0", None)]
    assert (first.steps, first.method, first.start, first.rate) == (60, SeqKD(), None, 1.0)
    assert learned(last) == [("a", "y1", "x0")]
    assert (last.steps, last.start, last.rate) == (40, "stage 1", 0.5)
    assert work.told == [{"pairs": 1, "no wrong answer": 1, "no right answer": 1}]


def test_the_control_goes_on_with_the_right_ones() -> None:
    work: Any = Given()
    last = REDI(n=3, loss="sft").run(work)
    assert learned(last) == learned(work.lessons[0])
    assert last.method == SeqKD()


def test_no_reference_is_needed_but_by_dpo() -> None:
    assert not REDI().method.reference
    assert not REDI(loss="simpo").method.reference
    assert REDI(loss="dpo").method.reference


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_its_loss_is_that_of_the_paper(alpha: float) -> None:
    """``-ell(y_w) + alpha ell(y_l)``, and its gradients are -1 and alpha."""
    told: Preference = REDI(alpha=alpha).method
    right, wrong = (torch.tensor([v], dtype=torch.double, requires_grad=True) for v in (-0.5, -2.0))
    value = told._loss(right, wrong)
    value.sum().backward()
    assert value.item() == pytest.approx(0.5 - 2.0 * alpha)
    assert (right.grad, wrong.grad) == (-1.0, alpha)


def test_symmetric_redi_is_simpo_with_a_small_beta() -> None:
    """``-log sigmoid(beta D) -> log 2 - beta D / 2``: the gradient is half of beta times REDI's."""
    beta, right = 1e-6, torch.tensor([-0.5], dtype=torch.double, requires_grad=True)
    wrong = torch.tensor([-2.0], dtype=torch.double)
    preference(right, wrong, beta=beta).sum().backward()
    assert right.grad is not None
    assert right.grad.item() / (beta / 2) == pytest.approx(-1, abs=1e-5)


def test_without_a_pair_nothing_is_taught() -> None:
    work: Any = Given()
    with pytest.raises(Failure, match=r"no question has both .*raise pipeline\.n"):
        REDI(n=1).run(work)
    assert not work.lessons
