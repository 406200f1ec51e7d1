"""Mentor-KD: what is kept of whose rationales, who is taught what, and the loss by hand."""

from pathlib import Path
from typing import Any

import pytest
import torch

from stillroom.core import Failure, Lesson
from stillroom.losses.policy import nll
from stillroom.pipelines.mentor_kd import MentorKD, _Mentored

MENTOR = {"lm": {"model_type": "llama"}}
ROWS = [{"id": i, "prompt": f"{i}+1=", "gold": str(i + 1)} for i in (1, 2)]


class Fake:
    """A teacher that is right once of three times, and a mentor that repeats it and adds one."""

    rows, steps = ROWS, 40

    def __init__(self) -> None:
        self.asked, self.wrote, self.lessons, self.told = [], [], [], []

    def ask(self, what: str, rows: Any, *, n: int = 1, temperature: float | None = None) -> Any:
        self.asked.append((what, len(rows), n, temperature))
        said = [
            f"right {row['gold']}" if i % 3 == 0 else "wrong 0" for row in rows for i in range(n)
        ]
        return self._told(rows, n, said)

    def write(self, student: Path, rows: Any, *, n: int = 1, temperature: float = 0.0) -> Any:
        self.wrote.append((student, n, temperature))
        said = [
            [f"right {r['gold']}", f"own {r['gold']}", f" own {r['gold']}", "", "no 0"][:n]
            for r in rows
        ]
        return self._told(rows, n, [text for each in said for text in each])

    def _told(self, rows: Any, n: int, said: list[str]) -> Any:
        each = [row for row in rows for _ in range(n)]
        return [{**row, "completion": text} for row, text in zip(each, said, strict=True)]

    def right(self, rows: Any) -> Any:
        return [row for row in rows if row["completion"].endswith(row["gold"])]

    def teach(self, lesson: Lesson) -> Path:
        self.lessons.append(lesson)
        return Path("mentor")

    def tell(self, what: str, **numbers: float) -> None:
        self.told.append((what, numbers))


def run(**fields: Any) -> tuple[Any, Fake]:
    work: Any = Fake()
    return MentorKD(**fields).run(work), work


def texts(lesson: Any) -> list[tuple[int, str]]:
    return [(row["id"], row["completion"].strip()) for row in lesson.rows]


LARGE = [(1, "right 2"), (2, "right 3")]
BOTH = [*LARGE, (1, "own 2"), (2, "own 3")]


def test_the_student_learns_right_texts_of_both_and_each_once():
    lesson, work = run(
        mentor=MENTOR, n=5, teacher_samples=4, mentor_steps=7, sample_temperature=1.1
    )
    assert work.asked == [("answer", 2, 4, None)]
    assert work.wrote == [(Path("mentor"), 5, 1.1)]
    (taught,) = work.lessons
    assert (texts(taught), taught.steps, taught.network) == (LARGE, 7, MENTOR)
    assert (texts(lesson), lesson.steps, lesson.teacher) == (BOTH, 40, Path("mentor"))
    assert lesson.method == _Mentored(soft_weight=0.3, temperature=2.0)
    assert lesson.network is None
    assert lesson.start is None


def test_without_soft_labels_it_is_fine_tuning_on_both_sets():
    lesson, _ = run(mentor=MENTOR, n=5, soft_weight=0.0)
    assert (lesson.method, lesson.teacher, texts(lesson)) == (None, None, BOTH)


def test_without_own_rationales_the_mentor_gives_soft_labels_on_the_large_ones():
    lesson, work = run(mentor=MENTOR, n=0)
    assert (texts(lesson), lesson.teacher, work.wrote) == (LARGE, Path("mentor"), [])


def test_without_both_there_is_no_mentor():
    lesson, work = run(mentor=MENTOR, n=0, soft_weight=0.0)
    assert (texts(lesson), lesson.steps, lesson.teacher, work.lessons) == (LARGE, 40, None, [])


def test_a_mentor_like_the_student_takes_of_its_steps():
    lesson, work = run(mentor_steps=15)
    assert (work.lessons[0].steps, work.lessons[0].network, lesson.steps) == (15, None, 25)
    with pytest.raises(Failure, match=r"mentor_steps.*40"):
        run(mentor_steps=40)


def test_the_loss_and_its_gradient_by_hand():
    draw = torch.Generator().manual_seed(0)
    own = torch.randn(4, 6, generator=draw, dtype=torch.float64, requires_grad=True)
    mentor = torch.randn(4, 6, generator=draw, dtype=torch.float64)
    labels, lam, T = torch.tensor([0, 3, 5, 2]), 0.3, 2.0
    value = _Mentored(soft_weight=lam, temperature=T).objective(own, mentor, labels)
    q, p = ((z.detach() / t).exp() for z, t in ((own, T), (mentor, T)))
    q, p = q / q.sum(-1, keepdim=True), p / p.sum(-1, keepdim=True)
    hard = own.detach().exp() / own.detach().exp().sum(-1, keepdim=True)
    soft = (p * (p / q).log()).sum(-1)
    truth = -hard[torch.arange(4), labels].log()
    torch.testing.assert_close(value.detach(), (1 - lam) * truth + lam * soft)
    (slope,) = torch.autograd.grad(value.sum(), own)
    one_hot = torch.eye(6, dtype=torch.float64)[labels]
    torch.testing.assert_close(slope, (1 - lam) * (hard - one_hot) + lam * (q - p) / T)


def test_a_mentor_that_is_the_student_teaches_nothing():
    own = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([0, 1, 2])
    value = _Mentored(soft_weight=1.0, temperature=2.0).objective(own, own.detach(), labels)
    (slope,) = torch.autograd.grad(value.sum(), own)
    assert value.abs().max() < 1e-12
    assert slope.abs().max() < 1e-12
    plain = _Mentored(soft_weight=0.0, temperature=2.0).objective(own, own.detach(), labels)
    torch.testing.assert_close(plain, nll(own, None, labels))
