"""LoRA in whole runs: who moves, what is saved, taken up again, and shipped."""

import shutil

import pytest
import torch
from safetensors.torch import load_file
from worlds import World, broken_off, gap, job, steps

from stillroom.engine import checkpoint
from stillroom.engine.training import train
from stillroom.methods.gad import GAD
from stillroom.methods.gkd import GKD
from stillroom.methods.kd import KD
from stillroom.methods.seqkd import SeqKD
from stillroom.models import text
from stillroom.models.adapters import adapted
from stillroom.nets.pooled import Pooling
from stillroom.teachers.local import Local

pytest.importorskip("peft", reason="the extra 'lora' is not installed")
pytestmark = pytest.mark.extra("lora")

WORLD = World(kind="text")
STAGES = {"group": 2, "warmup": 0.5, "critic_from": 0.5, "head_start": 0, "kl_weight": 0.1}
RUNS = {
    "seqkd": SeqKD(),
    "kd": KD(label_weight=0.5),
    "gkd": GKD(on_policy=1.0),
    "gad": GAD(**STAGES),
    "gad: critic alone": GAD(**STAGES | {"critic_alone": 0.5}),
    "gad: cross-entropy": GAD(**STAGES, critic_loss="cross-entropy"),
    "gad: frozen critic": GAD(**STAGES, critic_frozen=True),
    "gad: no reference": GAD(**STAGES | {"kl_weight": 0.0}),
    "gad: pooled critic": GAD(**STAGES, pooled=Pooling(replay=8)),
    "gad: another critic": GAD(**STAGES, critic={"num_hidden_layers": 2}),
}
every_run = pytest.mark.parametrize("method", RUNS.values(), ids=RUNS)


def student():
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return adapted(WORLD.student(), rank=2, dropout=0.1)


def run_of(method, student, **told):
    teachers = {}
    if not method.needs.teacher <= {"text"}:  # its own base teaches
        teachers = {"teachers": {"teacher": Local(student.base())}}
    return job(method, WORLD, **{"steps": 4, **told}, student=student, **teachers)


def base_of(lm):
    return {k: v.clone() for k, v in lm.model.state_dict().items() if ".lora_" not in k}


@every_run
def test_only_adapters_and_heads_of_declared_players_move(method):
    lm = student()
    before = base_of(lm)
    trace = steps(run_of(method, lm, every=1, keep=5, metrics=True))
    assert gap(base_of(lm), before) == 0
    start, end = trace.states[0]["networks"], trace.final
    assert start.keys() == end.keys() >= {"student"}
    assert all("lora_" in name for name in end["student"])
    moved = {name for name in start if gap(start[name], end[name]) > 1e-6}
    learns = {"critic", "reference", "watch"} & set(start)  # GAD's reference is set once anew
    assert moved == {"student"} | learns
    if method == RUNS["gad"]:
        names = {k for k in start["critic"] if not k.startswith("body.weights.")}
        assert names == {"head.weight", "head.bias"}
        assert all("lora_" in k for k in set(start["critic"]) - names)


@every_run
def test_it_goes_on_bit_for_bit(method, tmp_path):
    whole, again = broken_off(lambda: run_of(method, student(), metrics=True), 2, tmp_path)
    assert gap(whole.states, again.states) == 0
    assert whole.logs == again.logs


def test_the_base_teaches_what_the_model_said_before(tmp_path):
    lm = student()
    teacher = Local(lm.base())
    batch = WORLD.data().batch(range(4))
    wanted = WORLD.student().eval()(batch).logits
    start = {k: v.clone() for k, v in lm.state_dict().items()}
    train(run_of(SeqKD(), lm), tmp_path / "run")
    assert gap(lm.state_dict(), start) > 1e-3
    assert torch.equal(teacher(batch).logits, wanted)
    assert not torch.equal(lm.eval()(batch).logits, wanted)
    assert teacher.signals >= {"logits", "hidden"}


def test_a_student_is_pulled_toward_its_base():
    """Forward KL to the base has its least value, 0, where the adapter adds nothing."""
    lm = student()
    with torch.no_grad():
        for p in lm.parameters():
            p.normal_(std=0.3, generator=torch.Generator().manual_seed(1))
    logs = steps(run_of(KD(), lm, steps=40, lr=0.02, batch=8)).logs
    losses = [log["loss/student/loss"] for log in logs]
    assert losses[-1] < 0.5 * losses[0]


def test_one_adapter_teaches_another(tmp_path):
    one = student()
    train(run_of(SeqKD(), one), tmp_path / "one")
    batch = WORLD.data().batch(range(4))
    other = student()
    teacher = Local(other.other(str(tmp_path / "one" / "student" / "adapter")))
    assert torch.equal(teacher(batch).logits, one.eval()(batch).logits)
    size = sum(p.numel() for p in other.parameters())
    trace = steps(job(KD(), WORLD, student=other, teachers={"teacher": teacher}, every=3, steps=3))
    assert gap(trace.states[0]["networks"]["student"], trace.final["student"]) > 1e-6
    assert torch.equal(teacher(batch).logits, one.eval()(batch).logits)
    assert sum(v.numel() for v in trace.final["student"].values()) == size


def test_the_best_adapter_is_kept_and_shipped_merged(tmp_path):
    lm = student()
    # a step so large that the first reading stays the best
    told = {"metrics": True, "select": "nll", "every": 1, "keep": 9, "lr": 5.0}
    result = train(run_of(SeqKD(), lm, **told), tmp_path)
    best = load_file(next((tmp_path / "checkpoints").glob("best-*")))
    assert all("lora_" in name for name in best)
    assert gap(dict(lm.state_dict()), best) == 0
    step = result.info["selected_step"]
    last = checkpoint.load(checkpoint.saved(tmp_path / "checkpoints")[-1])
    assert step < 4
    assert gap(last["players"]["networks"]["student"], best) > 1.0
    batch = WORLD.data().batch(range(4))
    shipped = text.load(str(tmp_path / "student")).eval()
    torch.testing.assert_close(shipped(batch).logits, lm.eval()(batch).logits, rtol=1e-5, atol=1e-6)
    shutil.rmtree(tmp_path / "checkpoints")  # finished: only the student is read
    again = train(run_of(SeqKD(), student(), **told), tmp_path)
    assert not again.fresh
    assert gap(dict(again.student.state_dict()), best) == 0
