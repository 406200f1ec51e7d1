"""GAD with the pooled critic, its controls, and what stops it."""

import copy
import itertools
import json
import math
from dataclasses import replace

import pytest
import torch
import worlds
from worlds import World, gap, job, steps

from stillroom.core import Failure, Setup
from stillroom.data.streams import Stream
from stillroom.data.text import collate
from stillroom.engine.parallel import Processes
from stillroom.engine.players import Players
from stillroom.engine.run import Run
from stillroom.engine.training import train
from stillroom.methods.gad import GAD
from stillroom.nets.average import Averages
from stillroom.nets.pooled import Pooled, Pooling, fit

EXACT = World(kind="text", exact=True)
POOLED = Pooling(replay=40, l2=1.0)


def gad(**fields):
    told = {"group": 2, "warmup": 0.0, "pooled": POOLED, "kl_weight": 0.1}
    return GAD(**{**told, **fields})


def running(method, *, batch=4):
    """A run that stands before its first step, and its networks."""
    given = job(method, EXACT, steps=8, batch=batch)
    networks = {"student": given.student}
    first = given.streams["train"].batch(range(batch))
    networks |= method.players(Setup(given.student, {}, first, 8))
    players = Players(networks, given.train, Processes())
    return Run(given, players, {"train": Stream(given.streams["train"], batch, 0)}, Processes())


@torch.no_grad()
def prepared(run):
    return run.method.prepare(run, run.next("train"))


# ---- the critic


def test_only_the_student_has_an_optimiser_and_the_trunk_is_its_own_first_layers():
    run = running(gad())
    assert set(run.all.optimizers) == {"student"}
    critic = run.players["critic"]
    assert isinstance(critic, Pooled)
    own, trunk = run.players["student"].state_dict(), critic.reader.body.lm.state_dict()
    assert gap(dict(trunk), dict(own)) == 0
    assert not {t.data_ptr() for t in trunk.values()} & {t.data_ptr() for t in own.values()}
    with pytest.raises(Failure, match="has 1, so its first 2"):
        running(gad(pooled=Pooling(layers=2)))


def test_rewards_are_those_of_the_critic_before_it_learned_from_the_answers():
    run = running(gad())
    for _ in range(3):
        prepared(run)
        run.step += 1
    run.logged()
    critic = run.players["critic"]
    before = copy.deepcopy(critic)
    duel = prepared(run).duel
    scores = before(duel.samples)
    assert scores.std() > 1e-3
    assert run.logged()["gad/reward"] == pytest.approx(float(scores.mean()), rel=1e-12)
    pairs = scores.view(-1, 2)
    # of two numbers the deviation is |gap| / sqrt 2 and the mean lies half the gap away
    up = torch.sign(pairs[:, 0] - pairs[:, 1]) / math.sqrt(2)
    wanted = torch.stack([up, -up], 1).flatten()[duel.samples.owner]
    torch.testing.assert_close(duel.samples.advantage, wanted, rtol=1e-3, atol=1e-3)
    assert not torch.allclose(critic(duel.samples), scores)
    assert int(critic.seen) == 4 * 8


def test_it_is_fitted_to_each_answer_beside_the_teacher_s_to_the_same_prompt():
    run = running(gad(group=3), batch=2)
    duels = []
    for _ in range(2):
        duels.append(prepared(run).duel)
        run.step += 1
    critic, theirs, own = run.players["critic"], [], []
    for duel in duels:
        for i in duel.id.argsort().tolist():  # the order of the ids, whichever process had them
            for copy_ in range(3):
                theirs.append(feature(critic, duel, i))
                own.append(feature(critic, duel.samples, 3 * i + copy_))
    torch.testing.assert_close(critic.theirs[:12], torch.stack(theirs))
    torch.testing.assert_close(critic.own[:12], torch.stack(own))
    weight, _ = fit(torch.stack(theirs), torch.stack(own), 1.0)
    torch.testing.assert_close(critic.weight, weight, rtol=1e-6, atol=1e-8)


def feature(critic, batch, i):
    """The mean of the trunk's states over one answer, read alone and without padding."""
    tokens, prompt = batch.ids[i][batch.real[i]].tolist(), int(batch.prompt[i])
    alone = collate([(tokens[:prompt], tokens[prompt:])], torch.arange(1), 0)
    return critic.reader.body.states(alone)[0, prompt:].mean(0)


def test_in_a_run_the_critic_s_numbers_move_and_its_trunk_does_not():
    run = steps(job(gad(critic_alone=0.5), EXACT, steps=4, every=1, keep=9))
    states = [run.states[i]["networks"] for i in range(5)]
    for before, after in itertools.pairwise(states):
        for name, value in after["critic"].items():
            moved = gap(before["critic"][name], value) > 0
            assert moved == (".body." not in name), name
    learned = [gap(a["student"], b["student"]) > 0 for a, b in itertools.pairwise(states)]
    assert learned == [False, False, True, True]


def test_a_frozen_one_stops_learning_when_the_policy_begins():
    method = gad(critic_alone=0.5, critic_frozen=True)
    run = steps(job(method, EXACT, steps=4, every=1, keep=9))
    seen = [int(run.states[i]["networks"]["critic"]["seen"]) for i in range(5)]
    assert seen == [0, 8, 16, 16, 16]


@pytest.mark.parametrize(
    "fields", [{"critic": {"hidden_size": 4}}, {"critic_loss": "cross-entropy"}]
)
def test_what_does_not_go_with_it_is_refused(fields):
    with pytest.raises(Failure, match=r"pooled: .* leave out critic and critic_loss"):
        gad(**fields)


# ---- the control


def test_random_rewards_know_nothing_of_the_critic():
    finals = {}
    for reward in ("critic", "random"):
        for l2 in (1.0, 100.0):
            method = gad(reward=reward, group=3, pooled=Pooling(l2=l2))
            finals[reward, l2] = steps(job(method, EXACT, steps=4)).final["student"]
    assert gap(finals["random", 1.0], finals["random", 100.0]) == 0
    assert gap(finals["critic", 1.0], finals["critic", 100.0]) > 1e-6
    assert gap(finals["critic", 1.0], finals["random", 1.0]) > 1e-6


def test_random_rewards_are_drawn_for_each_answer_of_each_step_and_normalised_in_the_group():
    run, drawn = running(gad(reward="random", group=4)), []
    for _ in range(40):
        samples = prepared(run).duel.samples
        first = torch.searchsorted(samples.owner, torch.arange(samples.size))
        drawn.append(samples.advantage[first].view(-1, 4))
        run.step += 1
    groups = torch.cat(drawn)
    torch.testing.assert_close(groups.mean(1), torch.zeros(160).double(), atol=1e-6, rtol=0)
    torch.testing.assert_close(groups.std(1), torch.ones(160).double(), atol=1e-3, rtol=0)
    assert len(groups.unique(dim=0)) == 160
    # each copy is above the mean as often as below: 80 +- 4 deviations of 6.3
    assert ((groups > 0).sum(0) - 80).abs().max() < 26
    again = running(gad(reward="random", group=4), batch=2)
    samples = prepared(again).duel.samples
    first = torch.searchsorted(samples.owner, torch.arange(samples.size))
    assert torch.equal(samples.advantage[first], drawn[0].flatten()[:8])


# ---- what stops it


def column(folder, name):
    """A number of each line of the run's record that has it."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [told[name] for told in map(json.loads, lines) if name in told]


def refused(method, folder, **changes):
    given = job(method, EXACT, steps=6, every=2, **changes)
    with pytest.raises(Failure) as said:
        train(given, folder)
    return str(said.value)


@pytest.mark.parametrize("pooled", [POOLED, None])
def test_a_critic_that_cannot_tell_is_not_let_loose_on_the_student(pooled, tmp_path):
    method = gad(critic_alone=0.5, least_accuracy=1.0, pooled=pooled, head_start=0)
    told = refused(method, tmp_path / "run")
    assert "step 4 would begin to reward the student" in told
    assert "least_accuracy is 1" in told
    assert "critic_alone" in told
    assert told.endswith("The checkpoint of step 2 is whole")
    state = worlds.checkpoint.load(tmp_path / "run" / "checkpoints" / "step-00000002")
    assert int(state["players"]["networks"]["watch"]["steps"]) == 2
    assert refused(method, tmp_path / "run") == told  # taken up again, it is as before


def test_an_accuracy_that_is_just_enough_is_enough():
    method = gad(least_accuracy=0.65)
    run = running(method)
    method._refuse_below(0.65, run)
    with pytest.raises(Failure, match=r"told 0.64 of held-out pairs right, and least_accuracy is"):
        method._refuse_below(0.64, run)


def test_what_it_is_refused_by_is_the_running_mean_of_pairs_not_yet_learned_from(tmp_path):
    told = refused(gad(critic_alone=0.5, least_accuracy=1.0), tmp_path / "run")
    free = train(job(gad(critic_alone=0.5), EXACT, steps=6), tmp_path / "free")
    seen = column(free.folder, "gad/critic_accuracy")
    assert seen[0] == 0.5  # the first pairs come before the critic has learned anything
    weights = [0.9**age for age in (3, 2, 1, 0)]
    mean = sum(w * x for w, x in zip(weights, seen[:4], strict=True)) / sum(weights)
    assert f"told {mean:.2f} of held-out pairs right" in told
    assert 0.5 < mean < 1
    just = gad(critic_alone=0.5, least_accuracy=mean - 1e-9)
    again = train(job(just, EXACT, steps=6), tmp_path / "just")
    assert column(again.folder, "gad/critic_accuracy") == seen


@pytest.mark.parametrize(("name", "margin"), [("nll", 0.1), ("distinct_2", 0.05)])
def test_a_student_that_is_being_destroyed_ends_the_run(name, margin, tmp_path):
    given = job(gad(kl_weight=0.0), EXACT, steps=40, every=2, lr=0.3, metrics=True)
    given = replace(given, eval=replace(given.eval, stop={name: margin}))
    result = train(given, tmp_path / "run")
    (note,) = [n for n in result.info["notes"] if n.startswith("Stopped")]
    assert f"{name} came to" in note
    assert result.info["steps"] < 40
    read = column(tmp_path / "run", f"validation/{name}")
    before = [min(read[: i + 1]) if name == "nll" else read[0] for i in range(len(read))]
    beyond = [abs(now - best) > margin for now, best in zip(read, before, strict=True)]
    assert beyond == [False] * (len(read) - 1) + [True]


def test_a_rising_or_falling_reward_alone_stops_nothing(tmp_path):
    given = job(gad(), EXACT, steps=6, every=2, lr=1e-6, metrics=True)
    given = replace(given, eval=replace(given.eval, stop={"nll": 0.1, "distinct_2": 0.05}))
    result = train(given, tmp_path / "run")
    assert result.info["steps"] == 6
    assert not [n for n in result.info["notes"] if n.startswith("Stopped")]


# ---- answers that are cut


class Given(Run):
    """A run whose answers are given."""

    given = ()

    def rollout(self, batch, n=1, **sampling):
        prompts = [tuple(row[:k].tolist()) for row, k in zip(batch.ids, batch.prompt, strict=True)]
        pairs = [(prompts[i // n], answer) for i, answer in enumerate(self.given)]
        return collate(pairs, batch.id.repeat_interleave(n), 0)


def watched(theirs, own):
    """What GAD logs of one prompt with the teacher's answer and the student's."""
    method = gad(group=len(own), kl_weight=0.0)
    given = job(method, EXACT, steps=2)
    batch = collate([((3, 4), theirs)], torch.arange(1), 0)
    networks = {"student": given.student, **method.players(Setup(given.student, {}, batch, 8))}
    assert isinstance(networks["watch"], Averages)
    players = Players(networks, given.train, Processes())
    run = Given(given, players, {"train": Stream(given.streams["train"], 4, 0)}, Processes())
    run.given = own
    with torch.no_grad():
        method.prepare(run, batch)
    return run.logged()


def test_cut_by_one_rule_neither_length_nor_end_tells_anything():
    seen = watched((5, 6, 7), [(2, 2, 8), (9, 5, 5)])  # the end is token 1
    assert (seen["gad/length_accuracy"], seen["gad/eos_accuracy"]) == (0.5, 0.5)
    assert (seen["gad/length"], seen["gad/eos_rate"]) == (3, 0)


def test_the_end_counts_where_it_comes_within_the_cut():
    # theirs was cut at 3; own: ended within it, cut
    seen = watched((5, 6, 7), [(2, 1), (9, 5, 5)])
    assert (seen["gad/eos_accuracy"], seen["gad/length_accuracy"]) == ((0 + 0.5) / 2, (1 + 0.5) / 2)
    seen = watched((5, 1), [(2, 1), (9, 5, 5)])
    assert (seen["gad/eos_accuracy"], seen["gad/length_accuracy"]) == ((0.5 + 1) / 2, (0.5 + 0) / 2)
