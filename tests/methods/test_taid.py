"""A target on its way from student to teacher: by hand, and its schedule in plain numbers."""

import math

import pytest
import torch
import worlds
from worlds import gap

from stillroom.core import Batch, Failure, Head, Signals
from stillroom.losses.divergences import forward_kl
from stillroom.methods.taid import TAID

N, V = 5, 6
EXACT = worlds.World(kind="text", exact=True)


def draw(seed):
    made = torch.Generator().manual_seed(seed)
    return 2 * torch.randn(N, V, generator=made, dtype=torch.float64)


def softmax(row):
    weights = [math.exp(float(z)) for z in row]
    return [w / sum(weights) for w in weights]


class Scores:
    """A run whose logits are given, with the identity as head; of one process or several."""

    def __init__(self, student, teacher, method, *, step=0, steps=10, others=()):
        self.head = Head(torch.eye(V, dtype=torch.float64))
        self.says, self.told = student, teacher
        self.players, self.logged = method.players(None), {}
        self.step, self.steps, self.others = step, steps, others

    def student(self, batch):
        return Signals(hidden=self.says[batch.rows], head=self.head)

    def teacher(self, batch):
        return Signals(hidden=self.told[batch.rows], head=self.head)

    def gather(self, value):
        return torch.cat([value, *self.others])

    def log(self, **values):
        self.logged |= values


def batch_of(rows, mask):
    labels = torch.zeros(len(rows), dtype=torch.long)
    told = torch.tensor(mask, dtype=torch.float64)
    return Batch.text(rows=torch.tensor(rows), labels=labels, mask=told)


def first_update(method, run, rows=range(N)):
    (update,) = method.updates(run, batch_of(list(rows), [1.0] * len(rows)))
    return update.terms


@pytest.mark.parametrize("t", [0.0, 0.3, 1.0])
def test_the_target_blends_logits_and_does_not_learn(t):
    z, theirs = draw(0).requires_grad_(), draw(1)
    method = TAID(t_start=t)
    term = first_update(method, Scores(z, theirs, method))
    (slope,) = torch.autograd.grad(term.value.sum(), z)
    for row, (own, other) in enumerate(zip(z.detach(), theirs, strict=True)):
        q, goal = softmax(own), softmax((1 - t) * own + t * other)
        value = sum(a * math.log(a / b) for a, b in zip(goal, q, strict=True))
        assert term.value[row].item() == pytest.approx(value, abs=1e-12)
        on_paper = [b - a for a, b in zip(goal, q, strict=True)]
        assert slope[row].tolist() == pytest.approx(on_paper, abs=1e-12)
    if t == 0:
        assert slope.abs().max() == 0
    if t == 1:
        assert gap(term.value.detach(), forward_kl(z.detach(), theirs)) < 1e-14


def test_j_is_the_mean_over_what_counts_of_all_micro_batches_and_processes():
    method = TAID()
    parts = [batch_of([0, 1], [1.0, 0.0]), batch_of([2, 3, 4], [0.5, 1.0, 1.0])]
    told, numbers = [2.5, 1.5], [1.0, 0.5, 1.0, 1.0]  # sum and count of another process
    run = Scores(draw(0), draw(1), method, others=[torch.tensor([told], dtype=torch.float64)])
    values = []
    for part in parts:
        (update,) = method.updates(run, part)
        values += update.terms.value[part.mask > 0].tolist()
    method.after(run, parts[0])
    sums = sum(v * n for v, n in zip(values, numbers, strict=True)) + told[0]
    assert run.players["schedule"].before.item() == pytest.approx(sums / (3.5 + told[1]), rel=1e-12)
    assert run.players["schedule"].seen.tolist() == [0, 0]  # once a step, the next begins anew


def told_by(method, **changes):
    """Losses, t and m of each step of a run, and t by the formula from these losses."""
    logs = worlds.steps(worlds.job(method, EXACT, **changes)).logs
    losses, found = ([log[key] for log in logs] for key in ("loss/student/loss", "taid/t"))
    t, m, before, wanted, momenta = method.t_start, 0.0, None, [], []
    for n, loss in enumerate(losses, start=1):
        wanted.append(t)
        if before:
            m = method.beta * m + (1 - method.beta) * (before - loss) / before
        momenta.append(m)
        line = method.t_start + (method.t_end - method.t_start) * n / len(losses)
        t = min(method.t_end, max(line, t + method.alpha / (1 + math.exp(-m)) * (1 - t)))
        before = loss
    assert [log["taid/momentum"] for log in logs] == pytest.approx(momenta, rel=1e-9, abs=1e-12)
    assert found == pytest.approx(wanted, rel=1e-9)
    lines = [
        method.t_start + (method.t_end - method.t_start) * n / len(found) for n in range(len(found))
    ]
    return found, lines, momenta


@pytest.mark.parametrize("values", [{}, {"alpha": 0.4, "beta": 0.2}, {"alpha": 1.0, "t_end": 0.8}])
def test_t_rises_as_the_formula_says_and_never_falls_below_the_line(values):
    method = TAID(**{"t_start": 0.2, "beta": 0.6, **values})
    found, lines, momenta = told_by(method, steps=10, batch=3)
    assert found == sorted(found)
    assert max(found) <= method.t_end
    assert all(t >= line - 1e-15 for t, line in zip(found, lines, strict=True))
    if values:
        assert len({m > 0 for m in momenta}) == 2  # the loss fell, and rose
        assert any(t > line + 0.05 for t, line in zip(found, lines, strict=True))
    if "t_end" in values:
        assert found[-1] == 0.8


def test_without_adaptation_t_is_the_line():
    found, lines, _ = told_by(TAID(alpha=0.0, t_start=0.1, t_end=0.9), steps=8)
    assert found == pytest.approx(lines, abs=1e-15)
    assert found[:2] == pytest.approx([0.1, 0.2], abs=1e-15)


def test_a_falling_loss_makes_it_faster():
    """After the same first step, one run's J halves and another's doubles."""
    ends = []
    for factor in (0.5, 2.0):
        method = TAID(alpha=0.5, beta=0.0)
        run = Scores(draw(0), draw(1), method, steps=10**6)
        schedule = run.players["schedule"]
        for run.step, loss in enumerate((1.0, factor)):
            schedule.seen.copy_(torch.tensor([loss, 1.0]))
            method.after(run, batch_of([0], [1.0]))
        ends.append(schedule.t.item())
    assert ends[0] > ends[1] + 0.05


def test_from_the_student_itself_nothing_is_learned_first_and_m_stays_finite():
    trace = worlds.steps(worlds.job(TAID(t_start=0.0), EXACT, steps=3, every=1, keep=9))
    assert trace.logs[0]["loss/student/loss"] == 0
    assert trace.logs[0]["grad_norm/student"] == 0
    assert trace.logs[1]["taid/momentum"] == 0
    assert abs(trace.logs[2]["taid/momentum"]) < 1
    assert trace.logs[2]["loss/student/loss"] > 0


def test_t_comes_back_after_a_kill(tmp_path):
    method = TAID(alpha=0.5, beta=0.5)
    whole, again = worlds.broken_off(lambda: worlds.job(method, EXACT, steps=6), 3, tmp_path)
    assert [log["taid/t"] for log in again.logs] == [log["taid/t"] for log in whole.logs]
    schedule = {k: v for k, v in whole.states[3]["networks"]["schedule"].items() if k != "seen"}
    assert min(abs(v.item()) for v in schedule.values()) > 0
    assert gap(whole.states, again.states) == 0


def test_an_end_before_the_start_is_refused():
    with pytest.raises(Failure, match="raise t_end or lower t_start"):
        worlds.steps(worlds.job(TAID(t_start=0.5, t_end=0.4), EXACT))
