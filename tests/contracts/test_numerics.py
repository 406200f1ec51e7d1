"""Cells of the numerics contract that no other test has at hand: policy losses, the head, bf16."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from numerics import contract, note
from torch import Tensor
from worlds import World, job, steps

from stillroom.core import Batch, Head, Signals
from stillroom.engine.run import Run
from stillroom.losses import _one_pass, policy
from stillroom.losses.divergences import jsd
from stillroom.losses.per_row import per_row
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

pytestmark = contract
LABELS = torch.tensor([2, 0, 1, 1])


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# ---- losses of policies, by plain Python


def probabilities(row: list[float]) -> list[float]:
    return [math.exp(z) / sum(map(math.exp, row)) for z in row]


def surrogate(logp: float, old: float, advantage: float) -> float:
    ratio = math.exp(logp - old)
    kept = max(0.8, min(1.2, ratio))
    return -min(ratio * advantage, kept * advantage)


ON_LOGITS: dict[str, tuple[Callable, Callable]] = {
    "label_logp": (
        lambda z: policy.label_logp(z, LABELS.expand(z.shape[:-1])),
        lambda row, i: math.log(probabilities(row)[LABELS[i]]),
    ),
    "entropy": (policy.entropy, lambda row, _: -sum(p * math.log(p) for p in probabilities(row))),
}
ON_NUMBERS: dict[str, tuple[Callable, Callable]] = {
    "bradley_terry": (policy.bradley_terry, lambda w, b, _: math.log(1 + math.exp(b - w))),
    "k3": (policy.k3, lambda logp, ref, _: math.exp(ref - logp) - (ref - logp) - 1),
    "clipped_surrogate": (lambda p, o, a: policy.clipped_surrogate(p, o, a, 0.2), surrogate),
}


@pytest.mark.parametrize("name", ON_LOGITS)
def test_a_loss_on_logits_is_its_sum(name: str) -> None:
    f, oracle = ON_LOGITS[name]
    logits = noise(4, 5).requires_grad_()
    rows = enumerate(logits.tolist())
    wanted = torch.tensor([oracle(row, i) for i, row in rows], dtype=torch.float64)
    note(name, "oracle", worst(f(logits), wanted), 1e-12)
    (found,) = torch.autograd.grad(f(logits).sum(), logits)
    note(name, "gradient", worst(found, differences(f, logits.detach())), 1e-8)
    low = logits.detach().bfloat16()
    note(name, "bf16", worst(f(low), f(low.double())), 1e-5)


@pytest.mark.parametrize("name", ON_NUMBERS)
def test_a_loss_on_numbers_is_its_formula(name: str) -> None:
    f, oracle = ON_NUMBERS[name]
    given = [0.3 * noise(50, seed=seed) for seed in range(3)]
    inputs = given if name == "clipped_surrogate" else given[:2]
    rows = zip(*(g.tolist() for g in given), strict=True)
    wanted = torch.tensor([oracle(*row) for row in rows], dtype=torch.float64)
    note(name, "oracle", worst(f(*inputs), wanted), 1e-12)
    first = inputs[0].clone().requires_grad_()
    (found,) = torch.autograd.grad(f(first, *inputs[1:]).sum(), first)
    slope = (f(first + 1e-6, *inputs[1:]) - f(first - 1e-6, *inputs[1:])) / 2e-6
    note(name, "gradient", worst(found, slope), 1e-8)


def differences(f: Callable[[Tensor], Tensor], at: Tensor, step: float = 1e-6) -> Tensor:
    """Gradient of values a row by the columns of the row."""
    moves = torch.eye(at.shape[1], dtype=at.dtype)[:, None] * step
    return ((f(at + moves) - f(at - moves)) / (2 * step)).T


def worst(one: Tensor, other: Tensor) -> float:
    return (one.double() - other.double()).abs().max().item()


# ---- through the head


def objective(student: Tensor, teacher: Tensor, labels: Tensor, weight: Tensor) -> Tensor:
    return weight * jsd(student, teacher, beta=0.3) - policy.label_logp(student, labels)


def through_the_head(kind: torch.dtype, *, dense: bool = False) -> list[Tensor]:
    """Value and gradients by states, head and bias; numbers that bfloat16 has, in ``kind``."""
    rounded = [noise(*shape, seed=i).bfloat16() for i, shape in enumerate(SHAPES)]
    hidden, weight, bias, theirs, their_weight = (r.to(kind) for r in rounded)
    leaves = [x.requires_grad_() for x in (hidden, weight, bias)]
    labels, factor = torch.arange(23) % 11, torch.linspace(0.5, 2, 23, dtype=torch.float64)
    if dense:
        scores = 3 * torch.tanh(0.7 * (hidden @ weight.T + bias) / 3)
        value = objective(scores, theirs @ their_weight.T, labels, factor)
    else:
        student = Signals(hidden=hidden, head=Head(weight, bias, scale=0.7, soft_cap=3.0))
        teacher = Signals(hidden=theirs, head=Head(their_weight))
        value = per_row(objective, student, teacher, labels, weight=factor)
    return [value.detach(), *torch.autograd.grad(value.mean(), leaves)]


SHAPES = [(23, 5), (11, 5), (11,), (23, 4), (11, 4)]


def apart(one: list[Tensor], other: list[Tensor]) -> float:
    return max(worst(a, b) for a, b in zip(one, other, strict=True))


def test_the_pass_through_the_head(monkeypatch: pytest.MonkeyPatch) -> None:
    value, *slopes = through_the_head(torch.float64)
    true, *gradients = through_the_head(torch.float64, dense=True)
    note("per_row", "oracle", worst(value, true), 1e-12)
    note("per_row", "gradient", apart(slopes, gradients), 1e-12)
    low = through_the_head(torch.bfloat16)  # gradients are rounded once, at the end
    note("per_row", "bf16", worst(low[0], true), 1e-5)
    rounded = [(a - b).abs() / b.abs().max() for a, b in zip(low[1:], gradients, strict=True)]
    assert max(r.max().item() for r in rounded) < 2**-8
    for sizes in ((1, 2048, 1), (5, 4, 30), (23, 3, 1000)):
        for name, size in zip(("MOST_ROWS", "TILE", "SLICE"), sizes, strict=True):
            monkeypatch.setattr(_one_pass, name, size)
        note("per_row", "blocks", apart(through_the_head(torch.float64), [value, *slopes]), 1e-12)


# ---- steps in bfloat16


GAD_ALL = {"group": 2, "warmup": 0.34, "head_start": 0, "kl_weight": 0.1}
METHODS = {"seqkd": SeqKD(), "kd": KD(), "gkd": GKD(on_policy=0.7), "gad": GAD(**GAD_ALL)}
METHODS |= {"rskd": RSKD(draws=6), "uld": ULD(), "span_kd": SpanKD(on_policy=0.5)}
METHODS |= {"cot2align": CoT2Align()}
METHODS |= {"taid": TAID(alpha=0.3), "atkd": ATKD()}
METHODS |= {"kid": KID()}
METHODS |= {"skd": SKD()}
METHODS |= {"minillm": MiniLLM(epochs=2)}
METHODS |= {"distillm": DistiLLM(start=0.9)}
METHODS |= {"dpkd": DPKD(level="sequence"), "ammd": AMMD()}
METHODS |= {"self_evolution_kd": SelfEvolutionKD(), "delta_kd": DeltaKD()}
METHODS |= {"plad": PLaD(warmup=0.34)}
METHODS |= {"preference": Preference(anchor=0.5), "pld": PLD()}
METHODS |= {"gad_pooled": GAD(**GAD_ALL, pooled=Pooling(replay=24))}


@pytest.mark.parametrize("name", METHODS)
def test_losses_in_bfloat16_are_near_those_in_float32(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By 1 + |loss|, of the same samples: one that is drawn anew may be another."""
    rollout, said = Run.rollout, []

    def kept(*given: Any, **told: Any) -> Batch:
        said.append(rollout(*given, **told))
        return said[-1]

    def losses(precision: str) -> list[dict[str, float]]:
        given = job(METHODS[name], World(kind="text"), batch=8, precision=precision)
        return [{k: v for k, v in log.items() if k[:5] == "loss/"} for log in steps(given).logs]

    monkeypatch.setattr(Run, "rollout", kept)
    full = losses("fp32")
    monkeypatch.setattr(Run, "rollout", lambda *_given, **_told: said.pop(0))
    low = losses("bf16")
    assert not said
    pairs = [(a[k], b[k]) for a, b in zip(full, low, strict=True) for k in a]
    gaps = [abs(a - b) / (1 + abs(a)) for a, b in pairs]
    assert max(gaps) > 0
    note(name, "bf16", max(gaps), 0.01)
