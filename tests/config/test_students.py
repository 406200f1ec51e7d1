"""Students that come by stages: cut from a model, healed, then taught."""

import json
import shutil

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from stillroom.api import run
from stillroom.config.build import build
from stillroom.config.recipe import make
from stillroom.core import Failure
from stillroom.data.marked_orders import MarkedOrders
from stillroom.engine.parallel import Processes

ROWS = MarkedOrders(prompts=64).splits(0)
STEPS = 12


@pytest.fixture
def whole(tmp_path):
    """The folder of a small llama of four layers that speaks the made-up world's words."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2}
    config = LlamaConfig(
        vocab_size=37, num_hidden_layers=4, max_position_embeddings=32, eos_token_id=1,
        pad_token_id=0, bos_token_id=None, initializer_range=0.3, **sizes,
    )  # fmt: skip
    folder = tmp_path / "whole"
    LlamaForCausalLM(config).save_pretrained(folder)
    MarkedOrders().tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def recipe(tmp_path, whole, monkeypatch):
    """Makes a recipe whose student is cut from ``whole``; sections replace its own."""
    monkeypatch.setenv("STILLROOM_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    for split, rows in ROWS.items():
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / f"{split}.jsonl").write_text(text)

    def made(**sections):
        told = {
            "method": {"name": "kd", "temperature": 1.0},
            "student": {"cut": {"from": str(whole), "layers": [0, 2]}},
            "teacher": {"model": str(whole)},
            "data": {"train": "train.jsonl", "test": "test.jsonl"},
            "train": {"steps": STEPS, "batch": 4, "lr": 3e-3},
            "eval": {"every": None, "metrics": ["agreement", "likelihood"], "samples": 0},
            "sampling": {"max_new_tokens": 4},
            "run": {"threads": 1},
        }
        return make({**told, **sections}, folder=tmp_path)

    return made


def table(done):
    return {row["name"]: row["values"] for row in done.table}


def stages(tmp_path, name):
    return sorted((tmp_path / "cache" / "stages").glob(f"{name}-*[0-9a-f]"))


def test_a_recipe_says_from_where_it_cuts_and_says_it_again(recipe, whole):
    told = recipe().resolved()["student"]["cut"]
    assert told["from"] == str(whole)
    again = recipe(student={"cut": told})
    assert again.resolved()["student"]["cut"] == told


def test_rows_of_a_cut_and_healed_student(recipe, tmp_path):
    student = {**recipe().resolved()["student"], "heal": STEPS}
    arms = {"ce": {"method": {"name": "seqkd"}}, "kd": {}}
    done = run(recipe(student=student, arms=arms), tmp_path / "run")
    rows = table(done)
    assert list(rows) == ["uniform", "cut", "healed", "ce", "kd", "teacher"]
    # an even guess over 37 words, by hand
    assert rows["uniform"]["nll"] == pytest.approx(torch.log(torch.tensor(37.0)).item(), rel=1e-5)
    assert rows["healed"]["kl"] < rows["cut"]["kl"]
    assert rows["kd"]["kl"] < rows["healed"]["kl"]
    for name in ("ce", "kd"):  # each arm starts from the healed one
        first = json.loads((tmp_path / "run" / "arms" / name / "result.json").read_text())["start"]
        assert first == pytest.approx(rows["healed"])
        assert rows[name]["cpu_seconds"] > 0
    notes = json.loads((tmp_path / "run" / "table.json").read_text())["notes"]
    assert any(note.startswith("cut: layers [0, 2]") for note in notes)
    assert any(note.startswith(f"healed: {STEPS} steps") for note in notes)
    assert len(stages(tmp_path, "heal")) == 1
    shipped = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "arms" / "kd" / "student")
    assert shipped.config.num_hidden_layers == 2


def test_a_stage_is_made_once_and_anew_when_something_changed(recipe, tmp_path):
    student = {**recipe().resolved()["student"], "heal": {"steps": 2}}
    build(recipe(student=student))
    (healed,) = stages(tmp_path, "heal")
    before = healed.stat().st_mtime_ns
    build(recipe(student=student, method={"name": "seqkd"}))  # the arms' method is none of its own
    assert stages(tmp_path, "heal") == [healed]
    assert healed.stat().st_mtime_ns == before
    build(recipe(student={**student, "heal": {"steps": 3}}))
    assert len(stages(tmp_path, "heal")) == 2
    rows = (tmp_path / "train.jsonl").read_text().splitlines()
    (tmp_path / "train.jsonl").write_text("\n".join(rows[1:]) + "\n")
    build(recipe(student=student))
    assert len(stages(tmp_path, "heal")) == 3
    assert len(stages(tmp_path, "cut")) == 1


def test_fresh_weights_may_be_trained_before_the_arms(recipe, tmp_path):
    told = {"lm": {"model_type": "windowed"}, "tokenizer": str(tmp_path / "whole")}
    fresh = build(recipe(student=told)).student.state_dict()
    arms = [{"name": "seqkd"}, {"name": "kd"}]
    begun = [build(recipe(student={**told, "heal": 3}, method=m)).student for m in arms]
    assert len(stages(tmp_path, "heal")) == 1
    for name, weight in begun[0].state_dict().items():
        assert torch.equal(weight, begun[1].state_dict()[name])
    head = "model.lm_head.weight"
    assert not torch.equal(begun[0].state_dict()[head], fresh[head])


def test_checking_makes_no_stage_that_takes_long(recipe, tmp_path, whole):
    cut = {"from": str(whole), "layers": "search", "keep": 2}
    job = build(recipe(student={"cut": cut, "heal": 5}), ready=False)
    assert job.student.model.config.num_hidden_layers == 2
    assert not stages(tmp_path, "heal")
    assert not stages(tmp_path, "cut")


def test_a_search_reads_training_text_alone(recipe, tmp_path, whole):
    student = {"cut": {"from": str(whole), "layers": "search", "keep": 2, "tokens": 64}}
    build(recipe(student=student))
    (place,) = stages(tmp_path, "cut")
    told = json.loads((place / "cut.json").read_text())
    assert len(told["layers"]) == 2
    assert sorted([*told["layers"], *told["removed"]]) == [0, 1, 2, 3]
    (tmp_path / "test.jsonl").write_text((tmp_path / "train.jsonl").read_text())
    build(recipe(student=student))
    assert stages(tmp_path, "cut") == [place]


def test_a_black_box_teacher_heals_by_its_text(recipe, tmp_path):
    student = {**recipe().resolved()["student"], "heal": 2}
    build(recipe(student=student, teacher={"recorded": True}, method={"name": "seqkd"},
                 eval={"metrics": ["likelihood"]}))  # fmt: skip
    (place,) = stages(tmp_path, "heal")
    assert json.loads((place / "stage.json").read_text())[2]["method"]["name"] == "seqkd"


@pytest.mark.parametrize(
    ("student", "words"),
    [
        ({"cut": {"from": "x", "layers": [0]}, "model": "y"}, ["one of", "got model, cut"]),
        ({"cut": {"from": "x", "layers": "search"}}, ["student.cut", "'keep'"]),
        ({"cut": {"from": "x", "layers": [0], "keep": 1}}, ["student.cut", "'keep'"]),
        ({"cut": {"from": "x", "layers": [0], "of": 1}}, ["student.cut.of"]),
        ({"cut": {"from": "x", "layers": [-1]}}, ["student.cut.layers"]),
        ({"cut": {"layers": [0]}}, ["student.cut.from", "missing"]),
        ({"model": "x", "heal": 0}, ["student.heal"]),
    ],
)
def test_a_student_that_makes_no_sense(student, words, recipe):
    with pytest.raises(Failure) as told:
        build(recipe(student=student))
    assert all(word in str(told.value) for word in words), str(told.value)


@pytest.mark.parametrize("layers", [[], [0, 9], [1, 0], [1, 1]])
def test_layers_that_are_not_there(layers, recipe, whole, tmp_path):
    with pytest.raises(Failure, match=r"student\.cut.*0 to 3"):
        build(recipe(student={"cut": {"from": str(whole), "layers": layers}}))
    assert not stages(tmp_path, "cut")


def test_a_model_that_changed_in_its_folder_is_cut_and_healed_anew(recipe, tmp_path, whole):
    student = {**recipe().resolved()["student"], "heal": 1}
    build(recipe(student=student))
    model = AutoModelForCausalLM.from_pretrained(whole)
    with torch.no_grad():
        model.lm_head.weight.mul_(2)
    model.save_pretrained(whole)
    build(recipe(student=student))
    assert len(stages(tmp_path, "cut")) == len(stages(tmp_path, "heal")) == 2


def test_several_processes_do_not_heal(recipe, tmp_path, monkeypatch):
    monkeypatch.setattr(Processes, "__init__", lambda self: vars(self).update(rank=0, world=2))
    student = {**recipe().resolved()["student"], "heal": 1}
    with pytest.raises(Failure, match=r"student\.heal is done by one process"):
        build(recipe(student=student))
    assert not stages(tmp_path, "heal")


def test_a_teacher_of_another_vocabulary_is_refused_though_it_has_as_many_tokens(recipe, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(tmp_path / "whole", other)
    told = (other / "tokenizer.json").read_text()
    (other / "tokenizer.json").write_text(told.replace('"w0"', '"v0"'))
    with pytest.raises(Failure, match=r"other' has another tokenizer .*37 and 37 tokens.* 36 have"):
        build(recipe(teacher={"model": str(other)}))
    by_text = {"method": {"name": "seqkd"}, "eval": {"metrics": ["likelihood"]}}
    job = build(recipe(teacher={"model": str(other)}, **by_text))
    assert job.teachers["teacher"].signals == {"text"}  # nothing asks it about the student's ids
    assert job.suite.teacher({"student": job.student}, "test") == {}
    (other / "tokenizer.json").unlink()
    (other / "tokenizer_config.json").unlink()
    with pytest.raises(Failure, match=r"teacher\.model.*has no tokenizer"):
        build(recipe(teacher={"model": str(other)}))


def test_a_run_goes_on_after_its_answers_were_collected_once_more(recipe, tmp_path):
    ledger = tmp_path / "train.jsonl.ledger.json"
    told = {"student": {"model": str(tmp_path / "whole")}, "method": {"name": "seqkd"}}
    ledger.write_text('{"asked": 64}')
    run(recipe(**told), tmp_path / "run")
    (tmp_path / "run" / "result.json").unlink()
    ledger.write_text('{"asked": 0}')
    done = run(recipe(**told), tmp_path / "run")
    assert "asked" in (done.folder / "student" / "README.md").read_text()
