"""The accept/reject loop by exhaustive count; acceptance beside sums; a student that is p."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from stillroom.core import Batch, Failure, Signals
from stillroom.data.text import Example, TextData
from stillroom.evaluation import drafting
from stillroom.evaluation.drafting import GAMMA, verified
from stillroom.evaluation.suite import View
from stillroom.models.text import CausalLM, build
from stillroom.rollouts.sampling import Sampling
from stillroom.teachers.local import Local

LENGTH = 2
START = 0
"""The token that the text stands on before the first is drafted."""
P = [[2, 1, 5], [4, 2, 2], [1, 6, 1]]
Q = [[4, 2, 2], [2, 2, 4], [2, 2, 4]]
"""Eighths: what may follow token 0, 1 and 2, by the teacher and by the draft."""
GRID = 24
"""Numbers that stand for a uniform one: all ratios and leftovers of P and Q fall between them."""


def after(table: list[list[int]], token: int) -> list[float]:
    return [n / 8 for n in table[token]]


def law_of_a_block(told: list[list[int]]) -> dict[tuple[int, ...], Fraction]:
    """Of the first two tokens: every draft, every uniform number; one that lacks is filled by p."""
    grid = [(i + 0.5) / GRID for i in range(GRID)]
    us = torch.tensor(list(itertools.product(grid, repeat=LENGTH + 1)), dtype=torch.float64)
    law: dict[tuple[int, ...], Fraction] = {}
    for draft in itertools.product(range(3), repeat=LENGTH):
        before = [START, *draft]
        target = torch.tensor([after(told, t) for t in before], dtype=torch.float64)
        own = torch.tensor([after(Q, t) for t in before[:-1]], dtype=torch.float64)
        n = len(us)
        count, token = verified(
            target.expand(n, -1, -1), own.expand(n, -1, -1), torch.tensor(draft).expand(n, -1), us
        )
        chance = Fraction(Q[START][draft[0]], 8) * Fraction(Q[draft[0]][draft[1]], 8)
        for k, t in zip(count.tolist(), token.tolist(), strict=True):
            made = (*draft[:k], t)[:LENGTH]
            if len(made) == LENGTH:
                law[made] = law.get(made, Fraction(0)) + chance / n
                continue
            for v in range(3):
                rest = Fraction(told[made[0]][v], 8)
                law[(*made, v)] = law.get((*made, v), Fraction(0)) + chance * rest / n
    return law


def test_what_the_loop_writes_has_the_law_of_the_target_exactly() -> None:
    law = law_of_a_block(P)
    for a, b in itertools.product(range(3), repeat=2):
        assert law.get((a, b), 0) == Fraction(P[START][a], 8) * Fraction(P[a][b], 8), (a, b)


def test_a_draft_by_the_target_itself_is_kept_whole() -> None:
    draft = torch.rand(50, 4, 7, generator=torch.Generator().manual_seed(0)).double()
    draft /= draft.sum(-1, keepdim=True)
    target = torch.cat([draft, draft[:, :1]], 1)
    u = torch.rand(50, 5, generator=torch.Generator().manual_seed(1)).double()
    count, token = verified(target, draft, torch.randint(7, (50, 4)), u)
    assert (count == 4).all()
    ends = (target[:, -1].cumsum(-1) > u[:, -1:]).int().argmax(-1)
    assert (token == ends).all()


def test_nothing_is_kept_of_a_draft_that_the_target_rules_out() -> None:
    target = torch.tensor([[[0.0, 1.0], [0.0, 1.0]]]).double()
    draft = torch.tensor([[[1.0, 0.0]]]).double()
    count, token = verified(target, draft, torch.tensor([[0]]), torch.zeros(1, 2).double())
    assert (count.tolist(), token.tolist()) == ([0], [1])


# ---- the evaluator: language models, and a teacher that is a table


class Table(torch.nn.Module):
    """Logits of the next token by the last one alone."""

    signals = frozenset({"logits"})

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = logits

    def forward(self, batch: Batch) -> Signals:
        return Signals(logits=self.logits[batch.ids.flatten()[batch.rows]])


V, EOS = 9, 1


def network(seed: int) -> CausalLM:
    torch.manual_seed(seed)
    sizes = {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 40, "initializer_range": 0.5}
    return CausalLM(build("gpt2", V, EOS, 0, **sizes).model.eval())


def view(student: Any, teacher: Any, **sampling: Any) -> View:
    draw = torch.Generator().manual_seed(3)
    examples = []
    for _ in range(24):
        ids = torch.randint(2, V, (9,), generator=draw).tolist()
        examples.append(Example("", "", tuple(ids[:3]), tuple(ids[3:])))
    how = Sampling(**{"max_new_tokens": 20, **sampling})
    return View(
        players={"student": student},
        data=TextData(examples, 0),
        teachers={"teacher": Local(teacher)},
        sampling=how,
    )


def test_a_student_that_is_its_teacher_has_everything_accepted() -> None:
    teacher = network(0)
    teacher.stop_ids = ()  # so that every block is whole
    with torch.no_grad():
        found = drafting.measure(view(teacher, teacher))
    assert found["acceptance"] == pytest.approx(1, abs=1e-6)
    assert found["greedy_acceptance"] == 1
    assert found["block_efficiency"] == GAMMA + 1


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_acceptance_is_the_sum_of_the_smaller_probabilities_on_the_data(temperature: float) -> None:
    student = network(1)
    table = torch.randn(V, V, generator=torch.Generator().manual_seed(5))
    given = view(student, Table(table), temperature=temperature)
    kept, same = [], []
    with torch.no_grad():
        for batch in given.batches():
            q = (student(batch).logits.double() / temperature).softmax(-1)
            p = (table.double()[batch.ids.flatten()[batch.rows]] / temperature).softmax(-1)
            kept += [sum(map(min, a, b)) for a, b in zip(p.tolist(), q.tolist(), strict=True)]
            same += (p.argmax(-1) == q.argmax(-1)).tolist()
        found = drafting.measure(given)
    assert found["acceptance"] == pytest.approx(sum(kept) / len(kept), abs=1e-6)
    assert found["greedy_acceptance"] == pytest.approx(sum(same) / len(same))
    assert 1 <= found["block_efficiency"] <= GAMMA + 1
    assert set(found) == set(drafting.COLUMNS)


def test_a_language_model_is_read_on_its_own_text() -> None:
    teacher, read = network(0), []
    teacher.stop_ids = ()
    given = view(network(1), teacher)
    plain = teacher.forward
    teacher.forward = lambda batch: read.append(batch) or plain(batch)  # type: ignore[method-assign]
    with torch.no_grad():
        found = drafting.measure(given)
    own = read[0]  # before the loop asks it
    assert own.labels.shape == (24 * 20,)  # the data's answers have 6 tokens
    with torch.no_grad():
        q, p = (network(i)(own).logits.double().softmax(-1) for i in (1, 0))
    assert found["acceptance"] == pytest.approx(float(torch.minimum(p, q).sum(-1).mean()), abs=1e-6)


def test_the_loop_writes_the_text_of_the_teacher() -> None:
    """Of many answers, how often each pair of tokens comes first, whatever was kept of drafts."""
    table = torch.randn(V, V, generator=torch.Generator().manual_seed(7))
    table[:, EOS] = -30
    n, block = 8_000, GAMMA + 1
    given = view(network(1), Table(table), max_new_tokens=2 * block)
    answers, calls = drafting.drafted(given, [[2, 3, 4]] * n, torch.arange(n))
    assert calls > n
    law = table.double().softmax(-1)
    wanted = law[4][:, None] * law
    pairs = torch.tensor([a[0] * V + a[1] for a in answers])
    found = (torch.bincount(pairs, minlength=V * V) / n).view(V, V)
    assert (found - wanted).abs().max() < 4.5 * math.sqrt(wanted.max() / n)


def test_an_answer_ends_at_a_stop_id_and_none_comes_after_it() -> None:
    teacher = network(0)
    answers, _ = drafting.drafted(view(network(1), teacher), [[2, 3, 4]] * 200, torch.arange(200))
    ended = [a for a in answers if EOS in a]
    assert ended
    assert all(a.index(EOS) == len(a) - 1 for a in ended)
    assert all(len(a) <= 20 for a in answers)
    assert all(len(a) > 20 - GAMMA - 1 for a in answers if EOS not in a)


@pytest.mark.parametrize("sampling", [{"temperature": 0.0}, {"max_new_tokens": GAMMA}])
def test_what_cannot_be_drafted_is_refused(sampling: dict[str, Any]) -> None:
    with pytest.raises(Failure, match="drafting samples"):
        drafting.ready(view(network(1), network(0), **sampling))


def test_a_teacher_without_scores_is_refused() -> None:
    silent = SimpleNamespace(teachers={}, sampling=Sampling())
    with pytest.raises(Failure, match="this teacher gives none"):
        drafting.ready(silent)  # type: ignore[arg-type]
