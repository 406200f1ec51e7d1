"""GAD against enumeration on a vocabulary of three, by hand, and stage by stage."""

import math
import statistics
from dataclasses import dataclass
from itertools import product

import pytest
import torch
from numerics import contract, note
from torch import nn
from torch.nn.functional import softplus
from worlds import gap

from stillroom.core import Setup
from stillroom.data.marked_orders import MarkedOrders
from stillroom.data.streams import Stream
from stillroom.data.text import Example, Renderer, TextData, collate
from stillroom.engine.job import Job
from stillroom.engine.loop import iterate
from stillroom.engine.parallel import Processes
from stillroom.engine.players import Players
from stillroom.engine.run import Run
from stillroom.engine.settings import Train
from stillroom.evaluation.marked_orders import measured
from stillroom.losses.policy import clipped_surrogate
from stillroom.methods.gad import GAD
from stillroom.models import text
from stillroom.nets.average import Averages
from stillroom.nets.watch import WATCHED
from stillroom.rollouts.sampling import Sampling, sample
from stillroom.schedules import Rate

EOS, PROMPT, PARENT = 0, (1,), (2, 0)
ANSWERS = [(0,), *product((1, 2), (0, 1, 2))]
"""All that a student can say in at most two tokens."""
REWARDS = [0.3, -1.2, 0.3, 2.0, -0.4, 0.9, 0.1]
"""Of each answer; two are equal."""


def student(seed=0, *, vocabulary=3):
    torch.manual_seed(seed)
    sizes = {"hidden_size": 4, "intermediate_size": 8, "num_attention_heads": 2}
    lm = text.build("windowed", vocabulary, EOS, EOS, **sizes, max_position_embeddings=16)
    return lm.double()


class Table(nn.Module):
    """A critic that knows each text by heart."""

    def __init__(self, scores):
        super().__init__()
        self.places = {text: i for i, text in enumerate(scores)}
        self.scores = nn.Parameter(torch.tensor(list(scores.values()), dtype=torch.float64))

    def forward(self, batch):
        texts = [tuple(row[real].tolist()) for row, real in zip(batch.ids, batch.real, strict=True)]
        return self.scores[[self.places[text] for text in texts]]


def table(rewards=REWARDS, parent=0.5):
    known = {(*PROMPT, *answer): r for answer, r in zip(ANSWERS, rewards, strict=True)}
    return Table({**known, (*PROMPT, PROMPT[0], *PARENT): parent})


class Rigged(Run):
    """The engine's run with answers that are given in place of sampled ones."""

    def __init__(self, method, networks, *, answers=None, step=1, steps=10):
        texts = TextData([Example("", "", PROMPT, PARENT)], EOS)
        job = Job(
            method=method,
            student=networks["student"],
            teachers={},
            streams={"train": texts},
            train=Train(steps=steps, batch=1),
            sampling=Sampling(max_new_tokens=3),
        )
        networks = {"watch": Averages(3, decay=0.9), **networks}
        players = Players(networks, job.train, Processes())
        super().__init__(job, players, {"train": Stream(texts, 1, 0)}, Processes())
        self.answers, self.step = answers, step

    def rollout(self, batch, n=1, **sampling):
        if self.answers is None:
            return super().rollout(batch, n, **sampling)
        prompts = [tuple(row[:k].tolist()) for row, k in zip(batch.ids, batch.prompt, strict=True)]
        pairs = [(prompts[i // n], a) for i, a in enumerate(self.answers)]
        made = collate(pairs, batch.id.repeat_interleave(n), EOS)
        return made.add(ended=torch.tensor([a[-1] == EOS for a in self.answers]))


def data(prompts=(PROMPT,), answer=PARENT):
    return collate([(p, (p[0], *answer)) for p in prompts], torch.arange(len(prompts)), EOS)


def updates_of(run, batch):
    with torch.no_grad():
        batch = run.method.prepare(run, batch)
    return batch, list(run.method.updates(run, batch))


def value(update, batch):
    mask = batch.find(update.terms.over)
    return update.terms.weight * (update.terms.value * mask).sum() / mask.sum()


def gradient(scalar, lm):
    return [g.flatten() for g in torch.autograd.grad(scalar, list(lm.parameters()))]


def plain_logp(lm):
    """Log-probabilities of the tokens of each answer, by the model's own forward."""
    found = []
    for answer in ANSWERS:
        logits = lm.model(torch.tensor([[*PROMPT, *answer]])).logits[0]
        rows = logits.log_softmax(-1)[len(PROMPT) - 1 : -1]
        found.append(rows[torch.arange(len(answer)), list(answer)])
    return found


# ---- the policy's gradient


def expected_gradient(method, lm, reference, rewards):
    """Over all groups of two answers, as GAD itself makes it from each."""
    with torch.no_grad():
        chance = [float(logp.sum().exp()) for logp in plain_logp(lm)]
    assert sum(chance) == pytest.approx(1, abs=1e-12)
    total = torch.zeros(sum(p.numel() for p in lm.parameters()), dtype=torch.float64)
    run = Rigged(method, {"student": lm, "critic": table(rewards), "reference": reference})
    for i, j in product(range(len(ANSWERS)), repeat=2):
        run.answers = [ANSWERS[i], ANSWERS[j]]
        batch, updates = updates_of(run, data())
        assert [u.players for u in updates] == [("critic",), ("student",)]
        total += chance[i] * chance[j] * torch.cat(gradient(value(updates[1], batch), lm))
    return total


def explicit_loss(lm, chance, reference, rewards, kl_weight):
    """The same expectation written out; ``chance`` of each answer is a constant in it."""
    logp = plain_logp(lm)
    total = torch.zeros((), dtype=torch.float64)
    for i, j in product(range(len(ANSWERS)), repeat=2):
        gap = rewards[i] - rewards[j]
        # of two numbers the mean lies gap / 2 away and the deviation is |gap| / sqrt(2)
        up = math.copysign(1 / (math.sqrt(2) + 2e-6 / abs(gap)), gap) if gap else 0.0
        loss = -up * logp[i].sum() + up * logp[j].sum()
        for k in (i, j):
            away = reference[k] - logp[k]
            loss = loss + kl_weight * (away.exp() - away - 1).sum()
        tokens = len(ANSWERS[i]) + len(ANSWERS[j])
        total = total + chance[i] * chance[j] * loss / tokens
    return total


@contract
@pytest.mark.parametrize("kl_weight", [0.0, 0.7])
def test_the_expected_gradient_is_the_one_written_out(kl_weight):
    lm, other = student(0), student(1)
    method = GAD(group=2, warmup=0.0, kl_weight=kl_weight)
    found = expected_gradient(method, lm, other, REWARDS)
    with torch.no_grad():
        chance = [float(logp.sum().exp()) for logp in plain_logp(lm)]
        reference = plain_logp(other)
    given = (chance, reference, REWARDS, kl_weight)
    wanted = torch.cat(gradient(explicit_loss(lm, *given), lm))
    assert wanted.abs().max() > 1e-2
    note("gad", "gradient", gap(found, wanted), 1e-12)
    # and it is the slope: along one direction, by differences
    torch.manual_seed(2)
    way = torch.randn_like(found)
    losses = []
    for step in (1e-5, -2e-5):
        with torch.no_grad():
            flat = nn.utils.parameters_to_vector(lm.parameters())
            nn.utils.vector_to_parameters(flat + step * way, lm.parameters())
            losses.append(float(explicit_loss(lm, *given)))
    assert (losses[0] - losses[1]) / 2e-5 == pytest.approx(float(found @ way), rel=1e-6)


def teacher_logp():
    torch.manual_seed(9)
    return torch.randn(len(ANSWERS), dtype=torch.float64).log_softmax(0)


def reverse_kl_gradient(lm, log_p):
    log_q = torch.stack([logp.sum() for logp in plain_logp(lm)])
    return torch.cat(gradient((log_q.exp() * (log_q - log_p)).sum(), lm))


def test_with_the_true_log_ratio_rewards_follow_the_reverse_kl():
    lm, log_p = student(0), teacher_logp()
    wanted = reverse_kl_gradient(lm, log_p)
    logp = plain_logp(lm)
    log_q = torch.stack([rows.sum() for rows in logp]).detach()
    ratio = log_p - log_q
    # without the group's normalisation it is that gradient exactly
    bare = sum(
        log_q[i].exp() * clipped_surrogate(rows, rows.detach(), ratio[i], 0.2).sum()
        for i, rows in enumerate(logp)
    )
    torch.testing.assert_close(torch.cat(gradient(bare, lm)), wanted, rtol=1e-9, atol=1e-12)
    # with it, a step still goes downhill
    method = GAD(group=2, warmup=0.0, kl_weight=0.0)
    for constant in (0.0, 5.0):  # a critic is known up to a constant
        rewards = (ratio + constant).tolist()
        found = expected_gradient(method, lm, student(0), rewards)
        assert torch.cosine_similarity(found, wanted, 0) > 0.8


def test_with_two_answers_the_direction_is_exact():
    lm, log_p = student(0), teacher_logp()
    with torch.no_grad():
        lm.model.lm_head.bias[EOS] = -1e4  # so that answers of one token are (1) or (2)
    pairs = [(1,), (2,)]
    logits = lm.model(torch.tensor([[*PROMPT]])).logits[0, -1]
    log_q = logits.log_softmax(-1)[1:]
    kl = (log_q.exp() * (log_q - log_p[:2])).sum()
    wanted = torch.cat(
        [g.flatten() for g in torch.autograd.grad(kl, list(lm.parameters()), retain_graph=True)]
    )
    rewards = (log_p[:2] - log_q.detach()).tolist()
    scores = {(*PROMPT, *a): r for a, r in zip(pairs, rewards, strict=True)}
    critic = Table({**scores, (*PROMPT, PROMPT[0], *PARENT): 0.0})
    found = torch.zeros_like(wanted)
    method = GAD(group=2, warmup=0.0, kl_weight=0.0)
    run = Rigged(method, {"student": lm, "critic": critic})
    for i, j in product(range(2), repeat=2):
        run.answers = [pairs[i], pairs[j]]
        batch, updates = updates_of(run, data())
        chance = (log_q[i] + log_q[j]).exp().item()
        found += chance * torch.cat(gradient(value(updates[1], batch), lm))
    assert torch.cosine_similarity(found, wanted, 0) > 1 - 1e-9


def test_a_frozen_critic_and_no_kl_is_plain_grpo():
    lm, group = student(0), 4
    answers = [ANSWERS[i] for i in (1, 3, 0, 6, 2, 2, 5, 4)]
    method = GAD(group=group, warmup=0.0, kl_weight=0.0, critic_frozen=True)
    critic = Table(
        {(p, *a): REWARDS[i] * (p + 1) for p in (1, 2) for i, a in enumerate(ANSWERS)}
        | {(p, p, *PARENT): 0.0 for p in (1, 2)}
    )
    run = Rigged(method, {"student": lm, "critic": critic}, answers=answers)
    batch, updates = updates_of(run, data([(1,), (2,)]))
    assert [u.players for u in updates] == [("student",)]
    total, tokens = torch.zeros((), dtype=torch.float64), 0
    for prompt, some in ((1, answers[:group]), (2, answers[group:])):
        rewards = [REWARDS[ANSWERS.index(a)] * (prompt + 1) for a in some]
        mean, deviation = statistics.mean(rewards), statistics.stdev(rewards)
        for answer, reward in zip(some, rewards, strict=True):
            logits = lm.model(torch.tensor([[prompt, *answer]])).logits[0].log_softmax(-1)
            logp = sum(logits[k, token] for k, token in enumerate(answer))
            total = total - (reward - mean) / (deviation + 1e-6) * logp
            tokens += len(answer)
    wanted = torch.cat(gradient(total / tokens, lm))
    found = torch.cat(gradient(value(updates[0], batch), lm))
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-12)


def test_equal_rewards_move_nothing():
    lm = student(0)
    critic = table([0.1] * len(ANSWERS))
    method = GAD(group=2, warmup=0.0, kl_weight=0.0)
    run = Rigged(method, {"student": lm, "critic": critic}, answers=[ANSWERS[1], ANSWERS[4]])
    batch, updates = updates_of(run, data())
    assert batch.duel.samples.advantage.tolist() == [0.0] * 4
    found = torch.cat(gradient(value(updates[1], batch), lm))
    assert found.abs().max() == 0


def test_the_reward_is_that_of_the_critic_before_its_update():
    lm, critic = student(0), table()
    method = GAD(group=2, warmup=0.0, kl_weight=0.0)
    run = Rigged(method, {"student": lm, "critic": critic}, answers=[ANSWERS[1], ANSWERS[3]])
    with torch.no_grad():
        batch = method.prepare(run, data())
    thread = method.updates(run, batch)
    next(thread)
    before = batch.duel.samples.advantage.clone()
    with torch.no_grad():
        critic.scores.mul_(-1)
    next(thread)
    assert torch.equal(batch.duel.samples.advantage, before)
    assert not batch.duel.samples.advantage.requires_grad
    assert before[0] < 0 < before[-1]  # -1.2 and 2.0


# ---- the critic's loss


def critic_loss(critic, answers, method, prompts=(PROMPT,)):
    run = Rigged(method, {"student": student(0), "critic": critic}, answers=answers)
    batch, updates = updates_of(run, data(prompts))
    assert updates[0].players == ("critic",)
    return value(updates[0], batch)


@contract
@pytest.mark.parametrize("kind", ["bradley-terry", "cross-entropy"])
def test_the_critic_s_loss_is_the_mean_over_all_pairs(kind):
    method = GAD(group=3, warmup=0.0, kl_weight=0.0, critic_loss=kind)
    prompts, answers = [(1,), (2,)], [ANSWERS[i] for i in (0, 4, 2, 6, 1, 4)]
    torch.manual_seed(5)
    draw = iter(torch.randn(20).tolist())
    scores = {(p, *a): next(draw) for p in (1, 2) for a in ANSWERS}
    parents = {(p, p, *PARENT): next(draw) for p in (1, 2)}
    critic = Table(scores | parents)
    found = critic_loss(critic, answers, method, prompts)
    values, slopes = [], dict.fromkeys(scores | parents, 0.0)

    def sigmoid(x):
        return 1 / (1 + math.exp(-x))

    for (p,), some in zip(prompts, (answers[:3], answers[3:]), strict=True):
        for a in some:
            theirs, own = parents[p, p, *PARENT], scores[p, *a]
            if kind == "bradley-terry":
                values.append(-math.log(sigmoid(theirs - own)))
                down = up = sigmoid(own - theirs)
            else:
                values.append(-math.log(sigmoid(theirs)) - math.log(1 - sigmoid(own)))
                down, up = 1 - sigmoid(theirs), sigmoid(own)
            slopes[p, p, *PARENT] -= down / 6
            slopes[p, *a] += up / 6
    note("gad", "oracle", gap(found.item(), sum(values) / 6), 1e-12)
    (slope,) = torch.autograd.grad(found, critic.scores)
    assert slope.tolist() == pytest.approx(list(slopes.values()), rel=1e-12, abs=1e-15)


def test_a_critic_that_knows_nothing_pays_log_two():
    method = GAD(group=2, warmup=0.0, kl_weight=0.0)
    critic = table([1.7] * len(ANSWERS), parent=1.7)
    assert critic_loss(critic, ANSWERS[:2], method).item() == pytest.approx(math.log(2))


def test_swapping_teacher_and_student_turns_the_critic_round():
    method = GAD(group=2, warmup=0.0, kl_weight=0.0)
    alike = [torch.zeros(2, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    one = torch.autograd.grad(method._judge(*alike).sum(), alike)
    other = torch.autograd.grad(method._judge(*alike[::-1]).sum(), alike)
    for a, b in zip(one, other, strict=True):
        assert torch.equal(a, -b)
    assert one[0].tolist() == [-0.5, -0.5]
    theirs, own = torch.tensor([2.0, -1.0]), torch.tensor([0.5, 0.5])
    torch.testing.assert_close(method._judge(theirs, own), softplus(own - theirs))


# ---- stages


@dataclass(frozen=True)
class Noted:
    kinds: list
    resets: list
    followed: list


def walk(method, steps=12):
    """What moves in each step: ``c`` critic, ``i`` student that imitates, ``a`` by rewards."""
    lm = student(0)
    players = {"student": lm, **method.players(Setup(lm, {}, data(), 1))}
    run = Rigged(method, players, steps=steps)
    kinds, resets, followed = [], [], []
    run.reset = lambda name: resets.append((run.step, name))
    for run.step in range(steps):
        with torch.no_grad():
            lm.model.lm_head.bias.add_(0.1)
        _, updates = updates_of(run, data([(1,), (2,)]))
        names = {("critic", "duel.samples.examples"): "c", ("student", "mask"): "i"}
        names[("student", "duel.samples.mask")] = "a"
        kinds.append("".join(names[(*u.players, u.terms.over)] for u in updates))
        if "reference" in players:
            there = players["reference"].model.lm_head.bias
            followed.append(bool(torch.equal(there, lm.model.lm_head.bias)))
    return Noted(kinds, resets, followed)


@pytest.mark.parametrize(
    ("fields", "wanted"),
    [
        ({"warmup": 0.5, "head_start": 2}, ["c"] * 2 + ["ci"] * 4 + ["ca"] * 6),
        ({"warmup": 0.5, "head_start": 0}, ["ci"] * 6 + ["ca"] * 6),
        ({"warmup": 0.0}, ["ca"] * 12),
        ({"warmup": 1.0, "head_start": 0}, ["ci"] * 12),
        ({"warmup": 1.0, "critic_from": 1.0}, ["i"] * 12),
        (
            {"warmup": 0.5, "critic_from": 0.5, "head_start": 1},
            ["i"] * 3 + ["c"] + ["ci"] * 2 + ["ca"] * 6,
        ),
        (
            {"warmup": 0.5, "critic_from": 1.0, "critic_alone": 0.5},
            ["i"] * 6 + ["c"] * 3 + ["ca"] * 3,
        ),
        (
            {"warmup": 0.5, "critic_alone": 0.5, "head_start": 0, "critic_frozen": True},
            ["ci"] * 6 + ["c"] * 3 + ["a"] * 3,
        ),
    ],
)
def test_who_moves_in_which_step(fields, wanted):
    seen = walk(GAD(group=2, **fields))
    assert seen.kinds == wanted
    adversarial = [step for step, kind in enumerate(wanted) if "a" in kind]
    # the adversarial stage starts with a fresh optimiser and its own student as reference
    assert seen.resets == [(step, "student") for step in adversarial[:1]]
    assert [step for step, same in enumerate(seen.followed) if same] == adversarial[:1]


def test_players_follow_the_fields():
    lm = student(0)
    setup = Setup(lm, {}, data(), 1)
    made = GAD().players(setup)
    assert set(made) == {"critic", "watch", "reference"}
    own = lm.model.base_model.state_dict()
    critic = made["critic"].body.network
    assert all(torch.equal(v, own[k]) for k, v in critic.state_dict().items())
    assert all(p.requires_grad for p in made["critic"].parameters())
    assert not any(p.requires_grad for p in made["reference"].parameters())
    assert not made["reference"].training
    changed = GAD(critic={"num_hidden_layers": 2, "hidden_size": 6}, kl_weight=0.0).players(setup)
    assert set(changed) == {"critic", "watch"}
    assert len(changed["critic"].body.network.layers) == 2
    assert changed["critic"].head.in_features == 6
    assert len(lm.model.model.layers) == 1


def test_only_the_first_prompts_are_sampled_from():
    method = GAD(group=2, warmup=0.0, prompts=2)
    lm = student(0)
    run = Rigged(method, {"student": lm, **method.players(Setup(lm, {}, data(), 1))})
    batch, updates = updates_of(run, data([(1,), (2,), (1,), (2,), (2,)]))
    assert batch.size == 5
    assert batch.duel.id.tolist() == [0, 1]
    assert batch.duel.samples.id.tolist() == [0, 0, 1, 1]
    assert [len(u.terms.value) for u in updates] == [4, len(batch.duel.samples.rows)]


# ---- what the reader is told


class By(nn.Module):
    def __init__(self, rule):
        super().__init__()
        self.rule = rule

    def forward(self, batch):
        return torch.stack([self.rule(*row) for row in zip(batch.ids, batch.real, strict=True)])


def length(ids, real):
    return real.sum().double()


def ended(ids, real):
    return (ids[real][-1] == EOS).double()


def parent_word(ids, real):
    return (ids[real] == 2).any().double()  # the teacher says 2, these students do not


def notes_of(rule, answers, answer=PARENT, group=None):
    method = GAD(group=group or len(answers), warmup=0.0, kl_weight=0.0)
    players = {"student": student(0), "critic": By(rule)}
    run = Rigged(method, players, answers=answers)
    with torch.no_grad():
        for _ in range(WATCHED):
            assert run.notes == []  # not before it was watched for a while
            method.prepare(run, data(answer=answer))
    return run.notes, run.logged()


def test_a_critic_that_wins_by_length_is_named():
    for rule, answers in (
        (length, [(1, 0), (1, 0), (0,), (1, 0)]),  # the teacher's has three tokens
        (lambda *row: -length(*row), [(1, 1, 1, 0)] * 4),
    ):
        notes, seen = notes_of(rule, answers)
        (note,) = notes
        assert "length alone" in note
        assert seen["gad/critic_accuracy"] == 1
        assert seen["gad/length_accuracy"] in (0, 1)


def test_a_critic_that_wins_by_the_end_is_named():
    notes, seen = notes_of(ended, [(1, 1, 1), (1, 2, 1), (2, 1, 1), (1, 1, 2)])
    (note,) = notes
    assert "EOS alone" in note
    assert seen["gad/eos_rate"] == 0
    assert (seen["gad/eos_accuracy"], seen["gad/length_accuracy"]) == (1, 0.5)
    assert seen["gad/length"] == 3


@pytest.mark.parametrize(
    ("rule", "answers"),
    [
        (parent_word, [(1, 1, 0)] * 4),  # alike in length and end: it reads
        (parent_word, [(1, 1, 0), (1, 1, 0), (1, 0), (1, 1, 1)]),  # both tell something, not all
        (lambda ids, real: ids.sum() * 0.0, [(1, 0)] * 4),  # does not win at all
    ],
)
def test_a_critic_that_reads_or_loses_is_not_named(rule, answers):
    notes, _ = notes_of(rule, answers)
    assert notes == []


def test_numbers_of_the_duel_by_hand():
    answers = [(1, 1, 0), (1, 0), (2, 1, 1), (0,)]
    _, seen = notes_of(parent_word, answers)
    assert seen["gad/critic_accuracy"] == (1 + 1 + 0.5 + 1) / 4  # the third says 2, too: a tie
    assert seen["gad/score_gap"] == 3 / 4
    assert seen["gad/length"] == (3 + 2 + 3 + 1) / 4
    assert seen["gad/eos_rate"] == 3 / 4
    assert seen["gad/length_accuracy"] == (0.5 + 1 + 0.5 + 1) / 4
    assert seen["gad/eos_accuracy"] == (0.5 + 0.5 + 1 + 0.5) / 4
    assert seen["gad/reward"] == 1 / 4


# ---- the oracle on marked orders


class Oracle(nn.Module):
    """ln p(y | x) - ln q(y | x): what the best critic would say."""

    def __init__(self, lm, world):
        super().__init__()
        self.known = (lm, world)  # a tuple, so that the student is no part of it

    def forward(self, batch):
        lm, world = self.known
        said = lm(batch).logits.log_softmax(-1).gather(1, batch.labels[:, None]).squeeze(1)
        log_q = torch.zeros(batch.size).index_add(0, batch.owner, said)
        ids = [row[real].tolist() for row, real in zip(batch.ids, batch.real, strict=True)]
        cut = zip(ids, batch.prompt.tolist(), strict=True)
        return torch.tensor([world.teacher_logp(t[:k], t[k:]) for t, k in cut]) - log_q


@pytest.mark.slow
def test_the_true_log_ratio_as_reward_raises_validity():
    torch.manual_seed(0)
    world = MarkedOrders()
    rows = world.splits(0)
    sizes = {"hidden_size": 24, "num_hidden_layers": 1, "window": 2, "sinks": 5}
    lm = text.build("windowed", 37, 1, 0, **sizes)
    renderer = Renderer(world.tokenizer(), lm.stop_ids)
    texts = TextData([renderer.example(row) for row in rows["train"]], 0)
    # 800 steps of imitation, then 120 by rewards
    method = GAD(warmup=800 / 920, critic_from=1.0, critic_frozen=True, prompts=16)
    first = Rate(peak=0.01, warmup=50, decay="cosine", end=0.1, until=800)
    rates = [first, Rate(peak=5e-4)]
    job = Job(
        method=method,
        student=lm,
        teachers={},
        streams={"train": texts},
        train=Train(steps=920, batch=32, lr={"student": rates}, tokens_per_micro=10**6),
        sampling=Sampling(max_new_tokens=12),
    )
    networks = {"student": lm, **method.players(Setup(lm, {}, data(), 1))}
    players = Players(networks | {"critic": Oracle(lm, world)}, job.train, Processes())
    run = Run(job, players, {"train": Stream(texts, 32, 0)}, Processes())

    def logp_of(pairs):
        batch = collate(pairs, torch.arange(len(pairs)), 0)
        said = lm(batch).logits.log_softmax(-1).gather(1, batch.labels[:, None]).squeeze(1)
        return torch.zeros(batch.size).index_add(0, batch.owner, said)

    def draw(prompts):
        told = Sampling(max_new_tokens=12)
        return sample(lm, prompts, torch.arange(len(prompts)), seed=1, sampling=told)

    @torch.no_grad()
    def now():
        return measured(logp_of, draw, rows["test"], world)

    while run.step < 800:
        iterate(run, run.next("train"))
        run.step += 1
    before = now()
    # the optimum of imitation is 1/9: three markers, each of the three allowed styles
    assert before["validity"] == pytest.approx(1 / 9, abs=0.03)
    while run.step < 920:
        iterate(run, run.next("train"))
        run.step += 1
    after = now()
    assert after["validity"] > 0.6
    assert after["reverse_kl"] < before["reverse_kl"]
    assert after["forward_kl"] > before["forward_kl"]
    assert after["modes"] < before["modes"]
