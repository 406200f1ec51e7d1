"""DistiLLM: the loss in plain numbers, and each step's choice against a list kept by hand."""

import math
from dataclasses import replace

import pytest
import torch
import worlds
from numerics import contract, note

from stillroom.core import Failure, Setup
from stillroom.engine.run import Run
from stillroom.engine.training import train
from stillroom.evaluation.suite import Suite
from stillroom.methods.distillm import DistiLLM
from stillroom.rollouts.sampling import uniform

TEXT = worlds.World(kind="text", exact=True)
LABELS = [0, 3, 5, 1]
N, V = 4, 6


def logits(seed):
    made = torch.Generator().manual_seed(seed)
    return 2 * torch.randn(N, V, dtype=torch.float64, generator=made)


def probabilities(row):
    total = sum(math.exp(z) for z in row)
    return [math.exp(z) / total for z in row]


def by_hand(student, teacher, label, form, a, weight):
    s, t = probabilities(student), probabilities(teacher)
    if form == "forward":
        skew = sum(x * math.log(x / (a * x + (1 - a) * y)) for x, y in zip(t, s, strict=True))
    else:
        skew = sum(y * math.log(y / ((1 - a) * x + a * y)) for x, y in zip(t, s, strict=True))
    return (1 - weight) * skew - weight * math.log(s[label])


@contract
@pytest.mark.parametrize("weight", [0.0, 0.3])
@pytest.mark.parametrize("a", [0.0, 0.1, 0.7])
@pytest.mark.parametrize("form", ["forward", "reverse"])
def test_value_and_gradient_by_hand(form, a, weight):
    student, teacher = logits(0).requires_grad_(), logits(1)
    method = DistiLLM(form=form, alpha=a, label_weight=weight)
    value = method.objective(student, teacher, torch.tensor(LABELS))
    (slope,) = torch.autograd.grad(value.sum(), student)

    def wanted(row, shifted=None, by=0.0):
        own = student[row].tolist()
        if shifted is not None:
            own[shifted] += by
        return by_hand(own, teacher[row].tolist(), LABELS[row], form, a, weight)

    off = [abs(value[i].item() - wanted(i)) for i in range(N)]
    note("distillm", "oracle", max(off), 1e-12)
    h = 1e-5
    steep = [
        abs(slope[i, v].item() - (wanted(i, v, h) - wanted(i, v, -h)) / (2 * h))
        for i in range(N)
        for v in range(V)
    ]
    note("distillm", "gradient", max(steep), 1e-8)


@pytest.mark.parametrize("form", ["forward", "reverse"])
def test_it_is_bounded_and_nothing_where_both_agree(form):
    method, labels = DistiLLM(form=form, alpha=0.1), torch.tensor(LABELS)
    apart = torch.full((N, V), -40.0, dtype=torch.float64)
    one, other = (apart.index_fill(1, torch.tensor(v), 0.0) for v in (0, 1))
    torch.testing.assert_close(
        method.objective(one, other, labels), torch.full((N,), math.log(10)).double()
    )
    student = logits(0).requires_grad_()
    value = method.objective(student, student.detach(), labels)
    (slope,) = torch.autograd.grad(value.sum(), student)
    assert value.abs().max() < 1e-14
    assert slope.abs().max() < 1e-14


class Told:
    """What a run did, read from the side: new sequences and those that were learned from."""

    def __init__(self, monkeypatch, losses):
        self.new, self.learned, self.losses = [], [], iter(losses)
        rollout, sequences = Run.rollout, DistiLLM.sequences

        def watched(run, batch, n=1, **told):
            made = rollout(run, batch, n, **told)
            self.new.append((run.step, texts(made), made.id.tolist()))
            return made

        def chosen(method, run, batch):
            made = sequences(method, run, batch)
            self.learned.append((texts(batch), texts(made), made))
            return made

        def measured(suite, players, split):
            return {"nll": next(self.losses) if split == "validation" else 0.0}

        monkeypatch.setattr(Run, "rollout", watched)
        monkeypatch.setattr(DistiLLM, "sequences", chosen)
        monkeypatch.setattr(Suite, "measure", measured)


def texts(batch):
    return [tuple(ids[real].tolist()) for ids, real in zip(batch.ids, batch.real, strict=True)]


def phis(method, losses):
    """phi of each step, from the loss of the validation before it."""
    phi, previous, told = method.start, losses[0], []
    for now in losses[1:]:
        told.append(phi)
        if now >= previous + method.tolerance:
            phi, previous = min(phi + method.rise, 1.0), now
        elif method.since == "validation":
            previous = now
    return told


class Alone:
    """What ``validated`` touches of a run of one process."""

    def __init__(self, method):
        batch = TEXT.data().batch([0])
        self.players = method.players(Setup(torch.nn.Identity(), {}, batch, 8, 16))

    def gather(self, share):
        return share


@pytest.mark.parametrize(
    ("since", "losses", "wanted"),
    [
        # against 2.0 until 2.5 raises it, then against 2.5, then 3.0
        ("rise", [2.0, 1.0, 2.25, 2.5, 2.75, 3.0, 1.0, 3.5], [0, 0, 0, 0.5, 0.5, 1, 1, 1]),
        # 1.0 to 2.25 is a rise of more than 0.5, 2.5 to 2.75 of less
        ("validation", [2.0, 1.0, 2.25, 2.5, 2.75, 3.25], [0, 0, 0.5, 0.5, 0.5, 1]),
    ],
)
def test_phi_by_hand(since, losses, wanted):
    method = DistiLLM(rise=0.5, tolerance=0.5, since=since)
    run, found = Alone(method), []
    for loss in losses:
        method.validated(run, {"nll": loss, "accuracy": 0.0})
        found.append(float(run.players["adaptive"].share))
    assert found == wanted


STEPS = 24
LOSSES = [2.0, 1.5, 1.52, 1.4, 1.6, 1.61, *(1.5 + 0.02 * i for i in range(STEPS))][: STEPS + 1]


@pytest.mark.parametrize(
    "method",
    [
        DistiLLM(start=0.9, rise=0.01, capacity=12),
        DistiLLM(start=0.5, capacity=8, tolerance=0.1, since="validation"),
        DistiLLM(start=0.7, rise=0.2, capacity=6, tolerance=0.0),
        DistiLLM(start=0.9, capacity=8, staleness=5),
        DistiLLM(start=0.0, rise=0.1),
    ],
    ids=["often", "since", "rises", "stale", "never"],
)
def test_each_step_learns_from_what_the_paper_says(method, monkeypatch):
    seen = Told(monkeypatch, LOSSES)
    run = worlds.steps(worlds.job(method, TEXT, steps=STEPS, seed=3, every=1))
    entries, new, kinds = [], iter(seen.new), []
    for step, phi in enumerate(phis(method, LOSSES)):
        log, (given, learned, _) = run.logs[step], seen.learned[step]
        assert log["distillm/phi"] == pytest.approx(phi, abs=1e-12)
        r = float(uniform(3, step, 1))
        held = [e for e in entries if method.staleness is None or step - e[0] <= method.staleness]
        low = phi * (1 - step / STEPS)
        if r < low or (r < phi and len(held) < method.capacity):
            kinds.append("generated")
            made, answers, ids = next(new)
            assert made == step
            assert learned == answers
            taken = [answer for _, answer in sorted(zip(ids, answers, strict=True))]
            entries = [*entries, *((step, a) for a in taken)][-method.capacity :]
        elif r < phi:
            kinds.append("replayed")
            assert set(learned) <= {answer for _, answer in held}
        else:
            kinds.append("data")
            assert learned == given
        for kind in ("generated", "replayed"):
            assert log[f"distillm/{kind}"] == (kinds[-1] == kind)
    assert next(new, None) is None
    if method.start:
        assert set(kinds) == {"generated", "replayed", "data"}
    else:
        assert set(kinds) == {"data"}


def test_only_answers_count_of_what_is_replayed(monkeypatch):
    seen = Told(monkeypatch, [1.0] * (STEPS + 1))
    method = DistiLLM(start=1.0, capacity=4)
    run = worlds.steps(worlds.job(method, TEXT, steps=STEPS, every=1))
    assert sum(log["distillm/replayed"] for log in run.logs) > 5
    for _, learned, batch in seen.learned:
        for i, text in enumerate(learned):
            start = int(batch.prompt[i])
            assert batch.labels[batch.owner == i].tolist() == list(text[start:])


def test_phi_and_the_buffer_outlive_a_kill(monkeypatch, tmp_path):
    method = DistiLLM(start=0.8, rise=0.05, tolerance=0.0, capacity=8)

    def measured(suite, players, split):
        return {"nll": float(players["adaptive"].readings) if split == "validation" else 0.0}

    monkeypatch.setattr(Suite, "measure", measured)
    whole, again = worlds.broken_off(
        lambda: worlds.job(method, TEXT, steps=12, every=1), 6, tmp_path
    )
    assert again.logs == whole.logs
    assert worlds.gap(again.states, whole.states) == 0
    assert whole.logs[-1]["distillm/phi"] == pytest.approx(0.85)  # raised at the kill
    assert sum(log["distillm/replayed"] for log in whole.logs[6:]) > 0  # of answers from before
    assert whole.states[6]["networks"]["replay"]["seen"] >= method.capacity


def test_what_steers_it_must_be_there(tmp_path):
    told = worlds.job(DistiLLM(), TEXT)
    with pytest.raises(Failure, match=r"DistiLLM is steered by nll .* eval\.metrics"):
        train(replace(told, suite=None), tmp_path)
    with pytest.raises(Failure, match=r"give eval\.every"):
        train(replace(told, eval=replace(told.eval, every=None)), tmp_path)
