"""QCRD: what the vote parts, and its loss by the student's own words: value, gradient, limits."""

from typing import Any, ClassVar

import pytest
import torch
import worlds

from stillroom.core import Batch
from stillroom.data.text import collate
from stillroom.methods.seqkd import SeqKD
from stillroom.pipelines.qcrd import QCRD, SECOND, _Contrast, _Quality

TEXT = worlds.World(kind="text", exact=True)
FIRST = [[2, 3, 1], [2, 3, 4, 1], [2, 1], [4, 5, 1]]
OTHER = [[6, 1], [2, 3, 4, 1], [7, 8, 1], [4, 5, 1]]
"""The second positives: examples 1 and 3 have none."""
WRONG = [[8, 9, 1], [5, 1], [2, 1], [4, 1]]
"""The negatives: example 2 has none."""


class Given:
    """Work whose teacher says these answers to each question; gold is none of them."""

    said: ClassVar = {"a": "1 2 1x 1", "b": "1 2", "c": "3 3 3", "d": "2 2 4 5"}
    rows = tuple({"id": i, "prompt": i, "gold": "4"} for i in said)
    validation, steps, batch, seed = (), 10, 4, 0

    def __init__(self) -> None:
        self.told: list[Any] = []

    def ask(self, what: str, rows: Any, *, n: int, temperature: Any) -> Any:
        assert (what, n, temperature) == ("answer", 4, 0.7)
        return [{**row, "completion": c} for row in rows for c in self.said[row["id"]].split()]

    def verified(self, rows: Any) -> Any:
        return [
            {**r, "provenance": {"verified": {"right": False, "answer": r["completion"][0]}}}
            for r in rows
        ]

    def tell(self, what: str, **numbers: float) -> None:
        self.told.append(numbers)


def test_the_majority_is_learned_and_the_others_are_negatives():
    work: Any = Given()
    lesson = QCRD(n=4).run(work)
    learned = [(r["id"], r["completion"], r[SECOND], r["rejected"]) for r in lesson.rows]
    assert learned == [("a", "1", "1x", "2"), ("c", "3", "3", "3"), ("d", "2", "2", "4")]
    assert work.told == [{"positives": 8, "negatives": 3, "no_majority": 1, "both": 2}]
    assert lesson.steps == 10


class Fake:
    def __init__(self, student: Any, method: _Contrast) -> None:
        self.student, self.logged = student, {}
        setup: Any = type("Setup", (), {"student": student})
        self.players = {"student": student, **method.players(setup)}

    def log(self, **values: torch.Tensor) -> None:
        self.logged |= values


def batch_of(wrong: list[list[int]] = WRONG) -> Batch:
    ids = torch.arange(4)
    made = [collate([((2, 5), a) for a in side], ids, worlds.PAD) for side in (FIRST, OTHER, wrong)]
    return made[0].add(**{SECOND: made[1], "rejected": made[2]})


def contrast(**fields: Any) -> _Contrast:
    return _Contrast(**{"positive": 0.5, "negative": 0.3, "delta": 3.0, "quality": True, **fields})


def updates(method: _Contrast, batch: Batch, student: Any = None) -> tuple[Any, Fake]:
    run: Any = Fake(student or TEXT.student(), method)
    if method.quality:
        with torch.no_grad():
            torch.manual_seed(0)
            run.players["quality"].last.weight.normal_()
    made = method.prepare(run, batch)
    return list(method.updates(run, made)), run


def far(student: Any, answer: list[int]) -> Any:
    """Mean negative log-likelihood of an answer's tokens, by the model itself."""
    ids = torch.tensor([[2, 5, *answer]])
    logp = student.model(ids).logits[0].log_softmax(-1)
    return -sum(logp[t + 1, token] for t, token in enumerate(answer)) / len(answer)


def quality(student: Any, judge: Any, answer: list[int]) -> torch.Tensor:
    states = student.model.base_model(torch.tensor([[2, 5, *answer]])).last_hidden_state[0]
    read = states[1:-1].detach().amax(0)
    return torch.sigmoid(judge.last(torch.tanh(judge.first(read))))[0]


def total(terms: Any) -> Any:
    """The weighted means of a student's terms, all of which run over all examples."""
    assert {term.over for term in terms} == {"examples"}
    return sum(term.weight * term.value.mean() for term in terms)


def gradients(value: torch.Tensor, module: Any) -> list[torch.Tensor]:
    every = list(module.parameters())
    found = torch.autograd.grad(value, every, allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(every, found, strict=True)]


def of_student(told: Any) -> Any:
    terms = told[0].terms
    return terms if isinstance(terms, list) else [terms]


@pytest.mark.parametrize("judged", [True, False])
def test_value_and_gradient_by_the_models_own_words(judged):
    student, method = TEXT.student(), contrast(quality=judged, delta=2.6)
    told, run = updates(method, batch_of(), student)
    wanted: Any = 0.0
    for a, b, c in zip(FIRST, OTHER, WRONG, strict=True):
        near = min((a, b), key=lambda answer: far(student, answer).item())
        good, poor = 1.0, 1.0
        if judged:
            judge = run.players["quality"]
            good, poor = (
                quality(student, judge, near).detach(),
                1 - quality(student, judge, c).detach(),
            )
        wanted = wanted + 0.5 * good * far(student, near) / 4
        if a != c:
            wanted = wanted + 0.3 * poor * torch.relu(2.6 - far(student, c)) / 4
    value = total(of_student(told))
    torch.testing.assert_close(value, wanted, rtol=1e-9, atol=1e-12)
    for own, other in zip(gradients(value, student), gradients(wanted, student), strict=True):
        torch.testing.assert_close(own, other, rtol=1e-8, atol=1e-11)


@pytest.mark.parametrize("fields", [{"negative": 0.0, "quality": False}, {"quality": False}])
def test_without_negatives_it_is_fine_tuning_on_the_closest(fields):
    """With one positive that is SeqKD's cross-entropy, over answers."""
    student = TEXT.student()
    told, _ = updates(contrast(**fields, positive=1.0), batch_of(FIRST), student)
    nearest = [min(p, key=lambda a: far(student, a).item()) for p in zip(FIRST, OTHER, strict=True)]
    assert nearest != FIRST
    wanted = []
    for i, answer in enumerate(nearest):
        one = collate([((2, 5), answer)], torch.tensor([i]), worlds.PAD)
        run: Any = type("Run", (), {"student": student, "players": {"student": student}})
        (update,) = SeqKD().updates(run, one)
        term: Any = update.terms
        wanted.append(term.value.mean())
    value, wanted = total(of_student(told)), torch.stack(wanted).mean()
    for own, other in zip(gradients(value, student), gradients(wanted, student), strict=True):
        torch.testing.assert_close(own, other, rtol=1e-8, atol=1e-11)


def test_a_negative_that_is_far_enough_has_no_gradient_and_a_near_one_has():
    student = TEXT.student()
    least = min(far(student, c).item() for a, c in zip(FIRST, WRONG, strict=True) if a != c)
    for delta, moves in [(least - 1e-6, False), (least + 1e-6, True)]:
        told, _ = updates(contrast(delta=delta), batch_of(), student)
        found = gradients(of_student(told)[1].value.sum(), student)
        assert any(g.abs().max() > 0 for g in found) is moves


@pytest.mark.parametrize(("delta", "least", "most"), [(3.0, 3, 6), (1e9, 1e9, 1e12)])
def test_its_end_is_what_bounds_it(delta, least, most):
    """A negative is unlearned until just behind it, wherever that is: without one, on and on."""
    student = TEXT.student()
    optimiser = torch.optim.SGD(student.parameters(), lr=0.1)
    for _ in range(60):
        told, _ = updates(contrast(delta=delta, quality=False), batch_of(), student)
        optimiser.zero_grad()
        of_student(told)[1].value.sum().backward()
        optimiser.step()
    reached = [far(student, c).item() for a, c in zip(FIRST, WRONG, strict=True) if a != c]
    assert all(least < value < most for value in reached), reached


def test_the_discriminator_learns_in_its_own_update_alone():
    student = TEXT.student()
    told, run = updates(contrast(), batch_of(), student)
    judge = run.players["quality"]
    own, its = told
    assert own.players == ("student",)
    assert its.players == ("quality",)
    assert its.terms.over == "pairs"
    assert not any(g.any() for g in gradients(total(of_student(told)), judge))
    pairs = torch.tensor([1.0, 1.0, 0.0, 1.0], dtype=torch.double)
    value = (its.terms.value * pairs).sum() / 3
    found = torch.autograd.grad(
        value, list(student.parameters()), allow_unused=True, retain_graph=True
    )
    assert all(g is None for g in found)
    wanted: Any = 0.0
    for i in (0, 1, 3):
        near = min((FIRST[i], OTHER[i]), key=lambda answer: far(student, answer).item())
        good, bad = (quality(student, judge, answer) for answer in (near, WRONG[i]))
        wanted = wanted - (good.log() + (1 - bad).log()) / 3
    torch.testing.assert_close(value, wanted, rtol=1e-9, atol=1e-12)
    for one, other in zip(gradients(value, judge), gradients(wanted, judge), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-11)


def test_the_discriminator_begins_at_a_half_and_can_be_left_out():
    student = TEXT.student()
    judge = _Quality(student)
    assert judge(torch.randn(3, student.width, dtype=torch.double)).tolist() == [0, 0, 0]
    assert QCRD(negatives=False).method == contrast(positive=0.5, negative=0.0, quality=False)
    assert len(updates(contrast(quality=False), batch_of())[0]) == 1
