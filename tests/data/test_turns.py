"""Every assistant turn supervised: against transformers' own mask, and letter by letter."""

from functools import cache

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import ByteLevelBPETokenizer, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from stillroom.core import Failure
from stillroom.data.text import Renderer, TextData, collate, prompts_of

MARKS = ["<|start|>", "<|end|>", "<|head|>", "<|tail|>"]
CHATML = (
    "{% for m in messages %}{{ '<|start|>' + m.role + '\n' }}"
    "{% if m.role == 'assistant' %}{% generation %}{{ m.content }}"
    "{% for call in m.tool_calls or [] %}{{ '[' + call.name + ']' }}{% endfor %}"
    "{{ '<|end|>' }}{% endgeneration %}"
    "{% else %}{{ m.content + '<|end|>' }}{% endif %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start|>assistant\n' }}{% endif %}"
)
LLAMA = (
    "{{ '<|begin|>' }}{% for m in messages %}"
    "{{ '<|head|>' + m.role + '<|tail|>\n\n' }}"
    "{% if m.role == 'assistant' %}{% generation %}{{ m.content | trim + '<|end|>' }}"
    "{% endgeneration %}{% else %}{{ m.content | trim + '<|end|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|head|>assistant<|tail|>\n\n' }}{% endif %}"
)
COLON = (  # writes no stop
    "{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
WORDS = "the user said hi to system tool assistant and is there any of them who told it so\n"


def fast(inner, template):
    made = PreTrainedTokenizerFast(
        tokenizer_object=inner,
        eos_token="<|end|>",
        pad_token="<|pad|>",
        additional_special_tokens=[*MARKS, "<|begin|>"],
        clean_up_tokenization_spaces=False,
    )
    made.chat_template = template
    return made


@cache
def bytes_of(template, extra=""):
    """Bytes and merges of them: any text is told exactly, and offsets leave out edging spaces."""
    made = ByteLevelBPETokenizer(trim_offsets=True)
    made.train_from_iterator([WORDS + extra] * 4, vocab_size=400, show_progress=False)
    return fast(made._tokenizer, template)


@cache
def words_of(template):
    """As sentencepiece does it: the beginning of every text on its own gets a space."""
    inner = Tokenizer(models.BPE(unk_token="?"))
    inner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    inner.decoder = decoders.Metaspace(prepend_scheme="first")
    letters = sorted(set(WORDS + "abcdefghijklmnopqrstuvwxyz "))
    trainer = trainers.BpeTrainer(
        vocab_size=200, initial_alphabet=letters, special_tokens=["?"], show_progress=False
    )
    inner.train_from_iterator([WORDS.strip()] * 4, trainer)
    return fast(inner, template)


def renderer(tokenizer, train_on="all"):
    return Renderer(tokenizer, [tokenizer.eos_token_id], train_on)


def supervised(batch):
    """Places of labels in the first example's tokens; the labels are what stands there."""
    places = [int(row) + 1 for row in batch.rows]
    assert batch.ids[0, places].tolist() == batch.labels.tolist()
    return places


def batch_of(tokenizer, messages, train_on="all"):
    example = renderer(tokenizer, train_on).example({"messages": messages}, "row 7")
    return TextData([example], tokenizer.pad_token_id).batch([0])


def said(role, content, **more):
    return {"role": role, "content": content, **more}


def conversations(contents):
    """The user, or a system first, then turns of anybody, and the assistant at the end."""
    begin = st.lists(contents.map(lambda c: said("system", c)), max_size=1)
    first = contents.map(lambda c: said("user", c))
    roles = st.sampled_from(["user", "assistant", "assistant", "tool"])
    middle = st.lists(st.builds(said, roles, contents), max_size=5)
    last = contents.map(lambda c: said("assistant", c))
    parts = st.tuples(begin, first, middle, last)
    return parts.map(lambda p: [*p[0], p[1], *p[2], p[3]])


plain = st.lists(st.sampled_from(WORDS.split()), min_size=1, max_size=4).map(" ".join)
anything = st.text(min_size=1, max_size=12)


# ---- oracles


@pytest.mark.parametrize("tokenizers", [bytes_of, words_of])
@pytest.mark.parametrize("template", [CHATML, LLAMA])
@given(messages=conversations(plain))
def test_labels_are_those_of_the_templates_own_marks(tokenizers, template, messages):
    tokenizer = tokenizers(template)
    oracle = tokenizer.apply_chat_template(
        messages, return_dict=True, return_assistant_tokens_mask=True
    )
    batch = batch_of(tokenizer, messages)
    length = batch.ids.shape[1]
    assert batch.ids[0].tolist() == oracle["input_ids"][:length]
    # what our row leaves out at the end is what the template writes after the last stop
    assert not any(oracle["assistant_masks"][length:])
    marked = [i for i, one in enumerate(oracle["assistant_masks"]) if one]
    assert supervised(batch) == marked
    assert len(marked) > sum(m["role"] == "assistant" for m in messages)


@given(conversations(anything))
def test_labels_are_the_assistants_words_and_ends_letter_by_letter(messages):
    tokenizer = bytes_of(CHATML)
    batch = batch_of(tokenizer, messages)
    told = "".join(m["content"] + "<|end|>" for m in messages if m["role"] == "assistant")
    assert tokenizer.decode(batch.labels, skip_special_tokens=False) == told
    supervised(batch)


@given(conversations(anything))
def test_one_turn_or_all_the_tokens_are_the_same(messages):
    tokenizer = bytes_of(CHATML)
    last, every = (batch_of(tokenizer, messages, way) for way in ("last", "all"))
    for name in ("ids", "positions", "last", "prompt", "real", "examples"):
        assert torch.equal(last[name], every[name]), name
    rows, more = last.rows.tolist(), every.rows.tolist()
    assert more[len(more) - len(rows) :] == rows
    assert more == sorted(set(more))
    earlier = sum(m["role"] == "assistant" for m in messages[:-1])
    assert (len(more) > len(rows)) == (earlier > 0)
    told = tokenizer.apply_chat_template(messages[:-1], tokenize=False, add_generation_prompt=True)
    assert tokenizer.decode(prompts_of(every)[0], skip_special_tokens=False) == told


# ---- what counts


def labels(tokenizer, messages, **more):
    batch = batch_of(tokenizer, messages, **more)
    return tokenizer.decode(batch.labels, skip_special_tokens=False)


def test_turns_of_system_user_and_tool_are_context():
    messages = [said("system", "so"), said("user", "hi"), said("assistant", "any")]
    messages += [said("tool", "it"), said("assistant", "told"), said("user", "who")]
    messages += [said("assistant", "them")]
    assert labels(bytes_of(CHATML), messages) == "any<|end|>told<|end|>them<|end|>"
    assert labels(bytes_of(CHATML), messages, train_on="last") == "them<|end|>"


def test_assistant_turns_may_follow_each_other():
    messages = [said("user", "hi"), *(said("assistant", c) for c in ("a", "b", "c"))]
    assert labels(bytes_of(LLAMA), messages) == "a<|end|>b<|end|>c<|end|>"


def test_calls_of_tools_are_what_the_template_writes_of_them():
    call = [{"name": "look"}]
    for content, told in (("", "[look]"), ("so ", "so [look]")):
        turn = said("assistant", content, tool_calls=call)
        messages = [said("user", "hi"), turn, said("tool", "4"), said("assistant", "it")]
        assert labels(bytes_of(CHATML), messages) == f"{told}<|end|>it<|end|>"
        example = renderer(bytes_of(CHATML)).example({"messages": messages[:2]})
        assert example.answer == (content or "[look]")
        assert bytes_of(CHATML).decode(example.completion_ids) == f"{told}<|end|>"


def test_a_stop_within_an_answer_does_not_end_it():
    messages = [said("user", "hi"), said("assistant", "so<|end|>it"), said("user", "who")]
    messages += [said("assistant", "them")]
    assert labels(bytes_of(CHATML), messages) == "so<|end|>it<|end|>them<|end|>"


def test_without_a_stop_a_turn_counts_to_the_end_of_what_is_written():
    tokenizer = bytes_of(COLON)
    messages = [said("user", "hi"), said("assistant", "so"), said("user", "who")]
    messages += [said("assistant", "it")]
    # the first token of "so" has the header's space in it, which its offsets do not tell
    assert labels(tokenizer, messages) == " so\nit\n<|end|>"


def test_a_space_that_is_the_headers_own_token_is_not_counted():
    tokenizer = bytes_of(COLON)
    messages = [said("user", "hi"), said("assistant", "\nso"), said("user", "who")]
    messages += [said("assistant", "\nit")]
    assert tokenizer.tokenize(": \nso")[:3] == [":", "Ġ", "Ċ"]
    assert labels(tokenizer, messages) == "\nso\n\nit\n<|end|>"


def test_a_token_merged_from_header_and_answer_is_not_counted():
    tokenizer = bytes_of(CHATML, extra="so\n\n\nit\n\n\nis\n\n\n")
    assert tokenizer.tokenize("assistant\n\n\nso")[-3:] == ["ĊĊ", "Ċ", "so"]
    messages = [said("user", "hi"), said("assistant", "\n\nso"), said("user", "who")]
    messages += [said("assistant", "\n\nit")]
    # the last answer follows a prompt that was told apart, as in sampling
    assert labels(tokenizer, messages) == "\nso<|end|>\n\nit<|end|>"


def test_nothing_tells_the_first_token():
    silent = "{% for m in messages if m.role == 'assistant' %}{{ m.content }}{% endfor %}"
    tokenizer = bytes_of(silent)
    messages = [said("user", "hi"), said("assistant", "hi so"), said("user", "who")]
    messages += [said("assistant", "it")]
    assert labels(tokenizer, messages) == " soit<|end|>"


# ---- what is refused


def refused(tokenizer, messages, told, train_on="all"):
    with pytest.raises(Failure, match=f"row 7: {told}"):
        batch_of(tokenizer, messages, train_on)


TALK = [said("user", "hi"), said("assistant", "so"), said("user", "who"), said("assistant", "it")]
UNSTABLE = {
    "the content of earlier turns goes": CHATML.replace(
        "{{ m.content }}", "{% if loop.last %}{{ m.content }}{% endif %}"
    ),
    "thoughts of the last turn alone": CHATML.replace(
        "{{ m.content }}", "{% if loop.last %}<think>{% endif %}{{ m.content }}"
    ),
    "a prompt unlike the header of a turn": CHATML.replace(
        "assistant\n' }}{% endif %}",
        "assistant\n' }}{% if messages | length == 1 %}{{ 'so' }}{% endif %}{% endif %}",
    ),
}


@pytest.mark.parametrize("template", UNSTABLE)
def test_a_template_that_changes_earlier_turns_is_refused_for_all_alone(template):
    tokenizer = bytes_of(UNSTABLE[template])
    told = "the chat template writes turn 1 otherwise .* set data.train_on to last"
    refused(tokenizer, [said("user", "hi"), *[said("assistant", "it")] * 2, *TALK[2:]], told)
    if "thoughts" not in template:
        assert labels(tokenizer, TALK, train_on="last") == "it<|end|>"


@pytest.mark.parametrize(
    ("turn", "told"),
    [
        (said("assistant", ""), "turn 1 is empty, so no token is supervised"),
        (said("assistant", None), "turn 1 must have a text as content, got NoneType"),
        (said("assistant", [{"type": "text"}]), "turn 1 must have a text as content, got list"),
        (said("assistant", "", tool_calls=[]), "turn 1 is empty"),
    ],
)
def test_a_turn_that_says_nothing_is_refused_where_it_would_be_learned_from(turn, told):
    messages = [said("user", "hi"), turn, *TALK[2:]]
    refused(bytes_of(CHATML), messages, told)
    if isinstance(turn["content"], str):
        assert labels(bytes_of(CHATML), messages, train_on="last") == "it<|end|>"


def test_an_assistant_that_begins_is_refused_where_it_would_be_learned_from():
    told = "turn 0: messages hold no turn that asks"
    refused(bytes_of(CHATML), TALK[1:], told)
    assert labels(bytes_of(CHATML), TALK[1:], train_on="last") == "it<|end|>"
    refused(bytes_of(CHATML), TALK[1:2], "messages hold no turn that asks", "last")


def test_the_last_turn_must_be_the_assistants():
    refused(
        bytes_of(CHATML), TALK[:3], "messages must be a list whose last turn is the assistant's"
    )


# ---- prompts without an answer


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_what_is_asked_ends_where_an_answer_goes_on(count):
    tokenizer = bytes_of(LLAMA)
    text, ids = renderer(tokenizer).asked({"messages": TALK[:count]})
    asks = TALK[: count - 1 + count % 2]
    assert text == tokenizer.apply_chat_template(asks, tokenize=False, add_generation_prompt=True)
    assert tokenizer.decode(ids) == text
    assert renderer(tokenizer).asked({"prompt": "hi"}) == ("hi", tokenizer.encode("hi"))


# ---- batches


tokens = st.lists(st.integers(1, 30), min_size=1, max_size=4)
parts = st.lists(st.tuples(tokens, st.booleans()), min_size=0, max_size=4)
examples = st.lists(st.tuples(tokens, parts, tokens), min_size=1, max_size=4)


@given(examples, st.sampled_from(["left", "right"]))
def test_rows_are_those_of_all_supervised_parts(examples, side):
    pairs, earlier, expected = [], [], []
    for i, (begin, middle, completion) in enumerate(examples):
        prompt, spans = list(begin), []
        for part, counts in middle:
            if counts:
                spans.append((len(prompt), len(prompt) + len(part)))
                expected += [(i, len(prompt) + k - 1, y) for k, y in enumerate(part)]
            prompt += part
        expected += [(i, len(prompt) + k - 1, y) for k, y in enumerate(completion)]
        pairs.append((prompt, completion))
        earlier.append(spans)
    batch = collate(pairs, torch.arange(len(pairs)), 99, side=side, earlier=earlier)
    length = batch.ids.shape[1]
    before = batch.real.int().argmax(1)[batch.owner]
    found = zip(batch.owner, batch.rows % length - before, batch.labels, strict=True)
    assert [tuple(map(int, one)) for one in found] == expected
    assert torch.equal(batch.ids.flatten()[batch.rows + 1], batch.labels)
    assert len(batch.mask) == len(expected)
    assert batch.prompt.tolist() == [len(prompt) for prompt, _ in pairs]
    parts = [batch.part(i, i + 1) for i in range(batch.size)]
    assert torch.cat([part.labels for part in parts]).tolist() == [y for *_, y in expected]
