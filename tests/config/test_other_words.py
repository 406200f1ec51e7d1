"""A teacher whose ids stand for other words is found, whatever the sizes say."""

import pytest
from transformers import LlamaConfig, LlamaForCausalLM
from vocabularies import byte_level, merged

from stillroom.config.build import build
from stillroom.config.recipe import make
from stillroom.config.specs import TeacherSpec
from stillroom.config.teachers import differs
from stillroom.core import Failure

CAT = ("c a", "ca t")
SIZES = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2}


def saved(folder, tokenizer, width=None):
    config = LlamaConfig(
        vocab_size=width or len(tokenizer), num_hidden_layers=1, eos_token_id=1, **SIZES
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def test_as_many_words_in_another_order_are_another_vocabulary(tmp_path):
    told = TeacherSpec(model=saved(tmp_path / "turned", merged(*CAT, turned=True)))
    how = differs(told, merged(*CAT))
    assert how is not None
    assert "turned' has another tokenizer than the student (260 and 260 tokens, of which 0" in how
    assert "id 0, is 'cat' and '<s>'" in how


def test_rows_of_a_head_beyond_the_words_are_no_difference(tmp_path):
    told = TeacherSpec(model=saved(tmp_path / "padded", merged(*CAT), width=320))
    assert differs(told, merged(*CAT)) is None


@pytest.mark.parametrize("turned", [True, False])
def test_a_method_that_compares_token_by_token_refuses_other_words(tmp_path, turned):
    student = saved(tmp_path / "student", merged(*CAT))
    teacher = saved(tmp_path / "teacher", merged(*CAT, turned=turned), width=320)
    recipe = make(
        {
            "method": {"name": "kd"},
            "student": {"model": student},
            "teacher": {"model": teacher},
            "data": {"train": "rows.jsonl"},
            "train": {"steps": 1, "batch": 1},
            "eval": {"samples": 0},
        },
        folder=tmp_path,
    )
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a ", "completion": "cat"}\n')
    if not turned:
        assert build(recipe).teachers
        return
    with pytest.raises(Failure, match=r"teacher\.model: .* has another tokenizer .* of which 0 "):
        build(recipe)


def test_a_larger_vocabulary_that_begins_alike_is_another(tmp_path):
    told = TeacherSpec(model=saved(tmp_path / "larger", byte_level(280)))
    assert "280 and 270 tokens, of which 270 " in str(differs(told, byte_level(270)))
