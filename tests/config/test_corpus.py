"""Plain text beside the rows, for methods that read it; teachers that a method calls by name."""

import json
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from speakers import tiny

from stillroom.config.build import build
from stillroom.config.recipe import make
from stillroom.core import Failure, Method, Needs, Term
from stillroom.engine.training import check, train
from stillroom.losses.per_row import per_row
from stillroom.losses.policy import label_logp
from stillroom.methods.kd import KD

SIZES = {"model_type": "windowed", "max_position_embeddings": 64}
ROWS = [{"prompt": f"say {i}", "completion": f" {i} it is"} for i in range(9)]


class Both(Method):
    """Reads a corpus and two teachers; keeps what it was told."""

    needs = Needs(
        teacher={"logits"},
        teachers={"teacher", "raw"},
        metrics={"nll"},
        streams={"train", "corpus"},
    )
    seen: ClassVar[list[Any]] = []

    def prepare(self, run, batch):
        return batch.add(corpus=run.next("corpus"))

    def loss(self, student, teacher, batch, nets):
        return Term(per_row(lambda s, t, y: -label_logp(s, y), student, None, batch.labels))

    def validated(self, run, values):
        self.seen.append((run.step, values["nll"]))


@pytest.fixture(autouse=True)
def place(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("STILLROOM_CACHE", str(tmp_path / "cache"))
    model, tokenizer = tiny()
    for seed, name in enumerate(("raw", "tuned")):
        torch.manual_seed(seed)
        model.save_pretrained(name)
        tokenizer.save_pretrained(name)
    Path("rows.jsonl").write_text("".join(json.dumps(r) + "\n" for r in ROWS), encoding="utf-8")
    Path("plain.txt").write_text("once upon a time there was a text. " * 9, encoding="utf-8")


def recipe(method: Method, **more: Any) -> Any:
    told = {
        "method": "kd",
        "student": {"lm": SIZES, "tokenizer": "raw"},
        "teachers": {"raw": {"model": "raw"}, "teacher": {"model": "tuned"}},
        "data": {"train": "rows.jsonl", "hold_out": 2, "corpus": "plain.txt", "corpus_tokens": 16},
        "eval": {"every": 1, "samples": 0, "metrics": ["likelihood"]},
        "train": {"steps": 2, "batch": 4, "lr": 0.01},
        **more,
    }
    made = make(told, folder=Path())
    vars(made)["method"] = method  # frozen, and no recipe names a class of a test
    return made


def test_every_token_of_a_corpus_counts_but_the_first_of_a_piece():
    job = build(recipe(Both()))
    data: Any = job.streams["corpus"]
    ids = [i for e in data.examples for i in (*e.prompt_ids, *e.completion_ids)]
    text = Path("plain.txt").read_text(encoding="utf-8")
    tokenizer = job.suite.renderer.tokenizer
    assert tokenizer.decode(ids, skip_special_tokens=True).strip() == text.strip()
    assert ids[-1] in job.suite.renderer.stop_ids
    sizes = [len(e.prompt_ids) + len(e.completion_ids) for e in data.examples]
    assert set(sizes[:-1]) == {16}
    batch = data.batch(range(2))
    assert len(batch.rows) == 2 * 15
    assert job.ledger["corpus"]["pieces"] == len(sizes)


def test_a_method_that_reads_none_has_none():
    job = build(recipe(KD()))
    assert set(job.streams) == {"train"}
    assert set(job.teachers) == {"teacher"}


def test_two_teachers_are_called_by_name_and_validation_is_told(tmp_path):
    method = Both()
    method.seen.clear()
    job = build(recipe(method))
    assert set(job.teachers) == {"teacher", "raw"}
    train(job, tmp_path / "run")
    assert [step for step, _ in method.seen] == [0, 1, 2]


def test_what_a_method_reads_and_the_recipe_lacks_is_refused():
    data = {"train": "rows.jsonl", "hold_out": 2}
    with pytest.raises(Failure, match=r"reads corpus .*give data\.corpus"):
        check(build(recipe(Both(), data=data)))
    with pytest.raises(Failure, match=r"steered by nll .*eval\.metrics"):
        check(build(recipe(Both(), eval={"every": 1, "samples": 0})))
    told = {"every": None, "samples": 0, "metrics": ["likelihood"]}
    with pytest.raises(Failure, match=r"steered by validation .*eval\.every"):
        check(build(recipe(Both(), eval=told)))
    with pytest.raises(Failure, match=r"by name, and there is no raw"):
        build(recipe(Both(), teachers={"teacher": {"model": "tuned"}}))
