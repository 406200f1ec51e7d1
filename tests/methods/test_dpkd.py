"""Preferences of a teacher: tokens and whole answers against formulas worked out apart."""

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import worlds

from stillroom.core import Batch, Failure
from stillroom.data.text import collate
from stillroom.engine.run import Run
from stillroom.methods.dpkd import DPKD
from stillroom.methods.seqkd import SeqKD

V = 6
TEXT = worlds.World(kind="text", exact=True)
VARIANTS = ["dpo", "ipo", "dpo-positive", "reference-free"]


def rows(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Student, teacher, labels: both choose the same token in the last row alone."""
    draw = torch.Generator().manual_seed(seed)
    student, teacher = (2 * torch.randn(4, V, dtype=torch.float64, generator=draw) for _ in "st")
    for row, (own, theirs) in enumerate([(0, 1), (3, 2), (5, 0), (4, 4)]):
        student[row, own], teacher[row, theirs] = 5.0, 5.0
    return student.requires_grad_(), teacher, torch.tensor([1, 5, 2, 0])


def log_softmax(row: list[float]) -> list[float]:
    total = math.log(sum(map(math.exp, row)))
    return [z - total for z in row]


def loss_of(gap: float, lost: float, variant: str, beta: float, e: float) -> float:
    if variant == "ipo":
        return (gap - 1 / (2 * beta)) ** 2
    z = beta * (gap - 50 * lost if variant == "dpo-positive" else gap)
    return (1 - e) * math.log1p(math.exp(-z)) + e * math.log1p(math.exp(z))


@pytest.mark.parametrize("variant", VARIANTS)
def test_tokens_by_hand(variant):
    student, teacher, labels = rows()
    e = 0.0 if variant == "ipo" else 0.1
    told = {"beta": 0.3, "preference_weight": 0.4, "smoothing": e}
    found = DPKD(variant=variant, **told)._token(student, teacher, labels)
    for i in range(4):
        q, p = (log_softmax(x[i].tolist()) for x in (student, teacher))
        a, b = p.index(max(p)), q.index(max(q))
        gap = (q[a] - q[b]) - (0.0 if variant == "reference-free" else p[a] - p[b])
        lost = max(0.0, p[a] - q[a])
        wanted = 0.4 * loss_of(gap, lost, variant, 0.3, e) - 0.6 * q[labels[i]]
        assert found[i].item() == pytest.approx(wanted, rel=1e-12)


def test_the_slope_by_tokens_in_closed_form():
    """-w beta sigmoid(-beta D) (1_a - 1_b) + (1 - w) (q - 1_y); no token else learns from D."""
    student, teacher, labels = rows(1)
    method = DPKD(beta=0.5, preference_weight=0.7)
    (found,) = torch.autograd.grad(method._token(student, teacher, labels).sum(), student)
    q, p = student.detach().softmax(-1), teacher.softmax(-1)
    one = torch.eye(V, dtype=torch.float64)
    for i in range(4):
        a, b = int(p[i].argmax()), int(q[i].argmax())
        gap = (q[i, a] / q[i, b]).log() - (p[i, a] / p[i, b]).log()
        pull = -0.7 * 0.5 / (1 + (0.5 * gap).exp()) * (one[a] - one[b])
        torch.testing.assert_close(found[i], pull + 0.3 * (q[i] - one[labels[i]]))


def test_where_both_choose_alike_nothing_is_learned():
    student, teacher, labels = rows()
    value = DPKD(preference_weight=1.0)._token(student, teacher, labels)
    (slope,) = torch.autograd.grad(value.sum(), student)
    assert value[3].item() == pytest.approx(math.log(2))
    assert slope[3].abs().max() == 0
    assert (slope[:3].abs().max(-1).values > 0.01).all()
    told = DPKD()._told(student, teacher, None)
    assert told[:, 0].tolist() == [1.0, 1.0, 1.0, 0.0]
    same = DPKD(preference_weight=1.0)._token(student, student.detach(), labels)
    assert same.tolist() == pytest.approx([math.log(2)] * 4)
    assert torch.autograd.grad(same.sum(), student)[0].abs().max() == 0


@pytest.mark.parametrize("level", ["token", "sequence"])
def test_without_preference_and_corpus_it_is_plain_fine_tuning(level):
    method = DPKD(level=level, preference_weight=0.0)
    found, plain = (worlds.steps(worlds.job(m, TEXT)) for m in (method, SeqKD()))
    assert worlds.gap(found.final, plain.final) == 0
    assert worlds.gap(found.final, found.states[0]["networks"]) > 0


class Fake:
    """A run of networks that nobody trains."""

    def __init__(self, student: Any, teacher: Any) -> None:
        self.student, self.teacher, self.logged = student, teacher, {}

    def log(self, **values: torch.Tensor) -> None:
        self.logged |= values


def answers(stream: str) -> Batch:
    """The prompts of training with the answers that a stream has to its own."""
    halves: list[Any] = [TEXT.data(name).examples[:4] for name in ("train", stream)]
    pairs = [(one.prompt_ids, other.completion_ids) for one, other in zip(*halves, strict=True)]
    return collate(pairs, torch.arange(4), worlds.PAD)


def token_logps(network: Any, batch: Batch, i: int) -> list[torch.Tensor]:
    """Of the answer's tokens, one at a time, by the model itself."""
    ids = batch.ids[i][batch.real[i]]
    logp = network.model(ids[None]).logits[0].log_softmax(-1)
    start = int(batch.prompt[i])
    return [logp[t - 1, ids[t]] for t in range(start, len(ids))]


def told_apart(
    student: Any, teacher: Any, batch: Batch, samples: Batch, mean: bool, variant: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """CE and preference loss, each a mean, at beta 0.2."""
    said, losses = [], []
    for i in range(batch.size):
        ratios = []
        for half in (batch, samples):
            own, theirs = (token_logps(net, half, i) for net in (student, teacher))
            share = 1 / len(own) if mean else 1.0
            said += own if half is batch else []
            off = 0 if variant == "reference-free" else sum(theirs).detach()
            ratios.append(share * (sum(own) - off))
        z = 0.2 * (ratios[0] - ratios[1])
        losses.append(torch.log1p(torch.exp(-z)))
    return -torch.stack(said).mean(), torch.stack(losses).mean()


@pytest.mark.parametrize("variant", ["dpo", "reference-free"])
@pytest.mark.parametrize("mean", [False, True])
def test_sequences_by_the_models_own_words(mean, variant):
    student, teacher = TEXT.student(), TEXT.teacher(DPKD())
    batch, samples = answers("train"), answers("validation")
    told = {"beta": 0.2, "length_norm": mean, "variant": variant, "corpus_weight": 2.0}
    method = DPKD(level="sequence", preference_weight=0.3, **told)
    run: Any = Fake(student, teacher)
    (update,) = method.updates(run, batch.add(samples=samples, corpus=samples))
    text, pairs, corpus = update.terms
    assert [text.weight, pairs.weight, corpus.weight] == [0.7, 0.3, 2.0]
    assert [text.over, pairs.over, corpus.over] == ["mask", "examples", "corpus.mask"]
    found = text.value.mean(), pairs.value.mean()
    wanted = told_apart(student, teacher.network, batch, samples, mean, variant)
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=0)
    weights = list(student.parameters())
    slopes = [torch.autograd.grad(a + 3 * b, weights) for a, b in (found, wanted)]
    assert worlds.gap(*map(list, slopes)) < 1e-9
    assert max(float(s.abs().max()) for s in slopes[0]) > 1e-3


def test_a_student_that_is_its_teacher_still_learns_from_sequences():
    """D = 0 and the loss log 2, but its gradient is -beta / 2 grad log q(y_t) / q(y_s)."""
    student = TEXT.student()
    batch, samples = answers("train"), answers("validation")
    run: Any = Fake(student, student)
    method = DPKD(level="sequence", beta=0.2, preference_weight=1.0)
    (update,) = method.updates(run, batch.add(samples=samples))
    loss = update.terms[1].value
    assert loss.tolist() == pytest.approx([math.log(2)] * 4)
    weights = list(student.parameters())
    found = torch.autograd.grad(loss.sum(), weights)
    gaps = [
        sum(token_logps(student, batch, i)) - sum(token_logps(student, samples, i))
        for i in range(4)
    ]
    wanted = torch.autograd.grad(-0.1 * torch.stack(gaps).sum(), weights)
    assert worlds.gap(list(found), list(wanted)) < 1e-9
    assert max(float(s.abs().max()) for s in found) > 1e-3
    (same,) = method.updates(run, batch.add(samples=batch))
    assert same.terms[1].value.tolist() == pytest.approx([math.log(2)] * 4)


def test_masked_rows_and_earlier_turns_are_no_part_of_an_answer():
    batch = answers("train")
    first = batch.owner != torch.cat([torch.tensor([-1]), batch.owner[:-1]])
    later = batch.add(prompt=batch.prompt + 1)  # as if the first token had been an earlier turn
    masked = batch.add_rows(mask=torch.where(first, 0.0, 1.0))
    logp = torch.arange(2.0 * len(batch.rows)).view(-1, 2)
    method = DPKD(level="sequence")
    whole, *fewer = (method._answers(b, logp)[0] for b in (batch, later, masked))
    assert torch.equal(*fewer)
    assert not torch.equal(whole, fewer[0])


def test_plain_text_is_read_where_it_counts_alone():
    assert DPKD().streams() == {"train"}
    assert DPKD(corpus_weight=0.5).streams() == {"train", "corpus"}
    with_text = worlds.steps(worlds.job(DPKD(corpus_weight=0.5), TEXT, steps=1)).logs[0]
    assert "loss/student/corpus" in with_text
    plain = worlds.steps(worlds.job(DPKD(), TEXT, steps=1)).logs[0]
    assert plain["loss/student/loss"] == with_text["loss/student/loss"]
    assert 0 < plain["dpkd/active"] <= 1


def test_plain_text_by_hand():
    student, teacher, labels = rows()
    found = DPKD(preference_weight=0.4)._corpus(student, teacher, labels)
    for i in range(4):
        q, p = (log_softmax(x[i].tolist()) for x in (student, teacher))
        far = sum(math.exp(t) * (t - s) for s, t in zip(q, p, strict=True))
        assert found[i].item() == pytest.approx(0.4 * far - 0.6 * q[labels[i]], rel=1e-12)


def test_samples_are_drawn_where_they_count_alone(monkeypatch):
    drawn: list[int] = []
    real = Run.rollout
    monkeypatch.setattr(Run, "rollout", lambda *a, **k: (drawn.append(1), real(*a, **k))[1])
    for method in (DPKD(), DPKD(level="sequence", preference_weight=0.0)):
        worlds.steps(worlds.job(method, TEXT, steps=1))
    assert not drawn
    worlds.steps(worlds.job(DPKD(level="sequence"), TEXT, steps=2))
    assert len(drawn) == 2


def test_sequences_ask_for_a_teacher_that_is_there():
    stored: Any = SimpleNamespace(signals=frozenset({"logits"}), fresh=False)
    DPKD().check(stored)
    with pytest.raises(Failure, match="level: sequence asks the teacher"):
        DPKD(level="sequence").check(stored)


def test_ipo_has_no_labels_to_smooth():
    with pytest.raises(Failure, match="ipo has no labels to smooth"):
        DPKD(variant="ipo", smoothing=0.1)
