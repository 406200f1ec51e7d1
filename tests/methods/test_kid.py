"""KID: what is written into answers, token by token, and what is then learned from it."""

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import worlds

from stillroom.core import Head, Signals
from stillroom.data.text import collate, prompts_of
from stillroom.methods.kd import KD
from stillroom.methods.kid import KID
from stillroom.models.text import mode

V, STOP = 9, 1
TEXT = worlds.World(kind="text")
EXACT = worlds.World(kind="text", exact=True)
PAIRS = [([2, 3], [4, 5, 6, 7, STOP]), ([5], [8, STOP]), ([3, 3, 2], [2, 4, 4, 3, 8, 5, STOP])]


def batch_of(side: str = "right", pairs: Any = PAIRS) -> Any:
    return collate(pairs, torch.arange(len(pairs)), 0, side=side)


def scores(n: int, seed: int = 0) -> torch.Tensor:
    draw = torch.Generator().manual_seed(seed)
    return 2 * torch.randn(n, V, dtype=torch.float64, generator=draw)


def written(method: KID, batch: Any, logits: torch.Tensor, u: float = 0.4, ids: Any = None) -> Any:
    """The batch that is learned from, by a student whose logits are these, and what was logged."""
    logged: dict[str, Any] = {}
    head = Head(torch.eye(logits.shape[-1], dtype=torch.float64), ids=ids)
    run: Any = SimpleNamespace(
        players={"student": SimpleNamespace(stop_ids=(STOP,))},
        ask=lambda _name, _batch: Signals(hidden=logits, head=head),
        uniform=lambda: u,
        log=lambda **values: logged.update(values),
    )
    return method.prepare(run, batch), logged


def likeliest(row: list[float]) -> int:
    """Among tokens that end nothing, by a loop."""
    best = 0
    for token, score in enumerate(row):
        if token != STOP and score > row[best]:
            best = token
    return best


def entropy(row: list[float]) -> float:
    whole = sum(map(math.exp, row))
    return -sum(math.exp(z) / whole * math.log(math.exp(z) / whole) for z in row)


def tokens(batch: Any) -> list[list[int]]:
    return [row[real].tolist() for row, real in zip(batch.ids, batch.real, strict=True)]


@pytest.mark.parametrize("side", ["left", "right"])
def test_all_of_an_answer_but_its_end_is_written_anew(side):
    batch = batch_of(side)
    logits = scores(len(batch.rows))
    made, logged = written(KID(share=1.0), batch, logits)
    rows = iter(logits.tolist())
    wanted = []
    for prompt, answer in PAIRS:
        said = [likeliest(next(rows)) for _ in answer]
        wanted.append([*prompt, *said[:-1], STOP])
    assert tokens(made) == wanted
    assert torch.equal(made.labels, batch.labels)
    assert torch.equal(made.ids[~batch.real], batch.ids[~batch.real])
    old = [t for _, answer in PAIRS for t in answer]
    new = [t for (p, _), row in zip(PAIRS, wanted, strict=True) for t in row[len(p) :]]
    changed = [float(a != b) for a, b in zip(old, new, strict=True)]
    assert logged["kid/changed"].tolist() == changed


def test_predictions_are_those_of_the_row_before_in_eval_mode(monkeypatch):
    """Each answer read alone by the whole model, which drops nothing, where training does."""
    real, seen = KID.prepare, []

    def prepare(self: KID, run: Any, batch: Any) -> Any:
        made, student = real(self, run, batch), run.players["student"]
        assert student.training
        for old, new, prompt in zip(tokens(batch), tokens(made), prompts_of(batch), strict=True):
            with mode(student, training=False):
                logits = student.model(torch.tensor([old])).logits[0].tolist()
            wanted = [likeliest(logits[i - 1]) for i in range(len(prompt), len(old) - 1)]
            assert new == [*prompt, *wanted, old[-1]]
            seen.append(new != old)
        return made

    monkeypatch.setattr(KID, "prepare", prepare)
    worlds.steps(worlds.job(KID(share=1.0), TEXT, steps=3, tokens_per_micro=20))
    assert sum(seen) > 5


def test_what_is_changed_is_a_share_of_each_answer():
    """So many as the share says, one more or less by chance; on average exactly."""
    batch, counts = batch_of(), []
    logits = torch.zeros(len(batch.rows), V, dtype=torch.float64)
    logits[:, 0] = 1.0  # a token that no answer has, so that each choice is a change
    for step in range(400):
        made, _ = written(KID(share=0.35), batch, logits, u=step / 400)
        assert torch.equal(made.ids[:, :1], batch.ids[:, :1])
        counts.append((made.ids != batch.ids).sum(1).tolist())
    sizes = [len(answer) - 1 for _, answer in PAIRS]
    for size, found in zip(sizes, zip(*counts, strict=True), strict=True):
        assert set(found) <= {math.floor(0.35 * size), math.ceil(0.35 * size)}
        assert sum(found) / 400 == pytest.approx(0.35 * size, abs=0.08)


def test_the_less_certain_tokens_are_those_of_the_highest_entropy():
    batch = batch_of()
    logits = scores(len(batch.rows), seed=3)
    logits[:, 0] += 9 - logits.amax(-1) + logits[:, 0] * 0.5  # says 0, more or less surely
    made, _ = written(KID(share=0.5, rule="uncertain"), batch, logits)
    doubts, start = [entropy(row) for row in logits.tolist()], 0
    for (prompt, answer), old, new in zip(PAIRS, tokens(batch), tokens(made), strict=True):
        size = len(answer) - 1
        changed = [i - len(prompt) for i in range(len(old)) if old[i] != new[i]]
        by_doubt = sorted(range(size), key=lambda i: -doubts[start + i])
        assert sorted(by_doubt[: len(changed)]) == changed
        assert len(changed) in (math.floor(size / 2), math.ceil(size / 2))
        start += len(answer)


def test_sampled_predictions_are_the_students_without_its_ends():
    pairs = [([2], [3] * 8 + [STOP])] * 900
    batch = batch_of(pairs=pairs)
    row = scores(1, seed=5)
    logits = row.expand(len(batch.rows), V).contiguous()
    made, _ = written(KID(share=1.0, sample_temperature=0.7), batch, logits)
    weights = [0.0 if v == STOP else math.exp(z / 0.7) for v, z in enumerate(row[0].tolist())]
    found = made.ids[:, 1:-1].flatten().bincount(minlength=V) / (900 * 8)
    wanted = torch.tensor([w / sum(weights) for w in weights])
    torch.testing.assert_close(found, wanted, rtol=0, atol=0.02)


def test_in_a_view_of_the_vocabulary_columns_become_tokens():
    batch, ids = batch_of(), torch.tensor([0, STOP, 20, 30, 40])
    logits = torch.zeros(len(batch.rows), 5, dtype=torch.float64)
    logits[:, 1], logits[:, 3] = 5.0, 2.0
    made, _ = written(KID(share=1.0), batch, logits, ids=ids)
    assert tokens(made) == [[*p, *[30] * (len(a) - 1), STOP] for p, a in PAIRS]


def test_rows_that_do_not_count_and_earlier_turns_stay():
    batch = batch_of()
    keep = torch.zeros_like(batch.mask)
    keep[::2] = 1.0
    logits = torch.zeros(len(batch.rows), V, dtype=torch.float64)
    logits[:, 0] = 1.0
    made, logged = written(KID(share=1.0), batch.add_rows(mask=keep), logits)
    ends = batch.labels == STOP
    changed = (made.ids != batch.ids).flatten()[batch.rows + 1]
    assert torch.equal(changed, (keep > 0) & ~ends)
    assert len(logged["kid/changed"]) == int(keep.sum())
    later = batch.add(prompt=batch.prompt + 2)  # two tokens of the first answer were said before
    made, _ = written(KID(share=1.0), later, logits)
    assert tokens(made)[0] == [2, 3, 4, 5, 0, 0, STOP]


@pytest.mark.parametrize("label_weight", [0.0, 0.3])
def test_without_a_share_it_is_offline_distillation_bit_for_bit(label_weight):
    ours = worlds.steps(worlds.job(KID(share=0.0, label_weight=label_weight), TEXT))
    plain = worlds.steps(worlds.job(KD(temperature=1.0, label_weight=label_weight), TEXT))
    assert worlds.gap(ours.final["student"], plain.final["student"]) == 0
    imperfect = worlds.steps(worlds.job(KID(share=0.7, label_weight=label_weight), TEXT))
    assert worlds.gap(imperfect.final["student"], plain.final["student"]) > 0


@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
def test_value_and_gradient_by_hand(beta):
    student, teacher = scores(4).requires_grad_(), scores(4, seed=1)
    labels, w = torch.tensor([0, 3, 5, 8]), 0.25
    found = KID(beta=beta, label_weight=w).objective(student, teacher, labels)

    def by_hand(row: int, z: list[float]) -> float:
        q, p = (
            [math.exp(s) / sum(map(math.exp, x)) for s in x] for x in (z, teacher[row].tolist())
        )
        m = [beta * a + (1 - beta) * b for a, b in zip(p, q, strict=True)]
        if beta in (0, 1):  # by definition the two KL divergences
            a, b = (p, q) if beta == 0 else (q, p)
            soft = sum(x * math.log(x / y) for x, y in zip(a, b, strict=True))
        else:
            soft = beta * sum(x * math.log(x / y) for x, y in zip(p, m, strict=True))
            soft += (1 - beta) * sum(x * math.log(x / y) for x, y in zip(q, m, strict=True))
        return (1 - w) * soft - w * math.log(q[int(labels[row])])

    (slope,) = torch.autograd.grad(found.sum(), student)
    for row, z in enumerate(student.tolist()):
        assert found[row].item() == pytest.approx(by_hand(row, z), rel=1e-9)
        for v in range(V):
            up, down = ([s + d * (i == v) for i, s in enumerate(z)] for d in (1e-5, -1e-5))
            steep = (by_hand(row, up) - by_hand(row, down)) / 2e-5
            assert slope[row, v].item() == pytest.approx(steep, abs=1e-8)


def test_both_sides_read_the_imperfect_answer_and_learn_the_datas_labels(monkeypatch):
    """The loss of a step against the formula, from the sequences that were made."""
    real, seen = KID.prepare, []

    def prepare(self: KID, run: Any, batch: Any) -> Any:
        made, student = real(self, run, batch), run.players["student"]
        asked = [teacher.network for teacher in run.teachers.values()]
        total, count, at = 0.0, 0, 0
        for row, prompt in zip(tokens(made), prompts_of(batch), strict=True):
            own, theirs = (n.model(torch.tensor([row])).logits[0] for n in (student, *asked))
            for i in range(len(prompt) - 1, len(row) - 1):
                q, p = own[i].softmax(-1), theirs[i].softmax(-1)
                soft = (p * (p / q).log()).sum()
                total += float(0.5 * soft - 0.5 * q[made.labels[at]].log())
                at, count = at + 1, count + 1
        seen.append(total / count)
        return made

    monkeypatch.setattr(KID, "prepare", prepare)
    logs = worlds.steps(worlds.job(KID(share=0.6, label_weight=0.5), EXACT, steps=2)).logs
    assert [log["loss/student/loss"] for log in logs] == pytest.approx(seen, rel=1e-9)
    assert all(0 < log["kid/changed"] < 1 for log in logs)
