"""The teacher's answer over an old one of the student: stages, samples, and both hinges by hand."""

import math
from typing import Any

import pytest
import torch
import worlds

from stillroom.core import Batch
from stillroom.data.likeness import rouge_l
from stillroom.data.text import collate, completions_of
from stillroom.engine.run import Run
from stillroom.methods.plad import PLaD
from stillroom.methods.seqkd import SeqKD

TEXT = worlds.World(kind="text", exact=True)
# Teacher and student: alike in all, in 2 of 4 and 3, in none, in all but the end.
SAID = [([2, 3, 1], [2, 3, 1]), ([2, 3, 4, 1], [3, 5, 1]), ([2, 1], [7, 8]), ([4, 5, 1], [4, 5])]
GAINS = torch.tensor([0.0, 1 - 2 * 2 / 7, 1.0, 1 - 2 * 2 / 5]).tolist()


class Fake:
    """A run in the second stage, whose student wrote what is told."""

    step, steps = 3, 4

    def __init__(self, student: Any, samples: Batch) -> None:
        self.student, self.samples, self.logged = student, samples, {}
        self.players = {"student": student, "writer": student.snapshot()}

    def rollout(self, batch: Batch, *, player: str, temperature: float) -> Batch:
        assert player == "writer"
        return self.samples

    def log(self, **values: torch.Tensor) -> None:
        self.logged |= values


def halves() -> list[Batch]:
    ids = torch.arange(4)
    return [collate([((2, 5), a[k]) for a in SAID], ids, worlds.PAD) for k in (0, 1)]


def update(method: PLaD, student: Any, given: list[Batch] | None = None) -> tuple[Any, Any, Fake]:
    batch, samples = given or halves()
    run: Any = Fake(student, samples)
    batch = method.prepare(run, batch)
    (told,) = method.updates(run, batch)
    return told, batch, run


def logps(student: Any, batch: Batch, i: int) -> list[torch.Tensor]:
    """Of the answer's tokens, one at a time, by the model itself."""
    ids = batch.ids[i][batch.real[i]]
    logp = student.model(ids[None]).logits[0].log_softmax(-1)
    return [logp[t - 1, ids[t]] for t in range(int(batch.prompt[i]), len(ids))]


@pytest.mark.parametrize("version", ["rank", "margin"])
@pytest.mark.parametrize("mean", [True, False])
def test_both_hinges_by_the_models_own_words(version, mean):
    student, (batch, samples) = TEXT.student(), halves()
    method = PLaD(version=version, mean=mean, beta=0.9, anchor=0.4)
    told, made, run = update(method, student)
    pair, text = told.terms
    assert (pair.over, pair.name, text.over, text.weight) == ("pairs", version, "mask", 0.4)
    assert made.pairs.tolist() == [0, 1, 1, 1]
    assert run.logged["plad/dropped"].tolist() == [1, 0, 0, 0]
    assert run.logged["plad/tokens"].tolist() == [3, 3, 2, 2]
    wanted, chosen = [], []
    for i in range(4):
        own, other = logps(student, batch, i), logps(student, samples, i)
        chosen += own
        share = [1 / len(side) if mean else 1.0 for side in (own, other)]
        gap = share[0] * sum(own) - share[1] * sum(other)
        beta = 0.9 * (GAINS[i] if version == "margin" else 1.0)
        wanted.append(torch.relu(beta - gap))
    value, by_hand = pair.value[1:].mean(), torch.stack(wanted[1:]).mean()
    torch.testing.assert_close(pair.value[1:], torch.stack(wanted[1:]), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(text.value.mean(), -torch.stack(chosen).mean())
    weights = list(student.parameters())
    slopes = [list(torch.autograd.grad(v, weights)) for v in (value, by_hand)]
    assert worlds.gap(*slopes) < 1e-9
    assert max(float(s.abs().max()) for s in slopes[0]) > 1e-3
    active = [float(i > 0 and w > 0) for i, w in enumerate(wanted)]
    assert run.logged["plad/active"].tolist() == active


def test_without_a_margin_a_pair_in_order_has_no_loss_and_one_out_of_order_its_gap():
    student, given = TEXT.student(), halves()
    method = PLaD(beta=0.0, anchor=0.0)
    one = update(method, student, given)[0].terms
    other = update(method, student, given[::-1])[0].terms
    assert len(one) == len(other) == 1
    for a, b in zip(one[0].value[1:], other[0].value[1:], strict=True):
        assert min(a.item(), b.item()) == 0
        assert max(a.item(), b.item()) > 1e-3


def test_the_other_way_round_the_pull_is_the_opposite():
    student, given = TEXT.student(), halves()
    weights = list(student.parameters())
    method = PLaD(beta=50.0, anchor=0.0)  # all active
    sides = [update(method, student, g)[0].terms[0].value.sum() for g in (given, given[::-1])]
    one, other = (list(torch.autograd.grad(v, weights)) for v in sides)
    assert worlds.gap(one, [-s for s in other]) < 1e-12
    assert max(float(s.abs().max()) for s in one) > 1e-3


def test_the_warm_up_is_seqkd():
    plad, plain = (worlds.steps(worlds.job(m, TEXT, steps=3)) for m in (PLaD(warmup=1.0), SeqKD()))
    assert worlds.gap(plad.final["student"], plain.final["student"]) == 0
    assert worlds.gap(plain.final, plain.states[0]["networks"]) > 0


def test_the_anchor_alone_is_seqkd():
    """At a margin of 0 and a student that its own samples are less likely to than the teacher's."""
    batch = halves()[0]
    student = TEXT.student()
    told, _, _ = update(PLaD(beta=0.0), student, [batch, batch])
    assert told.terms[0].value.abs().max() == 0
    plain = SeqKD().loss(student(batch), None, batch, {}).value
    assert torch.equal(told.terms[1].value, plain)


def test_a_step_of_equal_answers_alone_teaches_nothing_but_the_anchor():
    """No pair is left, and the mean over none is no nan."""

    def same(self: Run, batch: Batch, n: int = 1, **_: Any) -> Batch:
        plain = Batch({k: v for k, v in batch.items() if not isinstance(v, Batch)})
        plain.row_fields = batch.row_fields
        return plain

    runs = []
    for method in (PLaD(warmup=0.0, anchor=1.0, beta=9.0), SeqKD()):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Run, "rollout", same)
            runs.append(worlds.steps(worlds.job(method, TEXT, steps=2)))
    assert worlds.gap(runs[0].final["student"], runs[1].final["student"]) == 0
    assert runs[0].logs[0]["plad/dropped"] == 1
    assert all(math.isfinite(v) for log in runs[0].logs for v in log.values())


def spied(monkeypatch: pytest.MonkeyPatch, method: PLaD, **told: Any) -> tuple[Any, list[Any]]:
    """A run, and what was sampled in each step by sample id."""
    seen: list[Any] = []
    real = Run.rollout

    def rollout(self: Run, batch: Batch, n: int = 1, **sampling: Any) -> Batch:
        made = real(self, batch, n, **sampling)
        seen.append(dict(zip(made.id.tolist(), map(tuple, completions_of(made)), strict=True)))
        return made

    monkeypatch.setattr(Run, "rollout", rollout)
    given = {"steps": 8, "batch": 8, "lr": 0.05, "keep": 9, "every": 1, **told}
    return worlds.steps(worlds.job(method, TEXT, **given)), seen


def test_samples_are_of_the_student_after_the_warm_up_and_the_same_at_every_visit(monkeypatch):
    run, seen = spied(monkeypatch, PLaD(warmup=0.25))
    assert len(seen) == 6
    assert all(one == seen[0] for one in seen)
    assert len(set(seen[0].values())) > 2
    states = [run.states[i]["networks"] for i in range(9)]
    assert worlds.gap(states[1]["writer"], states[0]["student"]) == 0
    assert all(worlds.gap(s["writer"], states[2]["student"]) == 0 for s in states[3:])
    assert worlds.gap(states[8]["student"], states[2]["student"]) > 0
    assert "loss/student/rank" not in run.logs[1]
    assert "loss/student/rank" in run.logs[2]


def test_the_second_stage_begins_with_a_fresh_optimiser_once(monkeypatch):
    seen: list[Any] = []
    monkeypatch.setattr(Run, "reset", lambda run, player: seen.append((run.step, player)))
    spied(monkeypatch, PLaD(warmup=0.25, refresh=2), every=None)
    assert seen == [(2, "student")]


def test_refreshing_renews_the_writer(monkeypatch):
    run, seen = spied(monkeypatch, PLaD(warmup=0.25, refresh=3))
    states = [run.states[i]["networks"] for i in range(9)]
    for after, at in ((3, 2), (5, 2), (6, 5), (8, 5)):
        assert worlds.gap(states[after]["writer"], states[at]["student"]) == 0
    assert seen[0] == seen[2] != seen[3] == seen[5]


def test_taken_up_between_the_stages_it_is_the_unbroken_run(tmp_path):
    def make():
        return worlds.job(PLaD(warmup=0.5, refresh=2), TEXT, steps=6)

    for at in (2, 3, 4):
        whole, again = worlds.broken_off(make, at, tmp_path / str(at))
        assert worlds.gap(whole.states, again.states) == 0


def test_a_weight_is_of_the_pair_its_anchor_and_the_warm_up():
    weights, student = torch.tensor([1.0, 0.0, 0.5, 2.0]), TEXT.student()
    batch, samples = halves()
    plain, told = (
        update(PLaD(beta=9.0), student, [b, samples])[0].terms
        for b in (batch, batch.add(weight=weights))
    )
    assert torch.equal(told[0].value, plain[0].value * weights)
    assert torch.equal(told[1].value, plain[1].value * weights[batch.owner])
    run: Any = Fake(student, samples)
    run.step = 0
    warm = [next(iter(PLaD().updates(run, b))).terms for b in (batch, batch.add(weight=weights))]
    assert torch.equal(warm[1].value, warm[0].value * weights[batch.owner])


def test_likeness_by_trying_all_common_subsequences():
    def longest(one, other):
        if not one or not other:
            return 0
        if one[0] == other[0]:
            return 1 + longest(one[1:], other[1:])
        return max(longest(one[1:], other), longest(one, other[1:]))

    draw = torch.Generator().manual_seed(0)
    for _ in range(30):
        sizes = torch.randint(0, 7, (2,), generator=draw).tolist()
        one, other = (torch.randint(0, 3, (n,), generator=draw).tolist() for n in sizes)
        total = len(one) + len(other)
        wanted = 2 * longest(one, other) / total if total else 1.0
        assert rouge_l(one, other) == pytest.approx(wanted)
