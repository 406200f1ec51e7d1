"""Rows of every form, from a recipe to the tokens of a job, and what is counted of them."""

import json

import pytest
from tokenizers import ByteLevelBPETokenizer
from transformers import PreTrainedTokenizerFast

from stillroom.config.build import Parts, build
from stillroom.config.recipe import make
from stillroom.core import Failure

CHAT = (
    "{% for m in messages %}{{ m.role + '>' + m.content + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}assistant>{% endif %}"
)
TALK = [("human", "q"), ("gpt", "zebra"), ("human", "r"), ("gpt", "quagga")]
ROWS = {
    "prompt": {"prompt": "count:", "completion": "zebra quagga"},
    "messages": {
        "messages": [
            {"role": "user", "content": "count:"},
            {"role": "assistant", "content": None, "tool_calls": [{"name": "x"}]},
            {"role": "assistant", "content": "zebra quagga"},
        ]
    },
    "alpaca": {"instruction": "count:", "input": "", "output": "zebra quagga"},
    "sharegpt": {"conversations": [{"from": f, "value": v} for f, v in TALK]},
}


def talker(folder):
    inner = ByteLevelBPETokenizer()
    inner.train_from_iterator(["user assistant zebra quagga"] * 4, 300, show_progress=False)
    made = PreTrainedTokenizerFast(
        tokenizer_object=inner._tokenizer, eos_token="<|end|>", pad_token="<|end|>"
    )
    made.chat_template = CHAT
    made.save_pretrained(folder)
    return str(folder)


def told(folder, rows=None, **data):
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows or []))
    return {
        "method": {"name": "seqkd"},
        "student": {"lm": {"model_type": "windowed"}, "vocab_size": 320},
        "teacher": {"recorded": True},
        "data": {"train": "rows.jsonl", **data},
        "train": {"steps": 1},
        "sampling": {"max_new_tokens": 4},
    }


@pytest.mark.parametrize("form", ["prompt", "alpaca"])
def test_rows_of_one_question_are_told_and_counted(tmp_path, form):
    job = build(make(told(tmp_path, [ROWS[form]] * 3), folder=tmp_path))
    [example, *_] = job.streams["train"].examples
    assert (example.prompt, example.answer) == ("count:", "zebra quagga")
    assert job.ledger["form"] == form
    assert job.ledger["rows"] == {"train": 3}


@pytest.mark.parametrize("form", ROWS)
def test_a_tokenizer_learns_the_words_of_every_form(tmp_path, form):
    from stillroom.config.students import tokenizer_of
    from stillroom.config.texts import gathered

    recipe = make(told(tmp_path, [ROWS[form]] * 9), folder=tmp_path)
    entries = tokenizer_of(recipe, gathered(recipe, None)).get_vocab()
    assert any("zebra" in entry for entry in entries)
    assert any("quagga" in entry for entry in entries)
    assert not any("None" in entry for entry in entries)


@pytest.mark.parametrize(("train_on", "words"), [("last", 1), ("all", 2)])
def test_every_turn_counts_where_the_recipe_says_so(tmp_path, train_on, words):
    recipe = told(tmp_path, [ROWS["sharegpt"]], train_on=train_on)
    recipe["student"]["tokenizer"] = talker(tmp_path / "talker")
    job = build(make(recipe, folder=tmp_path))
    tokenizer = job.suite.renderer.tokenizer
    labels = tokenizer.decode(job.streams["train"].batch([0]).labels)
    assert labels == "".join(f"{word}<|end|>" for word in ("zebra", "quagga")[-words:])


def test_a_method_that_samples_cannot_learn_from_all_turns(tmp_path):
    recipe = told(tmp_path, [ROWS["prompt"]], train_on="all")
    recipe["method"] = {"name": "gad"}
    with pytest.raises(Failure, match=r"data.train_on: GAD samples answers .* set it to last"):
        build(make(recipe, folder=tmp_path))


def test_splits_of_a_saved_data_set_are_found_beside_the_recipe(tmp_path):
    datasets = pytest.importorskip("datasets", reason="the extra 'data' is not installed")
    splits = {
        name: datasets.Dataset.from_list([{**ROWS["alpaca"], "instruction": name}] * n)
        for name, n in (("train", 4), ("test", 2), ("other", 3))
    }
    datasets.DatasetDict(splits).save_to_disk(str(tmp_path / "d"))
    data = {"train": "d", "validation": "d:other", "test": "d"}
    job = build(make(told(tmp_path, **data), folder=tmp_path))
    assert job.ledger["rows"] == {"train": 4, "validation": 3, "test": 2}
    files = [(f["file"], f["rows"], len(f["sha256"])) for f in job.ledger["files"]]
    assert files == [("d:train", 4, 64), ("d:other", 3, 64), ("d:test", 2, 64)]
    assert job.suite.splits["test"].examples[0].prompt == "test"
    with pytest.raises(Failure, match=r"data.test: .*no split 'test2', only train, test, other"):
        build(make(told(tmp_path, **{**data, "test": "d:test2"}), folder=tmp_path))


def test_a_form_that_is_told_wins_and_goes_for_rows_given_as_objects(tmp_path):
    both = {**ROWS["prompt"], "instruction": "a", "output": "b"}
    recipe = told(tmp_path, [both], form="alpaca")
    assert build(make(recipe, folder=tmp_path)).ledger["form"] == "alpaca"
    job = build(make(recipe, folder=tmp_path), Parts(rows=[both]))
    assert job.streams["train"].examples[0].answer == "b"
    with pytest.raises(Failure, match=r"data.train: .*rows.jsonl, line 1: .*set data.form to"):
        build(make(told(tmp_path, [both]), folder=tmp_path))


def test_all_splits_have_the_form_of_the_training_rows(tmp_path):
    (tmp_path / "t.jsonl").write_text(json.dumps(ROWS["alpaca"]) + "\n")
    recipe = told(tmp_path, [ROWS["prompt"]], test="t.jsonl")
    match = r"data.test: .*t.jsonl, line 1: expected rows of form prompt"
    with pytest.raises(Failure, match=match):
        build(make(recipe, folder=tmp_path))


def test_columns_are_made_of_a_worlds_rows_too(tmp_path):
    world = {"world": {"name": "marked_orders", "prompts": 64}, "train": None}
    columns = {"columns": {"completion": "{{ completion }} {{ completion }}"}}
    one, twice = (
        build(make(told(tmp_path, **world, **more), folder=tmp_path)).streams["train"].examples[0]
        for more in ({}, columns)
    )
    assert one.prompt_ids == twice.prompt_ids
    assert twice.completion_ids == (*one.completion_ids[:-1], *one.completion_ids)
