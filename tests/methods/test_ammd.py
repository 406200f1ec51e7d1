"""Moments of every answer that can be given: three symbols, three places, summed up in full."""

import itertools
import math
from typing import Any

import pytest
import torch
import worlds
from torch import Tensor

from stillroom.core import Batch, Failure, Head, Signals
from stillroom.data.text import collate
from stillroom.engine.run import Run
from stillroom.losses import _one_pass
from stillroom.losses.divergences import total_variation
from stillroom.losses.moments import moment_gap
from stillroom.methods.ammd import AMMD
from stillroom.nets.actions import ActionValues

V, T = 3, 3
ANSWERS = list(itertools.product(range(V), repeat=T))
PREFIXES = [p for t in range(T) for p in itertools.product(range(V), repeat=t)]
S = len(PREFIXES)
TEXT = worlds.World(kind="text", exact=True)


def noise(*shape: int, seed: int) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(shape, dtype=torch.float64, generator=draw)


class Tables:
    """A run whose student and teacher are tables of logits, one row for each beginning."""

    def __init__(self) -> None:
        self.table = noise(V, S, seed=0).requires_grad_()
        self.goal = noise(V, S, seed=1)
        self.logged: dict[str, Tensor] = {}
        self.players: dict[str, Any] = {}
        for i, name in enumerate(("critic_off", "critic_on")):
            critic = ActionValues(Head(noise(V, S, seed=2 + i)), 1.0)
            critic.states.data += 0.3 * noise(S, S, seed=4 + i)
            self.players[name] = critic

    def student(self, batch: Batch) -> Signals:
        width = batch.ids.shape[1]
        read = [
            PREFIXES.index(tuple(batch.ids[row // width, 1 : row % width + 1].tolist()))
            for row in batch.rows.tolist()
        ]
        states = torch.eye(S, dtype=torch.float64)[read]
        return Signals(hidden=states, head=Head(self.table))

    def ask(self, player: str, batch: Batch) -> Signals:
        assert player == "student"
        return self.student(batch)

    def teacher(self, batch: Batch) -> Signals:
        return Signals(hidden=self.student(batch).hidden, head=Head(self.goal))

    def log(self, **values: Tensor) -> None:
        self.logged |= values

    def values(self, name: str) -> Tensor:
        """[S, V] of a critic: each place by its formula."""
        critic = self.players[f"critic_{name}"]
        products = [
            [(critic.states[:, s] * critic.tokens[v]).sum() for v in range(V)] for s in range(S)
        ]
        rows = [[torch.tanh(x / math.sqrt(S)) for x in row] for row in products]
        return torch.stack([torch.stack(row) for row in rows])


def batch_of(answers: list[tuple[int, ...]]) -> Batch:
    """Each after a prompt of one token."""
    return collate([((0,), a) for a in answers], torch.arange(len(answers)), 0)


def chance(table: Tensor, answer: tuple[int, ...]) -> Tensor:
    """Of an answer, by a table of logits [V, S]."""
    p = table.softmax(0)
    steps = [p[answer[t], PREFIXES.index(answer[:t])] for t in range(T)]
    return torch.stack(steps).prod()


def moment(writer: Tensor, run: Tables, f: Tensor, g: float, *, own: bool) -> Tensor:
    """D in the paper's own form, each token of the writer's answers against the other's mean."""
    q, p = run.table.softmax(0), run.goal.softmax(0)
    total = torch.zeros((), dtype=torch.float64)
    for answer in ANSWERS:
        for t in range(T):
            s = PREFIXES.index(answer[:t])
            said = f[s, answer[t]]
            step = (p[:, s] * f[s]).sum() - said if own else said - (q[:, s] * f[s]).sum()
            total = total + chance(writer, answer) * g**t * step
    return total


@pytest.fixture
def run() -> Any:
    return Tables()


def student_terms(method: AMMD, run: Any, batch: Batch) -> dict[str, Tensor]:
    *_, update = method.updates(run, batch)
    assert update.players == ("student",)
    return {term.name: term.value for term in update.terms}


@pytest.mark.parametrize("g", [1.0, 0.7])
def test_off_policy_the_student_follows_the_exact_slope(run, g):
    batch = batch_of(ANSWERS)
    value = student_terms(AMMD(on_weight=0.0, discount=g), run, batch)["off"]
    weights = torch.stack([chance(run.goal, a) for a in ANSWERS])
    exact = moment(run.goal, run, run.values("off").detach(), g, own=False)
    torch.testing.assert_close((weights * value).sum(), exact)
    found, wanted = (torch.autograd.grad(x, run.table)[0] for x in ((weights * value).sum(), exact))
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-12)
    assert wanted.abs().max() > 0.01


@pytest.mark.parametrize("group", [1, 2])
@pytest.mark.parametrize("g", [1.0, 0.7])
def test_on_policy_the_student_follows_the_exact_slope_on_average(run, g, group):
    """Over all answers, or pairs of answers, by how likely they are to be sampled."""
    groups = list(itertools.product(ANSWERS, repeat=group))
    samples = batch_of([a for one in groups for a in one])
    batch = batch_of(ANSWERS[:1] * len(groups)).add(samples=samples)
    value = student_terms(AMMD(off_weight=0.0, discount=g, group=group), run, batch)["on"]
    each = [chance(run.table.detach(), a) for a in ANSWERS]
    told = dict(zip(ANSWERS, each, strict=True))
    weights = torch.stack([torch.stack([told[a] for a in one]).prod() for one in groups])
    mean = (weights * value.view(-1, group).mean(1)).sum()
    exact = moment(run.table, run, run.values("on").detach(), g, own=True)
    found, wanted = (torch.autograd.grad(x, run.table)[0] for x in (mean, exact))
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-12)
    assert wanted.abs().max() > 0.01
    logged = (weights * run.logged["ammd/on"].view(-1, group).mean(1)).sum()
    torch.testing.assert_close(logged, exact.detach())


def test_critics_climb_the_exact_moments_and_leave_the_student_alone(run):
    batch = batch_of(ANSWERS).add(samples=batch_of(ANSWERS))
    update = next(AMMD(discount=0.8, group=1).updates(run, batch))
    assert update.players == ("critic_off", "critic_on")
    off, on = (term.value for term in update.terms)
    chances = [torch.stack([chance(t, a) for a in ANSWERS]).detach() for t in (run.goal, run.table)]
    ((chances[0] * off).sum() + (chances[1] * on).sum()).backward()
    assert run.table.grad is None
    for name, writer, own in (("off", run.goal, False), ("on", run.table, True)):
        exact = moment(writer.detach(), run, run.values(name), 0.8, own=own)
        weights = list(run.players[f"critic_{name}"].parameters())
        for weight, wanted in zip(weights, torch.autograd.grad(exact, weights), strict=True):
            torch.testing.assert_close(weight.grad, -wanted, rtol=1e-10, atol=1e-12)
            assert wanted.abs().max() > 1e-3


def test_the_student_sends_no_slope_to_the_critics(run):
    batch = batch_of(ANSWERS).add(samples=batch_of(ANSWERS))
    sum(v.sum() for v in student_terms(AMMD(group=1), run, batch).values()).backward()
    assert all(p.grad is None for c in run.players.values() for p in c.parameters())
    assert run.table.grad.abs().max() > 0.01


def test_of_equals_every_moment_is_zero_and_so_is_its_slope_by_the_critic(run):
    run.goal = run.table.detach().clone()
    batch = batch_of(ANSWERS).add(samples=batch_of(ANSWERS))
    update = next(AMMD(group=1).updates(run, batch))
    for term in update.terms:
        assert term.value.abs().max() < 1e-15
    sum(term.value.sum() for term in update.terms).backward()
    for critic in run.players.values():
        assert max(p.grad.abs().max() for p in critic.parameters()) < 1e-14
    found = student_terms(AMMD(group=1), run, batch)["on"]
    direct = moment(run.table.detach(), run, run.values("on").detach(), 1.0, own=True)
    assert abs(float(direct)) < 1e-15
    assert found.abs().max() < 1e-14  # no return is left, the log-probabilities count nothing


def test_flat_values_teach_nothing(run):
    for critic in run.players.values():
        critic.tokens.data[:] = critic.tokens.data[:1]
    batch = batch_of(ANSWERS).add(samples=batch_of(ANSWERS))
    terms = student_terms(AMMD(group=1), run, batch)
    for value in terms.values():
        assert value.abs().max() < 1e-14
        (slope,) = torch.autograd.grad(value.sum(), run.table, retain_graph=True)
        assert slope.abs().max() < 1e-14


def test_a_moment_is_at_most_twice_the_total_variation():
    student, teacher = noise(50, 7, seed=0), noise(50, 7, seed=1)
    best = (teacher.softmax(-1) - student.softmax(-1)).sign()
    far = 2 * total_variation(student, teacher)
    torch.testing.assert_close(moment_gap(student, teacher, best), far)
    others = torch.tanh(5 * noise(50, 7, seed=2))
    assert (moment_gap(student, teacher, others).abs() < far).all()


def test_a_critic_is_bounded_and_begins_with_the_students_head(run):
    def said(critic: ActionValues, states: Tensor, ids: Tensor | None = None) -> Tensor:
        found = critic(Signals(hidden=states, head=Head(run.table, ids=ids)))
        return found.head.logits(found.hidden)

    wild = ActionValues(Head(1e6 * noise(V, S, seed=9)), 1.0)
    assert said(wild, 1e6 * noise(20, S, seed=8)).abs().max() <= 1
    fresh, states = ActionValues(Head(run.table), 1.0), noise(5, S, seed=7)
    wanted = torch.tanh(states @ run.table.detach().T / math.sqrt(S))
    torch.testing.assert_close(said(fresh, states), wanted)
    said(fresh, states.requires_grad_()).sum().backward()
    assert states.grad is None
    assert said(ActionValues(Head(run.table), 0.0), states).abs().max() == 0
    some = torch.tensor([0, 2])
    torch.testing.assert_close(said(fresh, states, some), wanted[:, some])


def test_blocks_of_rows_change_nothing(run, monkeypatch):
    """A large vocabulary is one whose slices are of few rows."""
    batch = batch_of(ANSWERS).add(samples=batch_of(ANSWERS))

    def told() -> list[Tensor]:
        terms = student_terms(AMMD(group=1), run, batch)
        slope = torch.autograd.grad(sum(v.sum() for v in terms.values()), run.table)
        return [*(v.detach() for v in terms.values()), *slope]

    whole = told()
    for name, size in {"MOST_ROWS": 7, "TILE": 2, "SLICE": 6}.items():
        monkeypatch.setattr(_one_pass, name, size)
    assert worlds.gap(whole, told()) < 1e-12


def test_a_row_that_does_not_count_is_no_reward_but_takes_its_time(run):
    batch = batch_of(ANSWERS)
    mask = torch.tensor([1.0, 0.0, 1.0]).repeat(len(ANSWERS))
    method = AMMD(on_weight=0.0, discount=0.5)
    found = student_terms(method, run, batch.add_rows(mask=mask))["off"]
    f, q, p = run.values("off"), run.table.softmax(0), run.goal.softmax(0)
    for i, answer in enumerate(ANSWERS):
        places = [PREFIXES.index(answer[:t]) for t in range(T)]
        r = [float(((p - q)[:, s] * f[s]).sum().detach()) for s in places]
        assert found[i].item() == pytest.approx(r[0] + 0.25 * r[2], rel=1e-9)


@pytest.mark.parametrize("critic_steps", [1, 3])
def test_critics_learn_first_and_then_the_student(critic_steps):
    method = AMMD(critic_steps=critic_steps, on_weight=2.0, label_weight=0.5)
    run: Any = Tables()
    batch = batch_of(ANSWERS[:4]).add(samples=batch_of(ANSWERS[:8]))
    updates = list(method.updates(run, batch))
    assert [u.players[0] for u in updates] == ["critic_off"] * critic_steps + ["student"]
    assert {t.name: t.weight for t in updates[-1].terms} == {"off": 1, "on": 2, "text": 0.5}
    text = updates[-1].terms[-1].value
    logp = run.table.log_softmax(0)
    wanted = [-logp[a[t], PREFIXES.index(a[:t])] for a in ANSWERS[:4] for t in range(T)]
    torch.testing.assert_close(text, torch.stack(wanted))


@pytest.mark.parametrize("weights", [(1.0, 0.0), (0.0, 1.0)])
def test_a_side_that_does_not_count_is_not_there(weights, monkeypatch):
    drawn: list[dict[str, Any]] = []
    real = Run.rollout

    def rollout(run: Run, batch: Batch, n: int = 1, **told: Any) -> Batch:
        drawn.append({"n": n, **told})
        return real(run, batch, n, **told)

    monkeypatch.setattr(Run, "rollout", rollout)
    off, on = weights
    found = worlds.steps(worlds.job(AMMD(off_weight=off, on_weight=on), TEXT, steps=1))
    side = "off" if off else "on"
    assert set(found.final) == {"student", f"critic_{side}"}
    assert f"ammd/{side}" in found.logs[0]
    plain = {"n": 2, "temperature": 1.0, "top_p": 1.0, "top_k": None}
    assert drawn == ([plain] if on else [])


def test_the_longer_a_critic_learns_the_more_it_finds():
    """By a student that stands still."""
    told = {"steps": 6, "lr": {"student": 0.0, "critic_off": 0.05, "critic_on": 0.05}}
    logs = worlds.steps(worlds.job(AMMD(critic_steps=2), TEXT, batch=8, **told)).logs
    assert logs[-1]["ammd/off"] > logs[0]["ammd/off"]
    assert logs[-1]["ammd/off"] > 0.1


def test_with_nothing_to_match_it_is_refused():
    with pytest.raises(Failure, match="both 0"):
        AMMD(off_weight=0.0, on_weight=0.0)


def test_returns_are_what_comes_later_less_the_mean_of_the_others(run):
    """Answers of three lengths to one prompt: those that ended have nothing to come."""
    group = [(0, 1, 2), (2, 1), (1,)]
    method, batch = AMMD(off_weight=0.0, discount=0.5, group=3), batch_of(group)
    f, q, p = run.values("on"), run.table.softmax(0), run.goal.softmax(0)
    later = []
    for answer in group:
        places = [PREFIXES.index(answer[:t]) for t in range(len(answer))]
        r = [(0.5**t * ((p - q)[:, s] * f[s]).sum()).item() for t, s in enumerate(places)]
        later.append([sum(r[t + 1 :]) for t in range(T)])
    side = method._side("on", run, batch_of(group[:1]).add(samples=batch))
    with torch.no_grad():
        found = method._returns(side, side.gaps()).tolist()
    wanted = []
    for i, answer in enumerate(group):
        for t in range(len(answer)):
            others = [later[j][t] for j in range(3) if j != i]
            wanted.append(later[i][t] - sum(others) / 2)
    assert found == pytest.approx(wanted, rel=1e-9, abs=1e-12)
