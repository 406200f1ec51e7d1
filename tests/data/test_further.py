"""Rejected answers, weights and gold answers: rows, tokens, batches, hashes, and what is wrong."""

import json
import math

import pytest
import torch
import vocabularies

from stillroom.config.build import build
from stillroom.config.recipe import make
from stillroom.config.students import _words
from stillroom.config.texts import _digest
from stillroom.core import Failure, Needs
from stillroom.data.forms import shaped
from stillroom.data.text import Example, Renderer, TextData
from stillroom.methods.seqkd import SeqKD
from stillroom.store.requests import digest

ROWS = [
    {"prompt": "2+2=", "completion": "4", "rejected": "five", "cot": "so 4", "gold": 4},
    {"prompt": "1+30=", "completion": "31, I say", "rejected": "3", "cot": "31", "weight": 0.25},
    {"prompt": "0+1=", "completion": "1", "rejected": "1 or 2", "cot": "one", "weight": 0},
]
BOTH = {"rejected", "cot"}


def renderer():
    return Renderer(vocabularies.byte_level(280), [1])


def test_each_further_answer_is_a_batch_of_its_own_and_all_stay_aligned():
    made = renderer()
    texts = TextData([made.example(row, texts=BOTH) for row in ROWS], 0)
    for part in (texts.batch([2, 0, 1]), *texts.batch([2, 0, 1]).split(1)):
        for half, column in ((part, "completion"), *((part[name], name) for name in BOTH)):
            assert half.id.tolist() == part.id.tolist()
            for i, k in enumerate(half.id.tolist()):
                assert made.decode(half.labels[half.owner == i]) == ROWS[k][column]
                start = half.ids[i, : int(half.prompt[i])]
                assert made.decode(start) == ROWS[k]["prompt"]
    alone = TextData([made.example(row, texts={"rejected"}) for row in ROWS], 0).batch([0])
    assert "cot" not in alone
    assert "rejected" in alone


def test_what_some_examples_of_a_batch_lack_is_not_there():
    """One beside examples that are not its own would be learned from without a word."""
    made = renderer()
    texts = [made.example(ROWS[0], texts={"rejected"}), made.example(ROWS[1])]
    assert "rejected" not in TextData(texts, 0).batch([0, 1])
    assert "rejected" in TextData(texts, 0).batch([0])


def test_weights_are_of_examples_and_one_where_none_is_told():
    made = renderer()
    texts = TextData([made.example(row) for row in ROWS], 0)
    batch = texts.batch([2, 0, 1])
    assert batch.weight.tolist() == [0, 1, 0.25]
    assert [part.weight.tolist() for part in batch.split(1)] == [[0], [1], [0.25]]
    assert texts.batch([0]).weight.tolist() == [1]  # whatever batch and process it is in
    assert "weight" not in TextData([made.example(ROWS[0])], 0).batch([0])
    assert texts.batch([0]).weight.dtype == torch.float32


@pytest.mark.parametrize("weight", ["1", -0.5, math.nan, math.inf, True, [1]])
def test_a_weight_that_is_none_is_named(weight):
    with pytest.raises(Failure, match=r"a\.jsonl, line 2: expected a number from 0 on in 'weight'"):
        renderer().example({**ROWS[0], "weight": weight}, "a.jsonl, line 2")


@pytest.mark.parametrize(("told", "gold"), [("42", "42"), (42, "42"), (1.5, "1.5"), (None, None)])
def test_gold_answers_are_texts(told, gold):
    assert renderer().example({**ROWS[0], "gold": told}).gold == gold
    with pytest.raises(Failure, match="row 7: expected a text or a number in 'gold'"):
        renderer().example({**ROWS[0], "gold": [told]}, "row 7")


def test_every_form_keeps_them_and_templates_make_texts():
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    beside = {"rejected": "r", "weight": 0.5, "gold": "a", "other": "o"}
    for row in ({"prompt": "q", "completion": "a"}, {"messages": turns}):
        _, [(_, told)] = shaped([("row 0", {**row, **beside})])
        assert told == {**row, "rejected": "r", "weight": 0.5, "gold": "a"}
        _, [(_, told)] = shaped([("row 0", {**row, **beside})], texts={"other"})
        assert told["other"] == "o"
        template = {"rejected": "{{ other }}!", "gold": "{{ weight }}"}
        _, [(_, told)] = shaped([("row 0", {**row, **beside})], None, template)
        assert (told["rejected"], told["gold"]) == ("o!", "0.5")


def test_of_messages_the_rejected_answer_is_rendered_as_the_last_turn_is():
    made = renderer()
    made.tokenizer.chat_template = (
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}</s>{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    asked = [{"role": "user", "content": "2+2="}]
    turns = [*asked, {"role": "assistant", "content": "4"}]
    told = made.example({"messages": turns, "rejected": "5", "weight": 2}, texts={"rejected"})
    worse = {"messages": [*asked, {"role": "assistant", "content": "5"}]}
    assert told.others == {"rejected": made.example(worse)}
    assert told.weight == 2


def test_hashes_tell_what_is_beside_and_stay_as_they_were_without():
    made = renderer()
    plain = {"prompt": "2+2=", "completion": "4"}

    def told(**beside):
        texts = BOTH & set(beside)
        return _digest([made.example({**plain, **beside}, texts=texts)])

    assert told() == digest([["2+2=", "4", 0]])
    others = [told(**{k: "5"}) for k in ("rejected", "cot", "gold")] + [told(weight=1)]
    assert len({told(), told(rejected="6"), told(rejected="5", cot="5"), *others}) == 7


def test_limits_cuts_and_words_are_of_all_answers():
    made = renderer()
    row = {**ROWS[0], "rejected": "7 apples and a pear"}
    cut = made.cut(made.example(row, texts={"rejected"}), 3)
    assert len(cut.others["rejected"].completion_ids) == 3
    assert row["rejected"] in _words(row)
    assert "other" in _words({**row, "further": "other"}, {"further"})
    assert "other" not in _words({**row, "further": "other"})
    assert _words({"prompt": "a", "completion": "b"}) == "a\nb\n"


def test_a_recipe_gives_them_to_the_method_that_asks(tmp_path, monkeypatch):
    lines = "".join(json.dumps(row) + "\n" for row in ROWS)
    (tmp_path / "rows.jsonl").write_text(lines)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2}
    sizes |= {"num_hidden_layers": 1, "max_position_embeddings": 40, "model_type": "llama"}
    told = {
        "method": {"name": "seqkd"},
        "student": {"lm": sizes, "vocab_size": 300},
        "teacher": {"recorded": True},
        "data": {"train": "rows.jsonl"},
        "train": {"steps": 1, "batch": 1},
        "eval": {"samples": 0},
    }
    examples: list[Example] = build(make(told, folder=tmp_path)).streams["train"].examples
    assert [e.gold for e in examples] == ["4", None, None]
    assert [e.weight for e in examples] == [None, 0.25, 0]
    assert not examples[0].others
    monkeypatch.setattr(SeqKD, "needs", Needs(teacher={"text"}, texts={"rejected"}))
    examples = build(make(told, folder=tmp_path)).streams["train"].examples
    assert [e.others["rejected"].answer for e in examples] == ["five", "3", "1 or 2"]
