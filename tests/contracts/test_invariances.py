"""What must not change a number, in float64."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from numerics import SAME_BITS, contract, note
from two_populations import TwoPopulations
from worlds import EXAMPLES, PAD, World, broken_off, gap, job, steps

from stillroom.core import Batch, Method
from stillroom.data.text import collate, prompts_of
from stillroom.engine import loop
from stillroom.engine.run import Run
from stillroom.engine.settings import Optimizer
from stillroom.methods.ammd import AMMD
from stillroom.methods.atkd import ATKD
from stillroom.methods.cot2align import CoT2Align
from stillroom.methods.delta_kd import DeltaKD
from stillroom.methods.distillm import DistiLLM
from stillroom.methods.dpkd import DPKD
from stillroom.methods.gad import GAD
from stillroom.methods.gkd import GKD
from stillroom.methods.kd import KD
from stillroom.methods.kid import KID
from stillroom.methods.minillm import MiniLLM
from stillroom.methods.plad import PLaD
from stillroom.methods.pld import PLD
from stillroom.methods.preference import Preference
from stillroom.methods.rskd import RSKD
from stillroom.methods.self_evolution_kd import SelfEvolutionKD
from stillroom.methods.seqkd import SeqKD
from stillroom.methods.skd import SKD
from stillroom.methods.span_kd import SpanKD
from stillroom.methods.taid import TAID
from stillroom.methods.uld import ULD
from stillroom.nets.pooled import Pooling
from stillroom.nets.scorer import Scorer
from stillroom.rollouts.sampling import Sampling, sample

pytestmark = contract
CLOSE = 1e-10
STEPS = 3
METHODS: dict[str, Method] = {
    "seqkd": SeqKD(),
    "kd": KD(label_weight=0.25),
    "gkd": GKD(on_policy=0.7),
    "gad, critic included": GAD(group=2, warmup=0.34, head_start=0, kl_weight=0.1),
    "gad, pooled critic": GAD(
        group=2, warmup=0.34, head_start=0, kl_weight=0.1, pooled=Pooling(replay=24)
    ),
    "gad, prompts: 4": GAD(group=2, prompts=4, warmup=0.34, head_start=0),
    "rskd": RSKD(draws=6, label_weight=0.25),
    "uld": ULD(),
    "span_kd": SpanKD(on_policy=0.5),
    "cot2align": CoT2Align(),
    "cot2align, unrolled": CoT2Align(cost="cosine", unroll=True),
    "kid": KID(share=0.5, label_weight=0.25),
    "kid, uncertain": KID(share=0.5, rule="uncertain", sample_temperature=1.0, beta=0.5),
    "taid": TAID(alpha=0.3, beta=0.5),
    "atkd": ATKD(),
    "minillm": MiniLLM(epochs=2, teacher_share=0.4),
    "distillm": DistiLLM(start=0.9, capacity=8, label_weight=0.25),
    "dpkd": DPKD(corpus_weight=0.5),
    "dpkd, sequences": DPKD(level="sequence", length_norm=True),
    "ammd": AMMD(discount=0.9, critic_steps=2, label_weight=0.5),
    "self_evolution_kd": SelfEvolutionKD(),
    "self_evolution_kd, fixed": SelfEvolutionKD(threshold="fixed", tau=0.2),
    "delta_kd": DeltaKD(label_weight=0.25, top_k=4),
    "delta_kd, difference": DeltaKD(form="difference", clamp=0.5),
    "skd": SKD(top_k=3, sample_temperature=1.0, sample_top_p=1.0),
    "plad": PLaD(warmup=0.0),
    "plad, margin": PLaD(warmup=0.0, version="margin", mean=False, refresh=2, beta=5.0),
    "pld": PLD(temperature=2.0),
    "preference": Preference(smoothing=0.1, anchor=0.5),
    "preference, redi": Preference(shape="linear", reference=False, mean=True, beta=1.0),
    "preference, hinge": Preference(
        shape="hinge", reference=False, beta=1.0, margin=1.0, anchor=0.3, anchor_over="answers"
    ),
    "preference, ipo": Preference(shape="squared", beta=0.2),
    "two populations": TwoPopulations(),
}
SAMPLING = [name for name, method in METHODS.items() if method.needs.rollouts and name != "dpkd"]
each = pytest.mark.parametrize("name", METHODS)
each_sampling = pytest.mark.parametrize("name", SAMPLING)


def uneven(batch: Batch) -> Batch:
    """Leaves out some rows and weighs others: counts differ between any two parts."""
    weights = torch.tensor([1.0, 0.0, 0.5, 1.0, 1.0])
    return batch.add_rows(mask=weights[batch.labels % 5])


EXACT = World(kind="text", exact=True, change=uneven)


def plain_sgd(method: Method, world: World = EXACT, **changes: Any) -> Any:
    """A run whose weights are linear in its gradients, so that no difference is made larger."""
    told = {"steps": STEPS, "batch": EXAMPLES, "lr": 0.5, "clip": None, "keep": STEPS + 1}
    return job(method, world, **{**told, "optimizer": Optimizer(name="sgd"), **changes})


@dataclass
class Spy:
    """What a run did, read from the side."""

    micros: list[int]
    costs: list[int]
    samples: list[Mapping[int, list[list[int]]]]


@pytest.fixture
def spy(monkeypatch: pytest.MonkeyPatch) -> Spy:
    """Micro-batches of each step and what an example of it costs; samples by their prompt's id."""
    seen = Spy([], [], [])
    split, rollout = loop._micro_batches, Run.rollout

    def watched_split(run: Run, batch: Batch) -> list[Batch]:
        parts = split(run, batch)
        seen.micros.append(len(parts))
        seen.costs.append(batch.cost // batch.size)
        return parts

    def watched_rollout(run: Run, batch: Batch, n: int = 1, **sampling: Any) -> Batch:
        made = rollout(run, batch, n, **sampling)
        found: dict[int, list[list[int]]] = {}
        for i, ids, real in zip(made.id.tolist(), made.ids, made.real, strict=True):
            found.setdefault(i, []).append(ids[real].tolist())
        seen.samples.append(found)
        return made

    monkeypatch.setattr(loop, "_micro_batches", watched_split)
    monkeypatch.setattr(Run, "rollout", watched_rollout)
    return seen


def difference(one: Any, other: Any) -> float:
    """Of losses, gradient norms and all players' final weights."""
    return max(gap(one.logs, other.logs), gap(one.final, other.final))


@each
def test_one_batch_of_eight_equals_its_micro_batches(name: str, spy: Spy) -> None:
    whole = steps(plain_sgd(METHODS[name]))
    assert spy.micros == [1] * STEPS
    assert gap(whole.states[0]["networks"]["student"], whole.final["student"]) > 0.01
    worst = 0.0
    for parts in (2, 4, 8):
        spy.micros.clear()
        budget = EXAMPLES // parts * max(spy.costs)
        split = steps(plain_sgd(METHODS[name], tokens_per_micro=budget if parts < 8 else 1))
        least = 4 if getattr(METHODS[name], "prompts", None) else 8  # a prompt is not torn
        assert spy.micros == [min(parts, least)] * STEPS
        worst = max(worst, difference(whole, split))
    note(name, "micro-batches", worst, CLOSE)


@each
def test_left_padding_equals_right_padding(name: str) -> None:
    def left(batch: Batch) -> Batch:
        whole = [row[r].tolist() for row, r in zip(batch.ids, batch.real, strict=True)]
        starts = prompts_of(batch)
        pairs = [(p, w[len(p) :]) for p, w in zip(starts, whole, strict=True)]
        return uneven(collate(pairs, batch.id, PAD, side="left"))

    right = steps(plain_sgd(METHODS[name]))
    moved = steps(plain_sgd(METHODS[name], replace(EXACT, change=left)))
    worst = difference(right, moved)
    note(name, "padding", worst, CLOSE)


@each_sampling
def test_a_seed_gives_the_same_samples_however_the_batch_is_split(name: str, spy: Spy) -> None:
    runs = []
    for seed, tokens in ((0, 10_000), (0, 1), (1, 10_000)):
        spy.samples.clear()
        steps(plain_sgd(METHODS[name], seed=seed, tokens_per_micro=tokens))
        runs.append(list(spy.samples))
    first, again, other = runs
    assert first
    assert first == again
    assert first[0] != other[0]


def test_a_sample_does_not_depend_on_its_company() -> None:
    student, batch = EXACT.student(), EXACT.data().batch(range(EXAMPLES))
    prompts, told = prompts_of(batch), Sampling(max_new_tokens=6)
    together = sample(student, prompts, batch.id, 3, seed=5, sampling=told)
    alone = [
        answer
        for prompt, i in zip(prompts, batch.id, strict=True)
        for answer in sample(student, [prompt], i[None], 3, seed=5, sampling=told)
    ]
    assert together == alone


@pytest.mark.parametrize("side", ["left", "right"])
def test_more_padding_leaves_the_scores_of_a_critic_alone(side: str) -> None:
    def wider(batch: Batch, by: int = 5) -> Batch:
        pad = (by, 0) if side == "left" else (0, by)
        made = {k: torch.nn.functional.pad(batch[k], pad) for k in ("ids", "positions", "real")}
        return batch.add(**made, last=batch.last + pad[0])

    critic = Scorer(EXACT.student().body())
    batch = EXACT.data().batch(range(EXAMPLES))
    scores = critic(batch)
    assert scores.std() > 1e-3
    worst = gap(scores, critic(wider(batch)))
    note("a critic's scores", "padding", worst, 1e-12)


@pytest.mark.parametrize("kind", ["exact", "dropout"])
def test_gad_without_an_adversarial_stage_is_seqkd(kind: str) -> None:
    world = World(kind="text", exact=kind == "exact")
    changes = {"steps": 4, "batch": 4}
    gad = steps(job(GAD(warmup=1, critic_from=1, head_start=0), world, **changes))
    seqkd = steps(job(SeqKD(), world, **changes))
    worst = gap(gad.final["student"], seqkd.final["student"])
    assert worst == 0
    assert gap(seqkd.final, seqkd.states[0]["networks"]) > 0


@each
def test_resumed_is_unbroken(name: str, tmp_path: Path) -> None:
    # AdamW: its moments must come back as well
    whole, again = broken_off(lambda: job(METHODS[name], EXACT, steps=4), 2, tmp_path)
    worst = max(gap(whole.logs, again.logs), gap(whole.states, again.states))
    note(name, "resumed", worst, SAME_BITS)
