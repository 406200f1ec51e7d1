"""Teachers that are trained first, and teachers whose tokenizer is not the student's."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from speakers import tiny

from stillroom import api
from stillroom.config import taught
from stillroom.config.build import Parts, build
from stillroom.config.recipe import make
from stillroom.core import Failure
from stillroom.data.spelling import same_words
from stillroom.engine import training
from stillroom.reports import words
from stillroom.teachers.foreign import Foreign
from stillroom.teachers.local import Local
from stillroom.teachers.recorded import Recorded

SIZES = {"model_type": "windowed", "max_position_embeddings": 128}
NAMES = ["window", "harvest", "garden", "purple", "kitchen"]
NAMES += ["mountain", "whisper", "bicycle", "lantern", "quiet"]
ROWS = [
    {"prompt": f"say {i} {NAMES[i % 10]}", "completion": f" {NAMES[i % 7]} it is, {i} times"}
    for i in range(20)
]
OTHERS = {"lm": {**SIZES, "hidden_size": 24}, "vocab_size": 330, "tokenizer": "from-data"}

ALONE = {"trained": {"student": OTHERS, "steps": 2}}


@pytest.fixture(autouse=True)
def place(monkeypatch, tmp_path) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("STILLROOM_CACHE", str(tmp_path / "cache"))
    text = "".join(json.dumps(r) + "\n" for r in ROWS)
    Path("rows.jsonl").write_text(text, encoding="utf-8")
    return tmp_path / "cache" / "stages"


def recipe(method: Any = "span_kd", teacher: Any = None, **more: Any) -> Any:
    told = {
        "method": method,
        "student": {"lm": SIZES, "vocab_size": 300},
        "teacher": teacher or ALONE,
        "data": {"train": "rows.jsonl"},
        "sampling": {"max_new_tokens": 8},
        "eval": {"every": None, "samples": 0},
        "train": {"steps": 2, "batch": 4, "lr": 0.01},
        **more,
    }
    if "teachers" in more:
        del told["teacher"]
    return make(told, folder=Path())


def test_a_teacher_is_trained_once_and_shared_by_arms(place, tmp_path):
    arms = {
        "arms": {
            "span": {},
            "uld": {"method": {"name": "uld"}},
            "ce": {"method": {"name": "seqkd"}},
        }
    }
    api.run(recipe(**arms), tmp_path / "run")
    assert len([p for p in place.iterdir() if p.is_dir()]) == 1
    job = build(recipe())
    teacher = job.teachers["teacher"]
    assert isinstance(teacher, Foreign)
    assert same_words(teacher.retelling.other.tokenizer, job.suite.renderer.tokenizer)
    weights = torch.cat([p.flatten() for p in teacher.network.parameters()])
    fresh = build(recipe(), ready=False).teachers["teacher"].network
    assert len(weights) == sum(p.numel() for p in fresh.parameters())
    assert not torch.equal(weights, torch.cat([p.flatten() for p in fresh.parameters()]))
    assert isinstance(build(recipe("seqkd")).teachers["teacher"], Recorded)


def test_fresh_weights_of_the_student_come_of_its_own_seed():
    """Whether the teacher is trained first or was kept, and whatever its seed."""

    def weights(seed: int) -> torch.Tensor:
        student = build(recipe(run={"seed": seed})).student
        return torch.cat([p.flatten() for p in student.parameters()])

    first = weights(5)
    assert torch.equal(weights(5), first)
    assert not torch.equal(weights(6), first)


def test_what_it_depends_on_makes_another_and_the_rest_does_not(place):
    def stages(**changes: Any) -> int:
        told = {"student": OTHERS, "steps": 2, **changes.pop("trained", {})}
        build(recipe(teacher={"trained": told}, **changes))
        return len([p for p in place.iterdir() if p.is_dir()])

    assert stages() == 1
    assert stages(run={"seed": 3}, eval={"every": None, "samples": 2}) == 1
    assert stages(trained={"steps": 3}) == 2
    assert stages(trained={"seed": 1}) == 3
    assert stages(trained={"data": {"columns": {"completion": "{{ prompt }}"}}}) == 4
    assert stages(trained={"train": {"lr": 0.5}}) == 5


def test_rows_for_the_test_are_none_that_the_teacher_learned_from(monkeypatch):
    """Its tokens are longer: other rows fit, and what is set aside is parted in another way."""
    learned = []

    def train(job, folder):
        learned.extend(e.prompt for e in job.streams["train"].examples)
        return training.train(job, folder)

    monkeypatch.setattr(taught, "train", train)
    data = {"train": "rows.jsonl", "hold_out": 2, "max_completion_tokens": 13}
    job = build(recipe(data=data))
    held = {e.prompt for s in ("validation", "test") for e in job.suite.splits[s].examples}
    assert len(held) == 4
    assert learned
    assert not held & {*learned}
    everything = build(recipe("seqkd", {"recorded": True}, data={**data, "hold_out": 2}))
    assert len(everything.streams["train"]) > len(ROWS) - 6 - 4  # rows beyond both are not lost


def test_a_check_trains_nothing(place):
    job = build(recipe(), Parts(ask=False), ready=False)
    assert isinstance(job.teachers["teacher"], Foreign)
    assert not place.exists()


def test_other_words_in_as_many_tokens_are_refused_where_tokens_are_compared():
    """A vocabulary of the same size says nothing."""
    model, tokenizer = tiny()
    turned = {token: len(tokenizer) - 1 - i for token, i in tokenizer.get_vocab().items()}
    told = json.loads(tokenizer.backend_tokenizer.to_str())
    told["model"]["vocab"] = {t: turned[t] for t in told["model"]["vocab"]}
    for entry in told["added_tokens"]:
        entry["id"] = turned[entry["content"]]
    tokenizer.save_pretrained("mine")
    model.save_pretrained("teacher")
    tokenizer.save_pretrained("teacher")
    Path("teacher/tokenizer.json").write_text(json.dumps(told), encoding="utf-8")
    student = {"student": {"lm": SIZES, "tokenizer": "mine"}}
    for method in ("kd", "gkd"):
        with pytest.raises(
            Failure, match=r"another tokenizer .* tokens, of which .* cross-tokenizer"
        ):
            build(recipe(method, {"model": "teacher"}, **student))
    found = build(recipe("span_kd", {"model": "teacher"}, **student)).teachers["teacher"]
    assert isinstance(found, Foreign)
    assert found.retelling.common.count >= len(tokenizer) - len(tokenizer.all_special_ids)


def test_the_same_tokenizer_serves_both_kinds_of_methods():
    model, tokenizer = tiny()
    model.save_pretrained("teacher")
    tokenizer.save_pretrained("teacher")
    student = {"student": {"lm": SIZES, "tokenizer": "teacher"}}
    assert isinstance(
        build(recipe("span_kd", {"model": "teacher"}, **student)).teachers["teacher"], Foreign
    )
    kd = build(recipe("kd", {"model": "teacher"}, **student)).teachers["teacher"]
    assert type(kd) is Local


def test_a_view_of_the_vocabulary_is_refused():
    model, tokenizer = tiny()
    model.save_pretrained("m")
    tokenizer.save_pretrained("m")
    student = {"student": {"model": "m", "vocab": "view", "view_size": 20}}
    with pytest.raises(Failure, match="vocab: full"):
        build(recipe("uld", {"model": "m"}, **student))


def test_an_error_of_the_teachers_own_training_says_so():
    told = {"trained": {"student": {"lm": {"model_type": "nothing"}}, "steps": 2}}
    with pytest.raises(Failure, match=r"^teacher\.trained: "):
        build(recipe(teacher=told))
    with pytest.raises(Failure, match=r"teacher\.trained: method"):
        build(recipe(teacher={"trained": {"student": OTHERS, "steps": 2, "method": "nothing"}}))


BEFORE = {"student": OTHERS, "steps": 3, "data": {"columns": {"completion": "{{ prompt }}"}}}
"""A pretrained model: of other text than the recipe's."""


def spread(network: Any) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in network.parameters()])


def tuned(**changes: Any) -> Any:
    """Student and raw teacher are the pretrained model; the other teacher was tuned from it."""
    teachers = {
        "raw": {"trained": BEFORE},
        "teacher": {"trained": {"student": {"trained": BEFORE}, "steps": 2}},
    }
    told = {"teachers": teachers, "student": {"trained": BEFORE}}
    return recipe("delta_kd", **{**told, **changes})


def test_what_is_told_in_the_same_words_is_trained_once_and_may_be_tuned_from(place):
    given = tuned()
    job = build(given)
    raw, after = (spread(job.teachers[name].network) for name in ("raw", "teacher"))
    assert torch.equal(raw, spread(job.student))
    assert 0 < (raw - after).abs().max() < 0.05  # two steps at a rate of 0.01
    assert len([p for p in place.iterdir() if p.is_dir()]) == 2
    assert job.recipe == given.resolved()
    other = {**BEFORE, "seed": 1}
    another = build(tuned(student={"trained": other})).student
    assert not torch.equal(spread(another), raw)
    assert len([p for p in place.iterdir() if p.is_dir()]) == 3
    begun = words.student(given.resolved()["student"])
    assert begun == words.student(OTHERS) + ", trained first"


def test_what_a_student_began_as_depends_on_what_it_was_trained_on(place):
    """Of the training before the tuning, too."""

    def after(**changes: Any) -> torch.Tensor:
        told = {"trained": {**BEFORE, **changes}}
        teachers = {
            "raw": {"trained": BEFORE},
            "teacher": {"trained": {"student": told, "steps": 2}},
        }
        return spread(build(tuned(teachers=teachers)).teachers["teacher"].network)

    first = after()
    assert torch.equal(first, after())
    assert not torch.equal(first, after(train={"lr": 0.02}))
    fewer = {**BEFORE["data"], "rows": {"train": 8}}
    assert not torch.equal(first, after(data=fewer))


def test_what_was_tuned_is_made_anew_where_the_text_before_has_changed(place):
    for turn, word in enumerate(("one", "two"), start=1):
        rows = [{**row, "completion": f"{word} {i}"} for i, row in enumerate(ROWS)]
        text = "".join(json.dumps(r) + "\n" for r in rows)
        Path("before.jsonl").write_text(text, encoding="utf-8")
        before = {"trained": {"student": OTHERS, "steps": 2, "data": {"train": "before.jsonl"}}}
        teachers = {"raw": before, "teacher": {"trained": {"student": before, "steps": 2}}}
        build(tuned(teachers=teachers, student=before))
        assert len([p for p in place.iterdir() if p.is_dir()]) == 2 * turn


def test_a_check_trains_no_student_either(place):
    job = build(tuned(), Parts(ask=False), ready=False)
    assert spread(job.student).shape == spread(job.teachers["teacher"].network).shape
    assert not place.exists()


def test_a_student_is_come_by_in_one_way():
    with pytest.raises(Failure, match=r"student: give one of .*'trained'.*; got model, trained"):
        build(tuned(student={"trained": BEFORE, "model": "x"}))
    broken = {**BEFORE, "student": {"lm": {"model_type": "nothing"}}}
    with pytest.raises(Failure, match=r"^student\.trained: "):
        build(tuned(student={"trained": broken}))
