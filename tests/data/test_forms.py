"""Alpaca, ShareGPT, messages and columns of any name become what a renderer reads."""

import pytest

from stillroom.core import Failure
from stillroom.data.forms import ROLES, form_of, shaped
from stillroom.data.tables import TableRow
from stillroom.data.turns import question

WHERE = "f.jsonl, line 1"
TURNS = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]
TALK = [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "ho"}]


def one(row, form=None, templates=None):
    told, [(where, made)] = shaped([(WHERE, row)], form, templates)
    assert where == WHERE
    return told, made


# ---- which form


@pytest.mark.parametrize(
    ("columns", "form"),
    [
        ("prompt completion id", "prompt"),
        ("messages id", "messages"),
        ("instruction input output", "alpaca"),
        ("instruction output", "alpaca"),
        ("conversations id", "sharegpt"),
        # whole forms come before questions alone
        ("prompt prompt_id messages", "messages"),
        ("prompt instruction output", "alpaca"),
        ("completion conversations", "sharegpt"),
        # questions that wait for an answer
        ("prompt id", "prompt"),
        ("instruction input", "alpaca"),
    ],
)
def test_the_form_is_told_by_the_columns(columns, form):
    assert form_of(columns.split()) == form


@pytest.mark.parametrize(
    ("columns", "forms"),
    [
        ("prompt completion messages", "prompt or messages"),
        ("messages conversations", "messages or sharegpt"),
        ("prompt completion instruction output", "prompt or alpaca"),
        ("prompt instruction", "prompt or alpaca"),
    ],
)
def test_two_forms_that_fit_are_refused(columns, forms):
    with pytest.raises(Failure, match=f"{WHERE}: .*more than one form: set data.form to {forms}"):
        shaped([(WHERE, dict.fromkeys(columns.split(), "a"))])


def test_no_form_that_fits_is_refused_with_what_fits():
    told = rf"{WHERE}: .*\['answer', 'text'\] fit no form .*alpaca: instruction, output"
    with pytest.raises(Failure, match=told):
        shaped([(WHERE, {"text": "a", "answer": "b"})])


def test_the_first_row_tells_the_form_of_all():
    rows = [("one", {"messages": TURNS}), ("two", {"prompt": "a", "completion": "b"})]
    with pytest.raises(Failure, match=r"two: messages must be .*\['completion', 'prompt'\]"):
        shaped(rows)
    with pytest.raises(Failure, match=r"one: expected rows of form prompt, .*\['messages'\]"):
        shaped(rows[::-1])
    assert shaped([]) == ("prompt", [])


# ---- prompt, and columns


def test_a_prompt_comes_without_the_columns_that_are_not_read():
    assert one({"prompt": "a", "completion": "b", "id": 3}) == (
        "prompt",
        {"prompt": "a", "completion": "b"},
    )
    assert one({"prompt": "a", "id": 3})[1] == {"prompt": "a"}
    both = {"prompt": "a", "completion": "b", "messages": TURNS}
    assert one(both, "prompt")[1] == {"prompt": "a", "completion": "b"}
    assert one(both, "messages")[1] == {"messages": TURNS}


def test_templates_make_one_text_and_the_form_the_other():
    row = {"instruction": "add", "input": "2 2", "output": "4", "completion": "no"}
    template = {"prompt": "{{ instruction }}: {{ input }}"}
    # by its columns the row would be both: with a prompt made, prompt and completion are whole
    with pytest.raises(Failure, match="prompt or alpaca"):
        one(row, None, template)
    assert one(row, "alpaca", template)[1] == {"prompt": "add: 2 2", "completion": "4"}
    assert one(row, "prompt", template)[1] == {"prompt": "add: 2 2", "completion": "no"}
    del row["completion"]
    assert one(row, None, template) == ("alpaca", {"prompt": "add: 2 2", "completion": "4"})


def test_templates_of_both_texts_need_no_form():
    made = {"prompt": "{{ q }}", "completion": "{{ a }}"}
    row = {"q": "x", "a": "y", "messages": TURNS, "instruction": "i", "output": "o"}
    assert one(row, None, made) == ("prompt", {"prompt": "x", "completion": "y"})


def test_templates_replace_conversations():
    row = {"q": "x", "completion": "y", "messages": TURNS, "conversations": TALK}
    template = {"prompt": "{{ q }}"}
    assert one(row, None, template) == ("prompt", {"prompt": "x", "completion": "y"})


@pytest.mark.parametrize("form", ["messages", "sharegpt"])
def test_templates_do_not_go_with_conversations(form):
    with pytest.raises(Failure, match=f"data.columns makes prompt .*data.form is {form}"):
        one({"messages": TURNS, "conversations": TALK}, form, {"prompt": "x"})


def test_a_template_of_a_column_that_nothing_reads_is_refused():
    with pytest.raises(Failure, match=r"data.columns: \['promt'\] would be read by nothing"):
        one({"prompt": "a", "completion": "b"}, None, {"promt": "x"})


def test_a_template_decodes_only_what_it_names():
    decoded = []
    row = TableRow(("q", "image", "messages"), lambda name: [decoded.append(name) or name], 0)
    made = {"prompt": "{{ q }}", "completion": "z"}
    assert one(row, None, made)[1] == {"prompt": "q", "completion": "z"}
    assert decoded == ["q"]


# ---- alpaca


@pytest.mark.parametrize(
    ("row", "made"),
    [
        ({"input": "2 2", "output": "4"}, {"prompt": "add\n\n2 2", "completion": "4"}),
        ({"input": "", "output": "4"}, {"prompt": "add", "completion": "4"}),
        ({"input": None, "output": "4"}, {"prompt": "add", "completion": "4"}),
        ({"output": "4"}, {"prompt": "add", "completion": "4"}),
        ({"input": "2 2"}, {"prompt": "add\n\n2 2"}),
    ],
)
def test_alpaca_joins_instruction_and_input(row, made):
    assert one({"instruction": "add", **row}) == ("alpaca", made)


@pytest.mark.parametrize("row", [{"instruction": None}, {"output": "x"}, {"input": ["a"]}])
def test_alpaca_without_texts_is_refused(row):
    with pytest.raises(Failure, match=f"{WHERE}: expected a text in 'instruction'"):
        one({"instruction": "a", **row} if "input" in row else row, "alpaca")


# ---- conversations


def test_sharegpt_becomes_messages():
    talk = [{"from": name, "value": name.upper()} for name in ROLES]
    form, made = one({"id": 1, "conversations": talk})
    assert form == "sharegpt"
    assert [(t["role"], t["content"]) for t in made["messages"]] == [
        ("system", "SYSTEM"),
        ("user", "HUMAN"),
        ("user", "USER"),
        ("assistant", "GPT"),
        ("assistant", "ASSISTANT"),
        ("tool", "TOOL"),
        ("tool", "OBSERVATION"),
        ("tool", "FUNCTION_RESPONSE"),
    ]


@pytest.mark.parametrize(
    ("turn", "told"),
    [
        ({"from": "robot", "value": "a"}, "from 'robot' is no role; known: system, human"),
        ({"value": "a"}, "from None is no role"),
        ({"from": "gpt", "value": None}, "expected 'from' and a text in 'value'"),
        ({"role": "user", "content": "a"}, "expected 'from' and a text in 'value'"),
        ("a", "expected 'from' and a text in 'value'"),
    ],
)
def test_a_turn_that_is_no_turn_is_named(turn, told):
    with pytest.raises(Failure, match=f"{WHERE}: conversations, turn 2: {told}"):
        one({"conversations": [*TALK, turn]})


@pytest.mark.parametrize("column", ["messages", "conversations"])
def test_a_conversation_is_a_list(column):
    with pytest.raises(Failure, match=f"{WHERE}: {column} must be a list of turns, got str"):
        one({column: "hi"})


def test_null_keys_of_turns_are_left_out():
    turns = [
        {"role": "user", "content": "a", "tool_calls": None, "name": None},
        {"role": "assistant", "content": None, "tool_calls": [{"x": None}]},
    ]
    assert one({"messages": turns})[1]["messages"] == [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": None, "tool_calls": [{"x": None}]},
    ]


# ---- what is asked


def test_the_question_is_the_prompt_or_the_messages_before_the_answer():
    assert question({"prompt": "a", "completion": "b"}) == "a"
    assert question({"messages": TURNS}) == TURNS[:1]
    assert question({"messages": TURNS[:1]}) == TURNS[:1]
    tool = {"role": "tool", "content": "4"}
    assert question({"messages": [*TURNS, tool]}) == [*TURNS, tool]


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"completion": "a"}, r"expected a text in 'prompt' .*\['completion'\]"),
        ({"prompt": None}, "expected a text in 'prompt'"),
        ({"messages": "hi"}, "must be a list of turns"),
        ({"messages": ["hi"]}, "must be a list of turns"),
        ({"messages": []}, "hold no turn that asks"),
        ({"messages": TURNS[1:]}, "hold no turn that asks"),
    ],
)
def test_a_row_that_asks_nothing_is_refused(row, told):
    with pytest.raises(Failure, match=f"{WHERE}: .*{told}"):
        question(row, WHERE)
