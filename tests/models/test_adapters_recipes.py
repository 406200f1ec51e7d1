"""LoRA as a recipe tells it: the student's adapter, teachers on its base, healing, processes."""

import json
from pathlib import Path

import launch
import pytest
import torch
from safetensors.torch import load_file
from worlds import gap

from stillroom.api import run
from stillroom.config.build import build
from stillroom.config.recipe import make
from stillroom.config.students import heal_recipe
from stillroom.core import Failure
from stillroom.data.marked_orders import EOS, PAD, VOCABULARY
from stillroom.engine import checkpoint
from stillroom.models import text
from stillroom.models.adapters import AdaptedLM, adapted

pytest.importorskip("peft", reason="the extra 'lora' is not installed")
pytestmark = pytest.mark.extra("lora")

HEAD = len(VOCABULARY) + 7
LM = {"lm": {"model_type": "windowed"}}
LORA = {"rank": 2, "alpha": 4.0, "targets": ["qkv_proj", "mlp.0"]}
TOLD = {
    "method": {"name": "seqkd"},
    "student": {**LM, "lora": LORA},
    "teacher": {"recorded": True},
    "data": {"world": {"name": "marked_orders", "prompts": 64}},
    "train": {"steps": 2, "batch": 8, "lr": 0.05, "checkpointing": True},
    "eval": {"metrics": ["likelihood"]},
    "run": {"threads": 1},
    "sampling": {"max_new_tokens": 9},
}
KD = {"name": "kd", "label_weight": 0.5}


def recipe(**sections):
    return make({**TOLD, **sections}, folder=Path())


@pytest.fixture(autouse=True)
def _kept_apart(tmp_path, monkeypatch):
    monkeypatch.setenv("STILLROOM_CACHE", str(tmp_path / "cache"))


def saved(folder):
    torch.manual_seed(0)
    text.build("windowed", HEAD, EOS, PAD).save(folder / "model")
    return str(folder / "model")


def test_the_student_has_the_adapter_that_is_told():
    student = build(recipe(student={**LM, "lora": {**LORA, "dropout": 0.25}})).student
    assert isinstance(student, AdaptedLM)
    names = {name.rpartition("/lora_")[0].split("/", 3)[-1] for name in student.weights}
    assert names == {"self_attn/qkv_proj", "mlp/0"}
    config = student.shared.configs[student.adapter]
    assert (config.r, config.lora_alpha, config.lora_dropout) == (2, 4.0, 0.25)
    assert not isinstance(build(recipe(student=LM)).student, AdaptedLM)


def test_a_run_ships_the_merged_model_with_the_adapter_beside_it(tmp_path):
    done = run(recipe(method=KD, teacher={"base": True}), tmp_path / "run")
    place = tmp_path / "run" / "student"
    assert {"config.json", "model.safetensors", "tokenizer.json", "adapter"} <= {
        p.name for p in place.iterdir()
    }
    assert {p.name for p in (place / "adapter").iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
    }
    assert not any("lora" in name for name in load_file(place / "model.safetensors"))
    shipped, batch = text.load(str(place)).eval(), build(recipe()).streams["train"].batch([0, 1])
    learned = done.student.eval()
    torch.testing.assert_close(shipped(batch).logits, learned(batch).logits)
    assert gap(shipped(batch).logits, learned.base().eval()(batch).logits) > 1e-3
    table = json.loads((tmp_path / "run" / "table.json").read_text())
    assert {row["kind"] for row in table["rows"]} >= {"start", "method", "teacher"}


def test_one_run_s_adapter_starts_and_teaches_the_next(tmp_path):
    first = run(recipe(), tmp_path / "first").student.eval()
    folder = str(tmp_path / "first" / "student" / "adapter")
    told = recipe(method=KD, teacher={"adapter": folder})
    job = build(told)
    batch = job.streams["train"].batch([0, 1])
    wanted = first(batch).logits
    assert torch.equal(job.teachers["teacher"](batch).logits, wanted)
    assert gap(job.student.eval()(batch).logits, wanted) > 1e-3
    run(told, tmp_path / "second")
    begun = build(recipe(student={**LM, "lora": {"adapter": folder}})).student.eval()
    assert torch.equal(begun(batch).logits, wanted)


def test_a_student_and_its_base_are_narrowed_alike(tmp_path):
    told = {"model": saved(tmp_path), "lora": LORA, "vocab": "view", "view_size": 1}
    done = run(recipe(method=KD, student=told, teacher={"base": True}), tmp_path / "run").student
    assert len(done.view.ids) == len(VOCABULARY) < len(done.head.weight) == HEAD
    assert any(gap(p, torch.zeros_like(p)) > 0 for n, p in done.weights.items() if "lora_B" in n)


@pytest.mark.parametrize(
    ("sections", "told"),
    [
        (
            {"student": LM, "method": KD, "teacher": {"base": True}},
            r"teacher\.base: the student trains all its weights.*student\.lora",
        ),
        (
            {"student": LM, "method": KD, "teacher": {"adapter": "somewhere"}},
            r"teacher\.adapter: the student trains all its weights",
        ),
        (
            {"method": KD, "teacher": {"adapter": "nowhere"}},
            r"teacher\.adapter: nowhere holds no adapter",
        ),
        (
            {"student": {**LM, "lora": {"adapter": "nowhere"}}},
            r"student\.lora: nowhere holds no adapter",
        ),
        (
            {"student": {**LM, "lora": {"targets": ["q_proj"]}}},
            r"student\.lora: targets: WindowedLM has no linear layer 'q_proj'.*qkv_proj",
        ),
        ({"student": {**LM, "lora": {"rank": 0}}}, r"student\.lora\.rank"),
    ],
)
def test_what_does_not_fit_is_refused_with_its_place(sections, told):
    with pytest.raises(Failure, match=told):
        build(recipe(**sections))


def test_another_seed_s_base_refuses_the_adapter(tmp_path):
    run(recipe(), tmp_path / "run")
    lora = {"adapter": str(tmp_path / "run" / "student" / "adapter")}
    with pytest.raises(Failure, match=r"student\.lora: .*made for other base weights"):
        build(recipe(student={**LM, "lora": lora}, run={"seed": 1}))


def test_healing_is_of_the_weights_themselves(tmp_path):
    healed = {"model": saved(tmp_path), "heal": 2, "lora": LORA}
    told = recipe(student=healed)
    assert heal_recipe(told, logits=False).student.lora is None
    job = build(told)
    whole = load_file(job.stages["healed"] / "model.safetensors")
    begun = load_file(tmp_path / "model" / "model.safetensors")
    assert all(gap(whole[name], begun[name]) > 0 for name in whole if "weight" in name)
    base = {k.replace(".base_layer", ""): v for k, v in job.student.model.state_dict().items()}
    assert all(torch.equal(base[name], whole[name]) for name in whole)
    with pytest.raises(Failure, match=r"student\.heal: the teacher speaks with .* own base"):
        build(recipe(method=KD, student=healed, teacher={"base": True}))


# ---- two processes


def gad(out: Path, *, steps: int) -> None:
    told = {"name": "gad", "group": 3, "warmup": 0.4, "critic_from": 0.5, "kl_weight": 0.1}
    student = launch.language_model(0, double=True)
    torch.manual_seed(4)
    launch.distil(
        {**told, "head_start": 1, "prompts": 4},
        out,
        steps=steps,
        **{**launch._language(True), "student": adapted(student, rank=2)},
        train={"batch": 8, "lr": 3e-3, "checkpointing": True},
        eval={"every": 4, "metrics": ["likelihood"], "select": "nll"},
    )


@pytest.mark.slow
def test_two_processes_train_the_adapters_of_one(tmp_path):
    assert launch.alone(tmp_path / "log", gad, tmp_path / "one", steps=10).wait() == 0
    children = launch.together(2, tmp_path / "log", gad, tmp_path / "two", steps=10)
    codes, said = [c.wait() for c in children], [c.said() for c in children]
    assert codes == [0, 0], "\n".join(said)
    saved = [checkpoint.saved(tmp_path / n / "checkpoints") for n in ("one", "two")]
    one, two = (checkpoint.load(places[-1])["players"] for places in saved)
    start = checkpoint.load(saved[0][0])["players"]["networks"]
    for player in ("student", "critic"):
        assert gap(one["networks"][player], start[player]) > 1e-4
    assert gap(one, two) < 1e-10
    shipped = [load_file(tmp_path / n / "student" / "model.safetensors") for n in ("one", "two")]
    assert gap(*shipped) < 1e-10
