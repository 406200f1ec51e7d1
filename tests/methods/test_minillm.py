"""MiniLLM by enumeration: every answer of a vocabulary of three, weighed by its probability."""

import itertools
import math
from collections.abc import Mapping
from typing import Any

import pytest
import torch
import worlds
from torch import Tensor

from stillroom.core import Batch, Failure, Signals
from stillroom.engine.run import Run
from stillroom.losses.per_row import per_row
from stillroom.losses.policy import label_logp
from stillroom.methods.minillm import MiniLLM

V, LONGEST, END = 3, 3, 1
PLAIN: dict[str, Any] = {"teacher_share": 0.0, "corpus_weight": 0.0, "clip": 1e9}
PLAIN |= {"length_norm": False, "whiten": False, "reward_scale": 1.0}
TEXT = worlds.World(kind="text", exact=True)
Answer = tuple[int, ...]


def bare(**changes: Any) -> MiniLLM:
    """The bare gradient: plain sums, nothing clipped, mixed or scaled."""
    return MiniLLM(**{**PLAIN, **changes})


def noise(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def answers(*, end: bool) -> list[Answer]:
    """All of them: of three tokens, or with ``end`` up to the first token 1."""
    found = itertools.product(range(V), repeat=LONGEST)
    cut = ((*y[: y.index(END)], END) if end and END in y else y for y in found)
    return list(dict.fromkeys(cut))


class Tables:
    """A run whose networks are tables: logits [3] of each prefix of an answer."""

    def __init__(self, said: list[Answer], weights: Mapping[Answer, list[float]] | None = None):
        starts = [y for n in range(LONGEST) for y in itertools.product(range(V), repeat=n)]
        self.place = {start: i for i, start in enumerate(starts)}
        self.q = noise(len(starts), V, seed=0).requires_grad_()
        self.p = noise(len(starts), V, seed=1)
        self.said, self.weights = said, weights
        self.told: dict[str, Any] = {}
        self.logged: dict[str, Tensor] = {}

    def batch(self) -> Batch:
        width = LONGEST + 1  # the prompt is one token
        pairs = [(i, t, y) for i, y in enumerate(self.said) for t in range(len(y))]
        ids = torch.tensor([[0, *y, *[0] * (LONGEST - len(y))] for y in self.said])
        made = Batch.text(
            ids=ids,
            id=torch.arange(len(ids)),
            rows=torch.tensor([i * width + t for i, t, _ in pairs]),
            labels=torch.tensor([y[t] for _, t, y in pairs]),
            mask=torch.ones(len(pairs), dtype=torch.float64),
        ).add_rows(prefix=torch.tensor([self.place[y[:t]] for _, t, y in pairs]))
        if self.weights is None:
            return made
        numbers = [w for y in self.said for w in self.weights[y]]
        return made.add_rows(importance=torch.tensor(numbers, dtype=torch.float64))

    def rollout(self, batch: Batch, n: int = 1, **told: Any) -> Batch:
        self.told = {"n": n, **told}
        return self.batch()

    def student(self, batch: Batch) -> Signals:
        return Signals(logits=self.q[batch.prefix])

    def teacher(self, batch: Batch) -> Signals:
        return Signals(logits=self.p[batch.prefix])

    def ask(self, player: str, batch: Batch) -> Signals:
        return Signals(logits=self.q.detach()[batch.prefix])

    def gather(self, value: Any) -> Any:
        return value

    def log(self, **values: Tensor) -> None:
        self.logged |= values

    def next(self, stream: str) -> Batch:
        return self.batch()

    def prepared(self, method: MiniLLM) -> Batch:
        run: Any = self
        with torch.no_grad():
            return method.prepare(run, Batch())

    def values(self, method: MiniLLM) -> Tensor:
        """[N] of the first update's first term."""
        run: Any = self
        terms: Any = next(method.updates(run, self.prepared(method))).terms
        return terms[0].value

    def slope(self, method: MiniLLM, drawn: Mapping[Answer, float]) -> Tensor:
        """The gradient that answers drawn so give on average, a sum over the tokens of each."""
        chance = torch.tensor([drawn[y] for y in self.said for _ in y], dtype=torch.float64)
        return torch.autograd.grad((chance * self.values(method)).sum(), self.q)[0]

    def logp(self, table: Tensor, y: Answer) -> list[Tensor]:
        return [table[self.place[y[:t]]].log_softmax(-1)[y[t]] for t in range(len(y))]

    def divergence(self) -> Tensor:
        """KL(q || p) of whole answers, by its definition."""
        total = torch.zeros((), dtype=torch.float64)
        for y in self.said:
            own, other = sum(self.logp(self.q, y)), sum(self.logp(self.p, y))
            total = total + torch.as_tensor(own).exp() * (own - other)
        return total

    def chances(self, share: float = 0.0) -> dict[Answer, float]:
        """Of each answer, token by token from ``(1 - share) q + share p``."""
        return {y: math.prod(m for _, m in self.steps(y, share)) for y in self.said}

    def steps(self, y: Answer, share: float) -> list[tuple[float, float]]:
        """Of each token its probability under the student, and as it is drawn."""
        both = zip(self.logp(self.q.detach(), y), self.logp(self.p, y), strict=True)
        pairs = [(float(a.exp()), float(b.exp())) for a, b in both]
        return [(q, (1 - share) * q + share * p) for q, p in pairs]


def off(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("end", [False, True])
@pytest.mark.parametrize("single_step", [True, False])
def test_both_parts_together_are_the_gradient_of_the_reverse_kl_of_answers(end, single_step):
    run = Tables(answers(end=end))
    assert len(run.said) == (15 if end else 27)
    chances = run.chances()
    assert sum(chances.values()) == pytest.approx(1)
    (exact,) = torch.autograd.grad(run.divergence(), run.q)
    found = run.slope(bare(single_step=single_step), chances)
    torch.testing.assert_close(found, exact, rtol=1e-10, atol=1e-12)


def test_the_exact_part_alone_is_not_that_gradient():
    """Token by token it gives no credit for what comes later: returns of nothing leave it alone."""
    run = Tables(answers(end=True))
    chances = run.chances()
    (exact,) = torch.autograd.grad(run.divergence(), run.q)
    alone = run.slope(bare(reward_scale=1e12), chances)
    assert off(alone, exact) > 0.1
    by_hand = torch.zeros((), dtype=torch.float64)
    for y in run.said:
        for t in range(len(y)):
            rows = [x[run.place[y[:t]]].log_softmax(-1) for x in (run.q, run.p)]
            by_hand = by_hand + chances[y] * (rows[0].exp() * (rows[0] - rows[1])).sum()
    (wanted,) = torch.autograd.grad(by_hand, run.q)
    torch.testing.assert_close(alone, wanted, rtol=0, atol=1e-9)


@pytest.mark.parametrize("share", [0.2, 0.7])
def test_a_product_of_weights_is_exact_for_mixed_answers_and_one_of_a_token_is_near(share):
    run = Tables(answers(end=True))
    (exact,) = torch.autograd.grad(run.divergence(), run.q)
    drawn, each = run.chances(share), {}
    for y in run.said:
        each[y] = [q / m for q, m in run.steps(y, share)]
    method = bare(teacher_share=share, single_step=False)
    run.weights = {y: [float(math.prod(w))] * len(y) for y, w in each.items()}
    product = off(run.slope(method, drawn), exact)
    run.weights = each
    token = off(run.slope(method, drawn), exact)
    run.weights = {y: [1.0 for _ in y] for y in each}
    none = off(run.slope(method, drawn), exact)
    assert product < 1e-12
    assert 0.01 < token < none
    assert run.told["guide"].share == share


def test_a_share_of_zero_asks_no_guide_and_weighs_nothing():
    run = Tables(answers(end=True))
    made = run.prepared(bare(samples=2))
    wanted = torch.stack([x for y in run.said for x in run.logp(run.q.detach(), y)])
    torch.testing.assert_close(made.before, wanted)
    assert run.told == {"n": 2, "temperature": 1.0, "top_p": 1.0, "top_k": None}
    assert (run.logged["minillm/weight"] == 1).all()


@pytest.mark.parametrize("changes", [{}, {"whiten": True}, {"whiten": True, "length_norm": True}])
def test_a_student_that_is_its_teacher_stays(changes):
    run = Tables(answers(end=True))
    run.p = run.q.detach().clone()
    for single_step in (True, False):
        found = run.slope(bare(**changes, single_step=single_step), run.chances())
        assert found.abs().max() < 1e-14


def test_returns_are_of_later_tokens_divided_by_their_number_scaled_and_clipped():
    run = Tables(answers(end=True))
    made = run.prepared(bare(length_norm=True, reward_scale=0.5, reward_clip=0.8))
    wanted, clipped = [], 0
    for y in run.said:
        both = zip(run.logp(run.p, y), run.logp(run.q.detach(), y), strict=True)
        rewards = [(float(p) - float(q)) / 0.5 for p, q in both]
        clipped += sum(abs(r) > 0.8 for r in rewards)
        rewards = [max(-0.8, min(0.8, r)) for r in rewards]
        wanted += [
            sum(rewards[t + 1 :]) / (len(y) - t - 1) if t + 1 < len(y) else 0.0
            for t in range(len(y))
        ]
    assert clipped > 3
    assert made.advantage.tolist() == pytest.approx(wanted)


def test_whitened_returns_have_mean_0_and_deviation_1_over_tokens_that_count():
    run = Tables(answers(end=True))
    plain = run.prepared(bare()).advantage
    found = run.prepared(bare(whiten=True)).advantage
    mean = sum(plain.tolist()) / len(plain)
    deviation = math.sqrt(sum((x - mean) ** 2 for x in plain.tolist()) / len(plain))
    wanted = [(x - mean) / deviation for x in plain.tolist()]
    assert found.tolist() == pytest.approx(wanted, rel=1e-6)


@pytest.mark.parametrize(("advantage", "value", "slope"), [(1.0, -1.2, 0.0), (-1.0, 1.25, 1.25)])
def test_the_clip_acts_on_weight_times_ratio(advantage, value, slope):
    logits = noise(1, V, seed=3).requires_grad_()
    label, method = torch.tensor([2]), MiniLLM()
    old = label_logp(logits.detach(), label)
    given = {"before": old - math.log(1.25), "advantage": torch.tensor([advantage])}
    found = method._policy(logits, None, label, **given)
    assert found.item() == pytest.approx(value)
    (gradient,) = torch.autograd.grad(found.sum(), logits)
    share = logits.detach().softmax(-1)[0, 2].item()
    assert gradient[0, 2].item() == pytest.approx(slope * (1 - share))


def test_a_second_update_measures_its_ratio_from_the_student_that_wrote():
    given: Any = Tables(answers(end=True))
    method = bare(clip=0.2, epochs=2, single_step=False)
    made = given.prepared(method)
    updates = method.updates(given, made)
    first: Any = next(updates).terms
    torch.testing.assert_close(first[0].value, -made.advantage)
    with torch.no_grad():
        given.q += 0.5 * noise(*given.q.shape, seed=5)
    second: Any = next(updates).terms
    now = [float(x) for y in given.said for x in given.logp(given.q.detach(), y)]
    wanted = []
    for new, old, a in zip(now, made.before.tolist(), made.advantage.tolist(), strict=True):
        ratio = math.exp(new - old)
        wanted.append(-min(ratio * a, max(0.8, min(1.2, ratio)) * a))
    assert second[0].value.tolist() == pytest.approx(wanted)
    assert not list(updates)


@pytest.mark.parametrize("k", [0.0, 0.3, 1.0])
def test_plain_text_is_learned_from_itself_and_from_the_teacher(k):
    given: Any = Tables(answers(end=True))
    method = bare(corpus_weight=0.7, corpus_teacher=k)
    terms: Any = next(method.updates(given, given.prepared(method))).terms
    text = terms[1]
    assert (text.over, text.weight, text.name) == ("corpus.mask", 0.7, "corpus")
    wanted = []
    for y in given.said:
        for t, token in enumerate(y):
            rows = [x[given.place[y[:t]]].softmax(-1).tolist() for x in (given.q, given.p)]
            kl = sum(p * math.log(p / q) for q, p in zip(*rows, strict=True))
            wanted.append(-(1 - k) * math.log(rows[0][token]) + k * kl)
    assert text.value.tolist() == pytest.approx(wanted)


def test_without_its_weight_no_corpus_is_read():
    assert MiniLLM().streams() == {"train", "corpus"}
    assert MiniLLM(corpus_weight=0.0).streams() == {"train"}
    logs = worlds.steps(worlds.job(MiniLLM(corpus_weight=0.0), TEXT)).logs
    assert not [key for key in logs[0] if "corpus" in key]


def test_a_teacher_that_cannot_write_is_refused_where_it_should():
    class Scorer:
        signals, fresh = frozenset({"logits"}), True

    teacher: Any = Scorer()
    MiniLLM(teacher_share=0.0).check(teacher)
    with pytest.raises(Failure, match="teacher_share to 0"):
        MiniLLM().check(teacher)


def test_weights_of_answers_that_the_teacher_helped_write(monkeypatch):
    """``before`` and rewards of real samples, from both networks' scores of them."""
    seen: list[tuple[Tensor, Tensor, Tensor]] = []
    real = MiniLLM.prepare

    def prepare(self: MiniLLM, run: Run, batch: Batch) -> Batch:
        made = real(self, run, batch)
        said = run.ask("student", made), run.teacher(made)
        q, p = (per_row(_logp, part, None, made.labels).exp() for part in said)
        seen.append((made.before.exp(), q, p))
        return made

    monkeypatch.setattr(MiniLLM, "prepare", prepare)
    worlds.steps(worlds.job(MiniLLM(teacher_share=0.4), TEXT))
    for before, q, p in seen:
        torch.testing.assert_close(before, 0.6 * q + 0.4 * p)


def _logp(student: Tensor, teacher: Tensor | None, labels: Tensor) -> Tensor:
    return label_logp(student, labels)
