"""Whole runs whose models pack: the numbers of padded runs, whoever reads."""

import pytest
import torch
from numerics import contract, note
from worlds import EOS, PAD, VOCABULARY, World, gap, job

from stillroom.core import Failure
from stillroom.engine.record import Record
from stillroom.engine.training import check, train
from stillroom.methods.gad import GAD
from stillroom.methods.gkd import GKD
from stillroom.methods.kd import KD
from stillroom.methods.seqkd import SeqKD
from stillroom.models import text
from stillroom.models.adapters import adapted
from stillroom.models.packing import Packed, Padded
from stillroom.models.view import narrow
from stillroom.nets.pooled import Pooling
from stillroom.teachers.local import Local

needs_peft = pytest.mark.extra("lora")
WORLD = World(kind="text", exact=True)
SIZES = {"num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 24}
SIZES |= {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}


def network(seed, width):
    """A gpt2 computes in float64 throughout."""
    torch.manual_seed(seed)
    made = text.build("gpt2", VOCABULARY, EOS, PAD, **SIZES, hidden_size=width).double()
    return filled(made)


def filled(model):
    for p in model.parameters():
        torch.nn.init.normal_(p, 0.0, 0.3)
    return model


@pytest.fixture
def read(monkeypatch):
    """What was read of which batches: (layout, method, whether rows hold several texts)."""
    found = []

    def watch(kind, name):
        real = getattr(kind, name)

        def watched(self, values):
            found.append((kind.__name__, name, len(values) < len(self.real)))
            return real(self, values)

        monkeypatch.setattr(kind, name, watched)

    for kind in (Padded, Packed):
        for name in ("at_rows", "everywhere"):
            watch(kind, name)
    return found


def run(folder, method, *, packing, lora=False, view=False, **more):
    student, teacher = network(1, 8), network(2, 12)
    if view:
        for one in (student, teacher):
            narrow(one, torch.arange(VOCABULARY))
    if lora:
        student = filled(adapted(student, rank=2))  # at its start it would be the teacher
        teacher = student.base()
    told = {"student": student, "teachers": {"teacher": Local(teacher)}, "packing": packing}
    told |= {"steps": 3, "metrics": True, "every": 3, "lr": 0.01, **more}
    result = train(job(method, WORLD, **told), folder)
    lines = Record(folder).lines("metrics.jsonl")
    kept = [{k: v for k, v in line.items() if not k.startswith("time/")} for line in lines]
    return dict(result.student.state_dict()), kept, dict(result.test)


GAD_ALL = GAD(group=2, warmup=0.4, head_start=0, kl_weight=0.1)
GAD_POOLED = GAD(group=2, warmup=0.4, head_start=0, pooled=Pooling(layers=1))
CASES = {
    "seqkd": (SeqKD(), {}),
    "kd": (KD(), {}),
    "kd in micro-batches": (KD(), {"tokens_per_micro": 20, "batch": 8}),
    "kd in a view": (KD(), {"view": True}),
    "kd again": (KD(), {"checkpointing": True}),
    "kd lora": (KD(), {"lora": True, "checkpointing": True}),
    "gkd": (GKD(on_policy=1.0), {}),
    "gad": (GAD_ALL, {}),
    "gad lora": (GAD_ALL, {"lora": True}),
    "gad pooled": (GAD_POOLED, {}),
    "gad of another size": (GAD(group=2, warmup=0.4, critic={"num_hidden_layers": 1}), {}),
}


@contract
@pytest.mark.parametrize(
    "case", [pytest.param(name, marks=[needs_peft] * ("lora" in name)) for name in CASES]
)
def test_a_run_has_the_numbers_of_a_padded_one(case, read, tmp_path):
    method, told = CASES[case]
    wanted = run(tmp_path / "padded", method, packing=False, **told)
    assert {kind for kind, _, _ in read} == {"Padded"}
    read.clear()
    found = run(tmp_path / "packed", method, packing=True, **told)
    row = case if "pooled" in case else case.split()[0]
    note(row, "packed", gap(found, wanted), 1e-9)
    assert gap(wanted[1][0], wanted[1][-1]) > 0
    packed = {name for kind, name, several in read if kind == "Packed" and several}
    assert packed == {"at_rows", "everywhere"} if "gad" in case else {"at_rows"}


def test_nobody_in_a_run_reads_padded_batches(tmp_path, monkeypatch):
    """Only the probes do, which read one text at a time."""
    sizes = []
    real = Padded.__init__

    def made(self, batch):
        real(self, batch)
        if type(self) is Padded:
            sizes.append(batch.size)

    monkeypatch.setattr(Padded, "__init__", made)
    for method in (GAD_ALL, GAD_POOLED, KD()):
        run(tmp_path / type(method).__name__ / str(len(sizes)), method, packing=True)
    assert set(sizes) == {1}


def test_a_network_that_is_no_language_model_is_refused():
    with pytest.raises(Failure, match=r"train\.packing: is for language models; leave it out"):
        check(job(KD(), World(kind="classes"), packing=True))


@pytest.mark.parametrize("who", ["student", "teacher"])
def test_a_model_that_mixes_texts_up_is_refused_before_the_first_step(who):
    mixes = World(kind="text", exact=True).student()
    told = {"student": network(1, 8), "teachers": {"teacher": Local(network(2, 12))}}
    told |= {"student": mixes} if who == "student" else {"teachers": {"teacher": Local(mixes)}}
    with pytest.raises(Failure, match=r"train\.packing: windowed with 'sdpa' attention"):
        check(job(KD(), WORLD, packing=True, **told))
    check(job(KD(), WORLD, **told))
