"""Layers computed again in the backward pass: the same gradients, whoever speaks meanwhile."""

from contextlib import nullcontext

import pytest
import torch
from numerics import SAME_BITS, contract, note
from transformers import AutoConfig, AutoModelForCausalLM
from worlds import World, gap, job, steps

from stillroom.core import Failure
from stillroom.data.text import collate
from stillroom.engine.training import check
from stillroom.losses.divergences import forward_kl
from stillroom.losses.per_row import per_row
from stillroom.losses.policy import label_logp
from stillroom.methods.gad import GAD
from stillroom.methods.gkd import GKD
from stillroom.methods.kd import KD
from stillroom.methods.seqkd import SeqKD
from stillroom.models.adapters import adapted
from stillroom.models.text import CausalLM
from stillroom.nets.scorer import Scorer
from stillroom.teachers.local import Local

needs_peft = pytest.mark.extra("lora")
EOS = 1
SIZES = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 3, "vocab_size": 40}
SIZES |= {"num_attention_heads": 2, "max_position_embeddings": 64, "eos_token_id": EOS}
GROUPED = SIZES | {"num_key_value_heads": 1, "head_dim": 8, "pad_token_id": 0, "bos_token_id": None}
KINDS = {"llama": GROUPED, "gemma3_text": GROUPED | {"sliding_window": 4}, "windowed": SIZES}
DROPS = {"llama", "gemma3_text"}
BATCH = collate(
    [([5, 6, 7, 8], [9, 10, 11, 12, 13, EOS]), ([14], [15, EOS]), ([16, 17, 18], [19, 20, EOS])],
    torch.arange(3),
    0,
)


def network(kind, dropout):
    torch.manual_seed(0)
    drops = {"attention_dropout": dropout} if kind in DROPS else {}
    made = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **KINDS[kind], **drops))
    return CausalLM(made).double()


def filled(lm, seed):
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in lm.parameters():
            p.copy_(0.2 * torch.randn(p.shape, generator=draw, dtype=torch.float64))
    return lm


def kl(student, teacher, labels):
    return forward_kl(student, teacher) - label_logp(student, labels)


def score(player):
    return player(BATCH).square().sum()


def gradients(kind, *, again, dropout=0.0, between=nullcontext, twice=False):
    """Of a student toward its base, and of its critic: all speak, then both learn."""
    student = filled(adapted(network(kind, dropout), rank=3, dropout=dropout), 1).train()
    if again:
        student.checkpointing()
    teacher = Local(student.base())
    critic = Scorer(filled(student.body(), 2)).double().train()
    torch.manual_seed(5)
    loss = per_row(kl, student(BATCH), teacher(BATCH), BATCH.labels).sum()
    judged = score(critic)
    speakers = {"student": student, "teacher": teacher.network, "critic": critic.body}
    with between(speakers):
        if twice:
            torch.autograd.grad(loss, list(student.parameters()), retain_graph=True)
        loss.backward()
        judged.backward()
    players = {"student": student, "critic": critic}
    return {k: {n: p.grad for n, p in m.named_parameters()} for k, m in players.items()}


def equal(one, other):
    found = [gradient for player in one.values() for gradient in player.values()]
    assert all(g is not None and g.abs().max() > 0 for g in found)
    return gap(one, other) == 0


@needs_peft
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_gradients_are_equal_to_the_bit(kind, dropout):
    assert equal(
        gradients(kind, again=True, dropout=dropout), gradients(kind, again=False, dropout=dropout)
    )


@needs_peft
@pytest.mark.parametrize("name", ["student", "teacher", "critic"])
def test_whoever_is_on_in_the_backward_pass(name):
    """An adapter is on, or none, while layers that ran with another are computed again."""
    told = {"dropout": 0.3, "between": lambda speakers: speakers[name].eval().on()}
    plain = gradients("llama", again=False, dropout=0.3)
    assert equal(gradients("llama", again=True, **told), plain)


@needs_peft
def test_a_second_backward_pass_is_right_too():
    assert equal(gradients("llama", again=True, twice=True), gradients("llama", again=False))


@needs_peft
def test_dropout_makes_a_difference_and_other_numbers_are_drawn_after():
    calm, loud = (gradients("llama", again=True, dropout=d) for d in (0.0, 0.3))
    assert gap(calm, loud) > 1e-3
    after = []
    for again in (True, False):
        gradients("llama", again=again, dropout=0.3)
        after.append(torch.rand(3))
    assert torch.equal(*after)


@pytest.mark.parametrize("lora", [False, pytest.param(True, marks=needs_peft)])
def test_each_layer_runs_again_in_training_alone(lora):
    student = network("llama", 0.0)
    student = adapted(student) if lora else student
    calls = []
    count = len(student.model.base_model.layers)
    for layer in student.model.base_model.layers:
        layer.mlp.register_forward_pre_hook(lambda *_: calls.append(1))
    for again in (False, True):
        if again:
            student.checkpointing()
        student.eval()(BATCH)
        assert len(calls) == count
        calls.clear()
        loss = student.train()(BATCH).hidden.square().sum()
        assert len(calls) == count
        loss.backward()
        assert len(calls) == (2 if again else 1) * count
        calls.clear()


# ---- whole runs


def run(method, *, checkpointing, lora):
    world = World(kind="text")
    student = world.student()
    told = {"steps": 4, "every": 4, "checkpointing": checkpointing, "student": student}
    if lora:
        torch.manual_seed(3)
        student = told["student"] = adapted(student, rank=2, dropout=0.1)
        if not method.needs.teacher <= {"text"}:
            told["teachers"] = {"teacher": Local(student.base())}
    return steps(job(method, world, **told))


GAD_ALL = GAD(group=2, warmup=0.5, head_start=0, kl_weight=0.1)
METHODS = [SeqKD(), KD(), GKD(on_policy=1.0), GAD_ALL]


@contract
@pytest.mark.parametrize("lora", [False, pytest.param(True, marks=needs_peft)])
@pytest.mark.parametrize("method", METHODS, ids=lambda m: type(m).__name__)
def test_a_run_has_the_same_numbers(method, lora):
    one, other = (run(method, checkpointing=c, lora=lora) for c in (True, False))
    assert gap(one.states[0]["networks"]["student"], one.final["student"]) > 1e-4
    note(type(method).__name__.lower(), "checkpointing", gap(one.states, other.states), SAME_BITS)
    assert one.logs == other.logs


# ---- refused


def test_a_network_that_is_no_language_model_is_refused_before_the_first_step():
    with pytest.raises(Failure, match=r"train\.checkpointing: is for language models"):
        check(job(KD(), World(kind="classes"), checkpointing=True))


def test_a_model_whose_layers_do_not_know_how_is_refused(monkeypatch):
    student = World(kind="text").student()
    monkeypatch.setattr(type(student.model), "supports_gradient_checkpointing", False)
    with pytest.raises(Failure, match=r"train\.checkpointing: LlamaForCausalLM does not know how"):
        check(job(SeqKD(), World(kind="text"), student=student, checkpointing=True))
