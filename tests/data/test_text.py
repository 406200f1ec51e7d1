"""Rows of text to tokens and batches: plain and chat, templates, supervised rows, errors."""

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from stillroom.core import Failure
from stillroom.data.forms import columns, shaped
from stillroom.data.rows import read_jsonl
from stillroom.data.text import Renderer, TextData, collate, prompts_of

WORDS = ["<pad>", "<s>", "</s>", "<|im_start|>", "<|im_end|>", "\n", "user", "assistant", "system"]
PAD, BOS, EOS, START, END, BREAK, USER, ASSISTANT, SYSTEM = range(9)
PLAIN = {word: 9 + i for i, word in enumerate(["say", "hi", "there", "you", "think", "so"])}
SAY, HI, THERE, YOU, THINK, SO = PLAIN.values()
CHAT = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# writes the words of the last turn only, and those of the user
FORGETFUL = (
    "{% for m in messages %}{{ m.role + ' ' }}"
    "{% if loop.last or m.role == 'user' %}{{ m.content + ' ' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}assistant {% endif %}"
)
REFUSING = "{% if messages[0].role == 'system' %}{{ raise_exception('no system turn') }}{% endif %}"


def tokenizer(template=None, *, adds_bos=False):
    known = {word: i for i, word in enumerate(WORDS)} | PLAIN
    words = Tokenizer(models.WordLevel(known, unk_token=None))
    words.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(" ", "removed"), pre_tokenizers.Split("\n", "isolated")]
    )
    if adds_bos:
        words.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", BOS)]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=words,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        additional_special_tokens=["<|im_start|>", "<|im_end|>"],
        chat_template=template,
        clean_up_tokenization_spaces=False,
    )


def turns(*contents, system=False):
    roles = ["user", "assistant"] * len(contents)
    said = [{"role": r, "content": c} for r, c in zip(roles, contents, strict=False)]
    return {"messages": [{"role": "system", "content": "so"}] * system + said}


# ---- plain strings


@pytest.mark.parametrize("template", [None, CHAT])
@pytest.mark.parametrize("adds_bos", [False, True])
def test_plain_strings_are_never_wrapped(template, adds_bos):
    renderer = Renderer(tokenizer(template, adds_bos=adds_bos), [END, EOS])
    example = renderer.example({"prompt": "say hi", "completion": "hi there"})
    assert example.prompt_ids == ((BOS, SAY, HI) if adds_bos else (SAY, HI))
    assert example.completion_ids == (HI, THERE, END)
    assert (example.prompt, example.answer) == ("say hi", "hi there")
    assert renderer.decode([BOS, HI, THERE, END]) == "hi there"


def test_an_end_of_text_that_is_spelt_out_is_not_doubled():
    renderer = Renderer(tokenizer(), [EOS])
    example = renderer.example({"prompt": "say", "completion": "hi </s>"})
    assert example.completion_ids == (HI, EOS)


def test_the_padding_id_falls_back_to_the_first_stop():
    words = tokenizer()
    words.pad_token = None
    assert Renderer(words, [END, EOS]).pad_id == END
    assert Renderer(tokenizer(), [END, EOS]).pad_id == PAD


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"prompt": "say"}, r"f\.jsonl, line 3: expected a text in 'completion'.*\['prompt'\]"),
        ({"prompt": 4, "completion": "hi"}, "line 3: expected a text in 'prompt'"),
        ({"prompt": "say", "completion": ""}, "line 3: the completion is empty"),
        ({"prompt": "", "completion": "hi"}, "line 3: the prompt has no token"),
        (turns("say", "hi"), "line 3: the tokenizer has no chat template"),
    ],
)
def test_a_row_that_cannot_be_used_is_named(row, told):
    with pytest.raises(Failure, match=told):
        Renderer(tokenizer(), [EOS]).example(row, "f.jsonl, line 3")


def test_a_model_without_a_stop_id_is_refused():
    with pytest.raises(Failure, match="names no stop token: set eos_token_id"):
        Renderer(tokenizer(), [])


# ---- messages


def test_the_last_turn_of_a_chat_is_supervised_up_to_its_stop():
    renderer = Renderer(tokenizer(CHAT, adds_bos=True), [EOS, END])
    example = renderer.example(turns("say hi", "hi", "you think so", "so there", system=True))
    earlier = [START, SYSTEM, BREAK, SO, END, BREAK, START, USER, BREAK, SAY, HI, END, BREAK]
    earlier += [START, ASSISTANT, BREAK, HI, END, BREAK, START, USER, BREAK, YOU, THINK, SO]
    # the template adds whatever begins a text itself: no BOS of the tokenizer comes before it
    assert example.prompt_ids == (*earlier, END, BREAK, START, ASSISTANT, BREAK)
    assert example.completion_ids == (SO, THERE, END)  # without the line break that follows
    assert example.answer == "so there"


def test_a_chat_whose_template_writes_no_stop_gets_one():
    template = "{% for m in messages %}{{ m.role + ' ' + m.content + ' ' }}{% endfor %}"
    template += "{% if add_generation_prompt %}assistant {% endif %}"
    example = Renderer(tokenizer(template), [END]).example(turns("say hi", "hi there"))
    assert example.prompt_ids == (USER, SAY, HI, ASSISTANT)
    assert example.completion_ids == (HI, THERE, END)


def test_a_template_that_changes_earlier_turns_is_refused():
    renderer = Renderer(tokenizer(FORGETFUL), [END])
    assert renderer.example(turns("say hi", "hi")).completion_ids == (HI, END)
    unstable = FORGETFUL.replace("or m.role == 'user'", "")  # the user's turn goes, once answered
    with pytest.raises(Failure, match="row 7: the chat template changes earlier turns"):
        Renderer(tokenizer(unstable), [END]).example(turns("say hi", "hi"), "row 7")


@pytest.mark.parametrize(
    ("messages", "told"),
    [
        ([], "row 7: messages must be a list whose last turn is the assistant's"),
        ("hi", "row 7: messages must be a list"),
        (["hi"], "row 7: messages must be a list"),
        ([{"role": "user", "content": "say"}], "row 7: messages must be a list"),
        ([{"role": "assistant"}], "row 7: the last answer must have a text as content, got None"),
        ([{"role": "assistant", "content": ""}], "row 7: the last answer is empty"),
        (turns("say", "hi", system=True)["messages"], "row 7: .* refuses .* no system turn"),
    ],
)
def test_messages_that_make_no_chat_are_refused(messages, told):
    with pytest.raises(Failure, match=told):
        Renderer(tokenizer(REFUSING), [END]).example({"messages": messages}, "row 7")


# ---- columns


def test_columns_are_made_by_templates():
    made = {"prompt": "{{ task }}{% if more %} {{ more }}{% endif %}\n", "completion": "{{ out }}"}
    row = {"task": "say", "more": "hi", "out": "there", "messages": [{}], "self": "a key as others"}
    filled = columns(made)(row)
    assert filled["prompt"] == "say hi\n"  # a line break at the end of a template stays
    assert filled["completion"] == "there"
    form, [(_, shaped_row)] = shaped([("row", row)], templates=made)
    assert form == "prompt"
    assert shaped_row == filled  # the messages are replaced
    example = Renderer(tokenizer(), [EOS]).example(shaped_row)
    assert example.prompt_ids == (SAY, HI, BREAK)


@pytest.mark.parametrize("template", ["{{ absent }}", "{{ task + 1 }}", "{{ task.x.y }}"])
def test_a_template_that_a_row_cannot_fill_names_the_row(template):
    fill = columns({"prompt": template})
    with pytest.raises(Failure, match=r"f\.jsonl, line 9: data\.columns: .*row has \['task'\]"):
        fill({"task": "say"}, "f.jsonl, line 9")


def test_a_malformed_template_is_refused_before_any_row():
    with pytest.raises(Failure, match=r"data\.columns"):
        columns({"prompt": "{{ task"})


# ---- files


def test_rows_are_read_whole(tmp_path):
    rows = [{"prompt": "a\u2028b\x85c", "completion": "\u00e9\n"}, {"prompt": "d", "n": 1}]
    file = tmp_path / "rows.jsonl"
    text = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    for end in ("", "\n"):
        file.write_text(text + end, encoding="utf-8")
        assert read_jsonl(file) == rows


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "the file has no rows"),
        (b'{"a": 1}\n\n{"a": 2}\n', "line 2: the line is empty"),
        (b'{"a": 1}\n{"a": }\n', r"line 2: not valid JSON \(.* at column 7\)"),
        (b'{"a": 1}\n[1]\n', "line 2: expected a JSON object, got list"),
        (b'{"a": "\xe9"}\n', "not UTF-8"),
        (None, "there is no such file"),
    ],
)
def test_a_bad_file_is_named_with_its_line(tmp_path, content, told):
    file = tmp_path / "rows.jsonl"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(Failure, match=f"rows.jsonl.*{told}"):
        read_jsonl(file)


# ---- batches

tokens = st.lists(st.integers(1, 30), min_size=1, max_size=5)
pairs = st.lists(st.tuples(tokens, tokens), min_size=1, max_size=5)


@given(pairs, st.sampled_from(["left", "right"]))
def test_collate_says_which_rows_predict_what(pairs, side):
    batch = collate(pairs, torch.arange(len(pairs)) + 40, 99, side=side)
    length = max(len(p) + len(c) for p, c in pairs)
    assert batch.ids.shape == batch.positions.shape == batch.real.shape == (len(pairs), length)
    expected = []  # (example, place among its own tokens, the token that comes next)
    for i, (prompt, completion) in enumerate(pairs):
        whole = prompt + completion
        before = length - len(whole) if side == "left" else 0
        pad = [99] * (length - len(whole))
        assert batch.ids[i].tolist() == (pad + whole if side == "left" else whole + pad)
        own = slice(before, before + len(whole))
        assert batch.real[i].sum() == batch.real[i, own].sum() == len(whole)
        assert batch.positions[i, own].tolist() == list(range(len(whole)))
        assert batch.last[i] == before + len(whole) - 1
        expected += [
            (i, before + k - 1, whole[k]) for k in range(len(prompt), len(prompt) + len(completion))
        ]
    places = zip((batch.rows // length).tolist(), (batch.rows % length).tolist(), strict=True)
    labels = batch.labels.tolist()
    assert [(*place, y) for place, y in zip(places, labels, strict=True)] == expected
    assert batch.owner.tolist() == [i for i, _, _ in expected]
    # what a row predicts is what stands one place further in the unshifted ids
    assert torch.equal(batch.ids.flatten()[batch.rows + 1], batch.labels)
    assert batch.mask.tolist() == [1.0] * len(expected)
    assert batch.examples.tolist() == [1.0] * len(pairs)
    assert batch.id.tolist() == [40 + i for i in range(len(pairs))]
    assert prompts_of(batch) == [prompt for prompt, _ in pairs]
    assert batch.prompt.tolist() == [len(prompt) for prompt, _ in pairs]


def test_a_data_set_gives_the_examples_that_are_asked_for():
    renderer = Renderer(tokenizer(), [EOS])
    rows = [{"prompt": "say", "completion": "hi"}, {"prompt": "you think", "completion": "so so"}]
    data = TextData([renderer.example(row) for row in rows], renderer.pad_id)
    assert len(data) == 2
    batch = data.batch([1, 0, 1])
    assert batch.id.tolist() == [1, 0, 1]
    assert batch.ids.tolist() == [
        [YOU, THINK, SO, SO, EOS],
        [SAY, HI, EOS, PAD, PAD],
        [YOU, THINK, SO, SO, EOS],
    ]
