"""What processes of sharded runs do and check, each beside the others."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import launch
import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import AutoConfig, AutoModelForCausalLM

from stillroom.core import Batch, Signals
from stillroom.data.text import collate
from stillroom.engine import training
from stillroom.engine.parallel import Processes
from stillroom.engine.sharding import Sharding, settle
from stillroom.losses.divergences import jsd
from stillroom.losses.per_row import per_row
from stillroom.losses.policy import label_logp
from stillroom.models.text import CausalLM
from stillroom.models.view import narrow, narrowed
from stillroom.rollouts.guided import Guided, Interleaved, Mixed
from stillroom.rollouts.sampling import Sampling, sample
from stillroom.teachers.local import Local

EOS = 1
SIZES = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 3, "vocab_size": 41}
SIZES |= {"num_attention_heads": 2, "max_position_embeddings": 64, "eos_token_id": EOS}
GROUPED = SIZES | {"num_key_value_heads": 1, "head_dim": 8, "pad_token_id": 0, "bos_token_id": None}
MODELS = {
    "llama": ("llama", GROUPED | {"tie_word_embeddings": False}),
    "llama tied": ("llama", GROUPED | {"tie_word_embeddings": True}),
    "gemma tied": ("gemma3_text", GROUPED | {"sliding_window": 4, "tie_word_embeddings": True}),
    "windowed": ("windowed", SIZES),
}
PAIRS = [
    ([5, 6, 7, 8], [9, 10, 11, 12, 13, EOS]), ([14], [15, EOS]),
    ([16, 17, 18], [19, 20, EOS]), ([21, 22], [23, 24, 25, 26, EOS]),
]  # fmt: skip
LR = 0.5
ROUNDED = 0.05
"""How far from float32, of its norm, the gradient of a weight in bfloat16 may be."""


def model(name: str, dtype: torch.dtype = torch.float64, seed: int = 0) -> CausalLM:
    kind, sizes = MODELS[name]
    torch.manual_seed(seed)
    made = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **sizes))
    return CausalLM(made.to(dtype))


def micros() -> list[list[Batch]]:
    """Micro-batches by process: none alike in size or rows."""
    whole = collate(PAIRS, torch.arange(len(PAIRS)), 0)
    return [[whole.part(2 * r, 2 * r + 1), whole.part(2 * r + 1, 2 * r + 2)] for r in range(2)]


def nll(student: Tensor, _teacher: Tensor | None, labels: Tensor) -> Tensor:
    return -label_logp(student, labels)


def near(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    return jsd(student, teacher, beta=0.3)


def loss(network: Any, teacher: Any, batch: Batch) -> Tensor:
    """Two passes through one graph, with a word between that leaves no trace."""
    said: Signals = network(batch)
    with torch.no_grad():
        network(batch)
        target = teacher(batch)
    first = per_row(near, said, target, batch.labels)
    return first.sum() + 0.3 * per_row(nll, network(batch), None, batch.labels).sum()


def in_shares(network: nn.Module) -> None:
    settle(network)
    for name, parameter in network.named_parameters():
        assert isinstance(parameter, DTensor), f"{name} is whole"
        most = -(-len(parameter) // parameter.device_mesh.size())
        assert parameter.to_local().shape[0] <= most, f"{name} is not cut"


def gradients(_out: Path) -> None:
    """Of two processes in shares: those that one whole network gets from all micro-batches."""
    processes = Processes()
    again = ["gemma tied", "windowed"]
    for i, name in enumerate([*MODELS, *again]):
        sharding = Sharding(processes, bf16=False)
        plain, teacher = model(name).train(), model(name, seed=1).requires_grad_(False)
        if i >= len(MODELS):
            plain.checkpointing()
        shares, told = (sharding.shard(copy.deepcopy(n)) for n in (plain, teacher))
        in_shares(shares)
        in_shares(told)
        for _ in range(2):  # the second time on weights that have moved
            _backward(plain, teacher, [m for own in micros() for m in own])
            _backward(shares, told, micros()[processes.rank])
            _compare(name, plain, shares)
            _descend(plain)
            _descend(shares)
        said = shares(micros()[processes.rank][0])
        assert not said.head.weight._backward_hooks, "hooks pile up"


def gradients_in_a_view(_out: Path) -> None:
    """The same on a part of the vocabulary, with the head and what is tied to it frozen."""
    processes = Processes()
    tokens = torch.tensor(sorted({token for pair in PAIRS for ids in pair for token in ids}))
    for name in MODELS:
        plain, teacher = model(name), model(name, seed=1).requires_grad_(False)
        for network in (plain, teacher):
            narrow(network, tokens)
        sharding = Sharding(processes, bf16=False)
        shares, told = (sharding.shard(copy.deepcopy(n)) for n in (plain, teacher))
        for _ in range(2):
            with narrowed(plain, teacher, shares, told):
                _backward(plain, teacher, [m for own in micros() for m in own])
                _backward(shares, told, micros()[processes.rank])
            _compare(name, plain, shares)
            _descend(plain)
            _descend(shares)


def rounded_gradients(_out: Path) -> None:
    """In bfloat16 beside those of one network in float32."""
    processes = Processes()
    for name in MODELS:
        plain, teacher = (model(name, torch.float32, seed) for seed in (0, 1))
        shares, told = (
            Sharding(processes, bf16=True).shard(copy.deepcopy(n)) for n in (plain, teacher)
        )
        gathered: set[torch.dtype] = set()
        first: Any = next(m for m in shares.modules() if isinstance(m, nn.Linear))
        first.register_forward_hook(lambda m, _given, _said, to=gathered: to.add(m.weight.dtype))
        _backward(plain, teacher, [m for own in micros() for m in own])
        with torch.autocast("cpu", torch.bfloat16):
            _backward(shares, told, micros()[processes.rank])
        _compare(name, plain, shares, ROUNDED)
        assert gathered == {torch.bfloat16}
        settle(shares)
        assert {p.dtype for p in shares.parameters()} == {torch.float32}


def _backward(network: Any, teacher: Any, batches: list[Batch]) -> None:
    said = [network(batch) for batch in batches]
    for batch in batches:
        (loss(network, teacher, batch) / 7).backward()
    for batch, before in zip(batches, said, strict=True):  # their heads have waited meanwhile
        per_row(nll, before, None, batch.labels).sum().backward()


def _compare(name: str, plain: CausalLM, shares: nn.Module, bound: float = 1e-10) -> None:
    settle(shares)
    found = dict(shares.named_parameters())
    for path, parameter in plain.named_parameters():
        expected, share = parameter.grad, found[path].grad
        if not parameter.requires_grad:
            assert share is None
            continue
        assert expected is not None
        assert isinstance(share, DTensor), path
        gap = float((share.full_tensor() - expected).norm() / expected.norm())
        assert gap < bound, f"{name}, {path}: {gap}"


@torch.no_grad()
def _descend(network: nn.Module) -> None:
    for parameter in filter(lambda p: p.requires_grad, network.parameters()):
        assert parameter.grad is not None
        parameter -= LR * parameter.grad
        parameter.grad = None


def answers(_out: Path) -> None:
    """Processes whose answers end at different times: the same answers as of a whole network."""
    processes = Processes()
    rank, how = processes.rank, Sampling(max_new_tokens=40)
    for name in MODELS:
        plain = model(name)
        plain.stop_ids = tuple(range(EOS, EOS + 6))
        shares: Any = Sharding(processes, bf16=False).shard(copy.deepcopy(plain))
        prompts = [p for p, _ in PAIRS][rank : 2 + 2 * rank]
        id = torch.arange(len(prompts)) + 10 * rank
        passes, speak = [0], shares.next_logits

        def counted(
            *given: Any, passes: list[int] = passes, speak: Callable[..., Any] = speak
        ) -> Tensor:
            passes[0] += 1
            return speak(*given)

        shares.next_logits = counted
        longest: list[list[int]] = []
        for seed in range(6):
            found = sample(shares, prompts, id, 2, seed=seed, sampling=how)
            assert found == sample(plain, prompts, id, 2, seed=seed, sampling=how)
            longest.append(processes.everyone(max(len(a) for a in found)))
        assert any(a < b for a, b in longest), longest
        assert any(a > b for a, b in longest), longest
        assert len(set(processes.everyone(passes[0]))) == 1


def guided_answers(_out: Path) -> None:
    """The same of a student and its guide, which are both asked as often on every process."""
    processes = Processes()
    rank, how = processes.rank, Sampling(max_new_tokens=40)
    for name, rule in (("llama", Interleaved(top_k=8)), ("windowed", Mixed(share=0.4))):
        whole = [model(name, seed=seed) for seed in (0, 1)]
        whole[0].stop_ids = tuple(range(EOS, EOS + 6))
        cut: Any = [Sharding(processes, bf16=False).shard(copy.deepcopy(lm)) for lm in whole]
        prompts = [p for p, _ in PAIRS][rank : 2 + 2 * rank]
        id = torch.arange(len(prompts)) + 10 * rank
        longest: list[list[int]] = []
        for seed in range(6):
            found, wanted = (
                Guided(own, other, rule).sample(prompts, id, 2, seed=seed, sampling=how)
                for own, other in (cut, whole)
            )
            assert found.tokens == wanted.tokens
            for label, values in wanted.notes.items():
                torch.testing.assert_close(found.notes[label], values)
            longest.append(processes.everyone(max(len(a) for a in found.tokens)))
        assert any(a < b for a, b in longest), longest
        assert any(a > b for a, b in longest), longest


def run(name: str, out: Path, **told: Any) -> None:
    """A tiny run of ``launch`` in shares: at each step all weights, and teachers', are cut."""
    iterate = training.iterate

    def watched(run: Any, batch: Batch) -> dict[str, float]:
        log = iterate(run, batch)
        live = [t.network for t in run.teachers.values() if isinstance(t, Local)]
        for network in [*run.players.values(), *live]:
            in_shares(network)
        return log

    training.iterate = watched
    getattr(launch, name)(out, sharding=True, **told)


def shipped(out: Path) -> None:
    """A greedy run, spoilt after step 8; what it gives back speaks as the shares did."""
    lr = [{"peak": 1e-2, "until": 8}, {"peak": 1.0}]
    done = launch.distil(
        "seqkd",
        out,
        steps=12,
        student={"lm": launch.WINDOWED},
        data={"world": launch.WORLD},
        train={"batch": 8, "lr": lr, "sharding": True, "tokens_per_micro": 20},
        eval={"every": 4, "metrics": ["likelihood"], "select": "nll"},
        sampling={"temperature": 0, "max_new_tokens": 9},
    )
    assert not any(isinstance(p, DTensor) for p in done.student.parameters())
    torch.save(done.student.state_dict(), out / f"given-{os.environ['RANK']}.pt")
