"""Recipes that learn from a store of scores: once with the teacher, and then without it."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from speakers import tiny

import stillroom.store.arrays as arrays_module
from stillroom.cli import main
from stillroom.config.build import Parts, build
from stillroom.config.recipe import read
from stillroom.core import Failure
from stillroom.engine.training import train
from stillroom.methods.gkd import GKD
from stillroom.methods.kd import KD
from stillroom.store.arrays import Arrays
from stillroom.store.locks import writing
from stillroom.teachers.local import Local
from stillroom.teachers.stored import Stored

KINDS = ("hidden", "logits", "topk:5", "sampled:40")
ROWS = [
    {"prompt": f"say {i} {'very ' * (i % 3)}loud", "completion": f" {i} it is"} for i in range(8)
]


@pytest.fixture
def place(monkeypatch, tmp_path) -> Path:
    """A folder with a teacher, its tokenizer and rows of data."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("STILLROOM_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("STILLROOM_DATA", raising=False)
    model, tokenizer = tiny()
    model.save_pretrained("teacher")
    tokenizer.save_pretrained("teacher")
    rows(ROWS)
    return tmp_path


def rows(told: list[dict[str, Any]]) -> None:
    Path("rows.jsonl").write_text("".join(json.dumps(r) + "\n" for r in told), encoding="utf-8")


def recipe(teacher: dict[str, Any], **more: Any) -> Any:
    sizes = {"model_type": "windowed", "max_position_embeddings": 128}
    told = {
        "method": {"name": "kd", "temperature": 1.0},
        "student": {"lm": sizes, "tokenizer": "teacher"},
        "teacher": teacher,
        "data": {"train": "rows.jsonl"},
        "sampling": {"max_new_tokens": 8},
        "train": {"steps": 3, "batch": 3, "tokens_per_micro": 64},
        **more,
    }
    Path("told.yaml").write_text(yaml.safe_dump(told), encoding="utf-8")
    return read("told.yaml")


def keeping(signals: str, **more: Any) -> dict[str, Any]:
    return {"model": "teacher", "signals": signals, "store": "store", **more}


def losses(job: Any, folder: Path) -> list[float]:
    train(job, folder)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line["loss/student/loss"] for line in lines if "lr/student" in line]


def files(place: Path) -> list[Path]:
    return sorted(place.glob("store/signals/*/[0-9]*.safetensors"))


def test_training_from_states_or_logits_in_a_store_is_training_from_the_teacher(place):
    live = losses(build(recipe({"model": "teacher"})), place / "live")
    for kind, bound in (("logits", 1e-6), ("hidden", 1e-3)):
        job = build(recipe(keeping(kind)))
        assert isinstance(job.teachers["teacher"], Stored)
        assert losses(job, place / kind) == pytest.approx(live, rel=bound)


@pytest.mark.parametrize("kind", KINDS)
def test_once_scored_the_model_is_not_loaded_again(place, kind, monkeypatch):
    first = losses(build(recipe(keeping(kind))), place / "first")
    assert len(files(place)) == 1
    monkeypatch.setattr("stillroom.models.text.load", lambda *_, **__: pytest.fail("was loaded"))
    assert losses(build(recipe(keeping(kind))), place / "second") == first
    shutil.rmtree(place / "teacher" / "model.safetensors", ignore_errors=True)
    without = build(recipe({"signals": kind, "store": "store"}))
    assert losses(without, place / "third") == first


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_store_says_is_what_the_teacher_said(place, kind):
    """Against the teacher's own probabilities of a batch of uneven sequences."""
    job = build(recipe(keeping(kind)))
    live = build(recipe({"model": "teacher"})).teachers["teacher"]
    assert isinstance(live, Local)
    batch = job.streams["train"].batch([5, 0, 3])
    with torch.no_grad():
        told = live(batch)
    said, true = job.teachers["teacher"](batch), told.head.logits(told.hidden).log_softmax(-1)
    if kind == "logits":
        torch.testing.assert_close(said["logits"].log_softmax(-1), true)
    if kind == "hidden":
        gap = (said.hidden - told.hidden).norm(dim=-1) / told.hidden.norm(dim=-1)
        assert gap.max() < 2**-11
        torch.testing.assert_close(said.head.weight, told.head.weight)
    if kind == "topk:5":
        largest = true.topk(5)
        assert (said.sparse.ids == largest.indices).all()
        torch.testing.assert_close(said.sparse.logp, largest.values, rtol=2**-10, atol=0)
        rest = (1 - largest.values.exp().sum(-1)).log()
        torch.testing.assert_close(said.sparse.tail, rest, rtol=2**-9, atol=1e-5)
    if kind == "sampled:40":
        weights = said.sparse.logp.exp()
        torch.testing.assert_close(weights.sum(-1), torch.ones(len(weights)))
        torch.testing.assert_close((weights * 40).round() / 40, weights)
        seen = torch.zeros_like(true).scatter_add_(-1, said.sparse.ids, weights)
        error = (seen - true.exp()).square().sum(-1).mean()
        expected = ((1 - true.exp().square().sum(-1)) / 40).mean()  # of 40 independent draws
        assert 0.5 * expected < error < 2 * expected


def test_draws_depend_on_the_sequence_alone(place):
    """Not on the order of the rows, nor on what stands beside them."""
    one = build(recipe(keeping("sampled:9"))).teachers["teacher"]
    rows(ROWS[::-1])
    shutil.move("store", "before")
    job = build(recipe(keeping("sampled:9")))
    batch = job.streams["train"].batch([2, 6])
    for name, value in one(batch).sparse.items():
        assert torch.equal(torch.as_tensor(job.teachers["teacher"](batch).sparse[name]),
                           torch.as_tensor(value))  # fmt: skip


def test_new_rows_are_added_and_old_ones_stay(place, monkeypatch):
    build(recipe(keeping("topk:2")))
    before = [file.read_bytes() for file in files(place)]
    rows([*ROWS, {"prompt": "another", "completion": " one"}])
    monkeypatch.setattr(
        "stillroom.teachers.scoring.keys_of", counting := Counted("stillroom.teachers.stored")
    )
    build(recipe(keeping("topk:2")))
    assert [file.read_bytes() for file in files(place)][: len(before)] == before
    assert len(files(place)) == len(before) + 1
    assert counting.batches[-1] == 1  # one sequence was scored


class Counted:
    """``keys_of``, and how many sequences each call was about."""

    def __init__(self, module: str) -> None:
        self.batches: list[int] = []
        self.real = __import__(module, fromlist=["keys_of"]).keys_of

    def __call__(self, batch):
        self.batches.append(batch.size)
        return self.real(batch)


def test_a_kill_costs_one_shard(place, monkeypatch):
    monkeypatch.setattr(arrays_module, "SHARD", 1)  # a shard a sequence
    real, done = Arrays._write, []

    def write(self, file, tensors):
        if len(done) == 4:  # after the file, before the line: the worst moment
            (self.folder / file).write_bytes(b"half")
            raise KeyboardInterrupt
        real(self, file, tensors)
        done.append(file)

    monkeypatch.setattr(Arrays, "_write", write)
    with pytest.raises(KeyboardInterrupt):
        build(recipe(keeping("logits")))
    (lines,) = place.glob("store/signals/*/shards.jsonl")
    lines.write_text(lines.read_text() + '{"file": "0000')  # a line that a kill cut in two
    monkeypatch.setattr(Arrays, "_write", real)
    unbroken = losses(build(recipe(keeping("logits", store="other"))), place / "unbroken")
    assert losses(build(recipe(keeping("logits"))), place / "taken up") == unbroken
    assert len(files(place)) == len(ROWS)


@pytest.mark.parametrize("what", ["shard", "shared"])
def test_a_flipped_byte_is_found_before_the_first_step(place, what):
    build(recipe(keeping("hidden")))
    pattern = "[0-9]*" if what == "shard" else "shared"
    (file,) = place.glob(f"store/signals/*/{pattern}.safetensors")
    damaged = bytearray(file.read_bytes())
    damaged[-1] ^= 1
    file.write_bytes(damaged)
    with pytest.raises(Failure, match=f"{file.name} is not what was written"):
        build(recipe({"signals": "hidden", "store": "store"}))
    file.unlink()  # as the error says
    if what == "shard":
        whole = build(recipe(keeping("hidden"))).teachers["teacher"]
        assert len(whole.arrays) == len(ROWS)


def test_a_store_of_another_kind_is_refused_with_what_differs(place):
    build(recipe(keeping("topk:2")))
    with pytest.raises(Failure, match=r"holds no topk:3 \(it holds: topk:2 of teacher\)"):
        build(recipe({"signals": "topk:3", "store": "store"}))
    with pytest.raises(Failure, match="holds no hidden"):
        build(recipe({"signals": "hidden", "store": "store"}))
    model, tokenizer = tiny(seed=5)
    model.save_pretrained("teacher")
    with pytest.raises(Failure, match=r"weights is .* there, .* here"):
        build(recipe(keeping("topk:2")))
    shutil.copytree("teacher", "twin")
    tokenizer.chat_template = "{{ messages }}"
    tokenizer.save_pretrained("twin")
    with pytest.raises(Failure, match=r"template is .* there, .* here"):
        build(recipe({"signals": "topk:2", "store": "store"}, student={
            "lm": {"model_type": "windowed", "max_position_embeddings": 128}, "tokenizer": "twin"
        }))  # fmt: skip


def test_other_data_are_refused_without_a_model_and_named_beside_two(place):
    build(recipe(keeping("topk:2")))
    rows([*ROWS, {"prompt": "another", "completion": " one"}])
    with pytest.raises(Failure, match="1 of 9 sequences are not in the store"):
        build(recipe({"signals": "topk:2", "store": "store"}))
    shutil.copytree("teacher", "twin")
    build(recipe(keeping("topk:2", model="twin")))
    with pytest.raises(Failure, match="holds those of teacher, twin: name one"):
        build(recipe({"signals": "topk:2", "store": "store"}))


@pytest.mark.parametrize(
    ("method", "signals", "says"),
    [
        ({"name": "kd", "temperature": 2.0}, "topk:2", "a temperature of 2 softens all scores"),
        ({"name": "kd", "temperature": 2.0}, "sampled:2", "gives draws alone"),
        ({"name": "gkd", "on_policy": 0.5}, "hidden", "about recorded sequences only"),
        ({"name": "rkd"}, "hidden", "needs features"),
    ],
)
def test_what_a_signal_does_not_admit_is_refused_before_the_first_step(
    place, method, signals, says
):
    with pytest.raises(Failure, match=says):
        build(recipe(keeping(signals), method=method))


def test_draws_admit_no_divergence_but_forward_kl(place):
    job = build(recipe(keeping("sampled:3")))
    KD(temperature=1.0).check(job.teachers["teacher"])
    with pytest.raises(Failure, match="draws of a teacher give forward KL"):
        GKD(beta=0.5).check(job.teachers["teacher"])


@pytest.mark.parametrize(
    ("teacher", "says"),
    [
        ({"signals": "topk:2"}, "name the folder that keeps them"),
        ({"signals": "topk", "store": "s"}, "expected hidden, logits, topk:K or sampled:N"),
        ({"signals": "sampled:256", "store": "s"}, "out of range"),
        ({"signals": "topk:0", "store": "s"}, "out of range"),
        ({"signals": "topk:2", "store": "s", "recorded": True}, "'recorded' gives none to keep"),
        ({"signals": "topk:300", "store": "s", "model": "teacher"}, "k must be between 1 and"),
    ],
)
def test_bad_words_are_refused(place, teacher, says):
    with pytest.raises(Failure, match=says):
        build(recipe(teacher))


@pytest.fixture
def collect(monkeypatch, capsys):
    """Gives words to ``stillroom collect``; returns whether it ended well, and what it said."""
    monkeypatch.setenv("STILLROOM_DEBUG", "")

    def told(prompts: str, *words: str) -> tuple[bool, str]:
        line = ["stillroom", "collect", prompts, "--teacher", "teacher", "--store", "store"]
        monkeypatch.setattr("sys.argv", [*line, *words])
        with pytest.raises(SystemExit) as ended:
            main()
        out, error = capsys.readouterr()
        return not ended.value.code, out if not ended.value.code else " ".join(error.split())

    return told


def test_scores_are_collected_for_a_file_or_a_recipe(place, collect):
    """A file is read as a plain recipe reads it, so that nothing is scored twice."""
    well, said = collect("rows.jsonl", "--signals", "topk:2")
    assert well
    tokens = sum(len(row["completion"]) + 1 for row in ROWS)
    assert "topk:2 of 8 sequences in store/signals/" in said
    assert f"{tokens} tokens" in said
    before = files(place)
    job = build(recipe({"signals": "topk:2", "store": "store"}))
    assert job.teachers["teacher"].rows == tokens
    sizes = {"data": {"train": "rows.jsonl", "cut_completion_tokens": 3}}
    recipe(keeping("topk:2"), **sizes, arms={"a": {}, "b": {"teacher": {"signals": "topk:3"}}})
    well, said = collect("told.yaml", "--signals", "topk:2")
    assert well
    assert said.startswith("a: topk:2 of 16 sequences")
    assert "b:" not in said
    assert len(files(place)) == len(before) + 1


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--out", "x.jsonl"], "--out goes with answers"),
        (["--teacher", "openai:gpt"], "name the one that the served model has"),
        (["--signals", "top"], "expected hidden, logits"),
        (["--signals", "text"], "name the file that the answers are written to"),
    ],
)
@pytest.mark.usefixtures("place")
def test_collect_refuses_what_does_not_go_together(collect, more, says):
    well, said = collect("rows.jsonl", "--signals", "topk:2", *more)
    assert not well
    assert says in said


def test_a_check_scores_nothing(place):
    build(recipe(keeping("topk:2")), Parts(ask=False))
    assert not files(place)


def test_one_writer_at_a_time(place):
    found = build(recipe(keeping("topk:2"))).teachers["teacher"]
    rows([*ROWS, {"prompt": "another", "completion": " one"}])
    with writing(found.arrays.folder), pytest.raises(Failure, match="is being written by process"):
        build(recipe(keeping("topk:2")))


def test_a_view_of_the_vocabulary_learns_from_states_and_refuses_the_rest(place):
    tiny(seed=3)[0].save_pretrained("student")
    tiny()[1].save_pretrained("student")
    student = {"model": "student", "vocab": "view", "view_size": 40}
    told = {"student": student, "eval": {"every": 3, "metrics": ["agreement"]}}
    told["data"] = {"train": "rows.jsonl", "validation": "rows.jsonl"}
    live = losses(build(recipe({"model": "teacher"}, **told)), place / "live")
    kept = losses(build(recipe(keeping("hidden"), **told)), place / "kept")
    assert kept == pytest.approx(live, rel=1e-3)
    with pytest.raises(Failure, match="a store of topk:2 cannot be narrowed"):
        build(recipe(keeping("topk:2"), **told))
