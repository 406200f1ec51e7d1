"""Speculative knowledge distillation: what is written, and one step against plain formulas."""

import math
from typing import Any, cast

import pytest
import torch
import worlds
from numerics import contract, note

from stillroom.core import Failure
from stillroom.data.text import completions_of, prompts_of
from stillroom.engine.checks import check_needs
from stillroom.engine.settings import Optimizer
from stillroom.methods.gkd import GKD
from stillroom.methods.skd import SKD
from stillroom.models.heads import head_of
from stillroom.models.text import CausalLM
from stillroom.rollouts.guided import Guided, Interleaved
from stillroom.rollouts.sampling import Sampling, sample, uniform
from stillroom.teachers.local import Local
from stillroom.teachers.recorded import Recorded

EXACT = worlds.World(kind="text", exact=True)
LABELS = torch.tensor([0, 3, 5, 1])
N, V, LIMIT = 4, 11, 5
PLAIN: dict[str, Any] = {"sample_temperature": 1.0, "sample_top_p": 1.0}


def logits(seed):
    made = torch.Generator().manual_seed(seed)
    return 2 * torch.randn(N, V, dtype=torch.float64, generator=made)


def softmax(row):
    exps = [math.exp(z) for z in row]
    return [x / sum(exps) for x in exps]


def kl(a, b):
    return sum(x * math.log(x / y) for x, y in zip(a, b, strict=True))


def by_hand(student, teacher, beta):
    q, p = softmax(student), softmax(teacher)
    if beta in (0.0, 1.0):
        return kl(q, p) if beta else kl(p, q)
    m = [beta * x + (1 - beta) * y for x, y in zip(p, q, strict=True)]
    return beta * kl(p, m) + (1 - beta) * kl(q, m)


def networks():
    return EXACT.student(), cast(CausalLM, cast(Local, EXACT.teacher(SKD())).network)


def written(method, monkeypatch, steps=1, **changes):
    """The run, and the batches that it learned from."""
    seen, sequences = [], SKD.sequences

    def watched(self, run, batch):
        made = sequences(self, run, batch)
        seen.append((batch, made))
        return made

    monkeypatch.setattr(SKD, "sequences", watched)
    told = {"optimizer": Optimizer(name="sgd"), "clip": None, "lr": 0.5, "max_new_tokens": LIMIT}
    return worlds.steps(worlds.job(method, EXACT, steps=steps, **{**told, **changes})), seen


@contract
@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
def test_value_and_gradient_of_a_token_by_hand(beta):
    student, teacher = logits(0).requires_grad_(), logits(1)
    value = SKD(beta=beta).objective(student, teacher, LABELS)
    (slope,) = torch.autograd.grad(value.sum(), student)

    def wanted(row, shifted=0, by=0.0):
        own = student[row].tolist()
        own[shifted] += by
        return by_hand(own, teacher[row].tolist(), beta)

    note("skd", "oracle", max(abs(value[i].item() - wanted(i)) for i in range(N)), 1e-12)
    h, steep = 1e-5, []
    for i in range(N):
        for v in range(V):
            steep.append(slope[i, v].item() - (wanted(i, v, h) - wanted(i, v, -h)) / (2 * h))
    note("skd", "gradient", max(map(abs, steep)), 1e-8)


@contract
def test_a_step_is_that_of_the_mean_divergence_of_all_tokens_written_together(monkeypatch):
    method = SKD(top_k=3, teacher_temperature=0.7, teacher_top_p=0.9, sample_temperature=1.2)
    run, ((batch, made),) = written(method, monkeypatch)
    student, teacher = networks()
    guide = Interleaved(top_k=3, temperature=0.7, top_p=0.9)
    told = Sampling(temperature=1.2, top_p=0.5, max_new_tokens=LIMIT)
    seed = int(uniform(0, 0) * 2**53)
    prompts = prompts_of(batch)
    said = Guided(student, teacher, guide).sample(prompts, batch.id, seed=seed, sampling=told)
    assert completions_of(made) == said.tokens
    share = float(said.notes["replaced"].mean())
    assert 0 < share < 1
    assert run.logs[0]["skd/replaced"] == pytest.approx(share)
    values = []
    for prompt, answer in zip(prompts, said.tokens, strict=True):
        ids = torch.tensor([[*prompt, *answer]])
        place = torch.arange(ids.shape[1])[None]
        rows = slice(len(prompt) - 1, -1)  # what tells each token of the answer, its end included
        q, p = (
            m.model(ids, position_ids=place).logits[0, rows].softmax(-1) for m in (student, teacher)
        )
        values.append((p * (p / q).log()).sum(-1))
    loss = torch.cat(values).mean()
    loss.backward()
    assert len(torch.cat(values)) > len({len(v) for v in values}) > 1
    note("skd", "oracle", abs(run.logs[0]["loss/student/loss"] - loss.item()), 1e-10)
    wanted = {name: p - 0.5 * p.grad for name, p in student.named_parameters()}
    note("skd", "gradient", worlds.gap(run.final["student"], wanted), 1e-10)


@pytest.mark.parametrize("beta", [0.0, 0.5])
def test_with_the_whole_vocabulary_good_enough_it_is_distillation_on_the_students_own_text(
    beta, monkeypatch
):
    run, _ = written(SKD(beta=beta, top_k=V, **PLAIN), monkeypatch, steps=3)
    other, _ = written(GKD(beta=beta, on_policy=1.0), monkeypatch, steps=3)
    assert worlds.gap(run.final, other.final) == 0
    assert [log.pop("skd/replaced") for log in run.logs] == [0.0] * 3
    assert run.logs == other.logs


def test_with_one_token_good_enough_and_no_temperature_it_learns_from_greedy_teacher_text(
    monkeypatch,
):
    _, ((batch, made),) = written(SKD(top_k=1, teacher_temperature=0, **PLAIN), monkeypatch)
    _, teacher = networks()
    told = Sampling(temperature=0, max_new_tokens=LIMIT)
    assert completions_of(made) == sample(
        teacher, prompts_of(batch), batch.id, seed=0, sampling=told
    )


def test_fewer_tokens_are_replaced_as_the_student_learns(monkeypatch):
    _, sure = networks()
    head_of(sure.model).weight.data.mul_(5.0)
    run, _ = written(
        SKD(top_k=2, **PLAIN, teacher_temperature=1.0, teacher_top_p=1.0),
        monkeypatch,
        steps=60,
        teachers={"teacher": Local(sure)},
        **{"optimizer": Optimizer(), "lr": 0.03, "batch": 8, "max_new_tokens": 8},
    )
    shares = [log["skd/replaced"] for log in run.logs]
    assert sum(shares[-20:]) < 0.7 * sum(shares[:20])


@pytest.mark.parametrize("teacher", [Recorded(), EXACT.foreign(worlds.THEIRS)], ids=["text", "own"])
def test_a_teacher_that_is_no_network_here_is_refused_before_the_first_step(teacher):
    with pytest.raises(Failure, match=r"SKD needs .*weights \(its parameters\) from its teacher"):
        check_needs(SKD(), EXACT.student(), {"teacher": teacher})
    check_needs(SKD(), EXACT.student(), {"teacher": EXACT.teacher(SKD())})
