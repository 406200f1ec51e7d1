"""A second answer, with its chain of thought: rows, tokens, nested batches, and what lacks it."""

import json

import pytest
import vocabularies

from stillroom.config.build import build
from stillroom.config.recipe import make
from stillroom.config.students import _words
from stillroom.core import Failure, Needs
from stillroom.data.forms import shaped
from stillroom.data.further import with_answer
from stillroom.data.text import Renderer, TextData
from stillroom.engine.checks import check_texts
from stillroom.methods.cot2align import CoT2Align
from stillroom.methods.seqkd import SeqKD
from stillroom.models import text
from stillroom.models.view import fit

CHAT = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
ROWS = [
    {"prompt": "2+2=", "completion": "4", "cot": "two and two are 4"},
    {"prompt": "12+30=", "completion": "42", "cot": "2+0 is 2; 1+3 is 4; 42"},
    {"prompt": "0+1=", "completion": "1", "cot": "1"},
    {"prompt": "9+9=", "completion": "18", "cot": "9+9 is 18, carry 1; 18"},
]


def renderer(template=None):
    words = vocabularies.byte_level(280)
    words.chat_template = template
    return Renderer(words, [1])


def data(rows=ROWS):
    made = renderer()
    return made, TextData([made.example(row, texts={"cot"}) for row in rows], made.pad_id)


def test_the_second_answer_is_that_of_a_row_which_has_it_as_its_first():
    made = renderer()
    told = made.example(ROWS[0], texts={"cot"})
    second = made.example({"prompt": "2+2=", "completion": "two and two are 4"})
    assert told.others["cot"] == second
    assert told.others["cot"].completion_ids != told.completion_ids
    assert told.prompt_ids == second.prompt_ids
    assert made.example(ROWS[0]).others == {}


def test_of_messages_it_stands_in_place_of_the_last_turn():
    made = renderer(CHAT)
    asked = [{"role": "user", "content": "2+2="}]
    told = made.example(
        {"messages": [*asked, {"role": "assistant", "content": "4"}], "cot": "two twos: 4"},
        texts={"cot"},
    )
    second = {"role": "assistant", "content": "two twos: 4"}
    assert told.others["cot"] == made.example({"messages": [*asked, second]})
    assert told.others["cot"].answer == "two twos: 4"
    assert told.answer == "4"


@pytest.mark.parametrize("row", [{}, {"cot": ""}, {"cot": None}, {"cot": ["a"]}])
def test_a_row_without_it_is_named(row):
    with pytest.raises(Failure, match=r"a\.jsonl, line 3: expected a text in 'cot'.*columns"):
        renderer().example(
            {"prompt": "a", "completion": "b", **row}, "a.jsonl, line 3", texts={"cot"}
        )
    renderer().example({"prompt": "a", "completion": "b", **row}, "a.jsonl, line 3")


def test_every_form_keeps_it_and_templates_make_it():
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    talk = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]
    for row in (
        {"prompt": "q", "completion": "a"},
        {"messages": turns},
        {"conversations": talk},
        {"instruction": "q", "output": "a"},
    ):
        _, [(where, told)] = shaped([("row 0", {**row, "cot": "c", "id": 1})])
        assert where == "row 0"
        assert told["cot"] == "c"
        assert "id" not in told
        template = {"cot": "{{ why }} So {{ end }}"}
        made = {**row, "why": "w.", "end": "a", "cot": "hidden by the template"}
        form, [(_, filled)] = shaped([("row 0", made)], None, template)
        assert filled["cot"] == "w. So a"
        assert with_answer(filled, "cot") != filled
        assert form == shaped([("row 0", row)])[0]


def test_a_cut_is_of_both_answers():
    made, _ = data()
    told = made.cut(made.example(ROWS[1], texts={"cot"}), 3)
    whole = made.example(ROWS[1], texts={"cot"})
    assert told.others["cot"].completion_ids == whole.others["cot"].completion_ids[:3]
    assert told.completion_ids == whole.completion_ids[:3]
    assert made.decode(told.others["cot"].completion_ids) == told.others["cot"].answer


def test_batches_nest_it_and_stay_aligned_however_they_are_split():
    made, texts = data()
    batch = texts.batch([2, 0, 3, 1])
    assert batch.cot.id.tolist() == batch.id.tolist() == [2, 0, 3, 1]
    assert batch.cost == batch.ids.numel() + batch.cot.ids.numel()
    for parts in (1, 2, 4):
        seen = []
        for part in batch.split(batch.cost // parts if parts < 4 else 1):
            assert part.cot.id.tolist() == part.id.tolist()
            for half, column in ((part, "completion"), (part.cot, "cot")):
                for i, k in enumerate(half.id.tolist()):
                    said = made.decode(half.labels[half.owner == i])
                    assert said == ROWS[k][column]
            seen += part.id.tolist()
        assert seen == [2, 0, 3, 1]
    assert "cot" not in TextData([made.example(ROWS[0])], 0).batch([0])


def recipe(folder, method="cot2align", rows=ROWS, **told):
    told = {"train": "rows.jsonl", "hold_out": 1, **told}
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2}
    sizes |= {"num_hidden_layers": 1, "max_position_embeddings": 40, "model_type": "llama"}
    return make(
        {
            "method": {"name": method},
            "student": {"lm": sizes, "vocab_size": 300},
            "teacher": {"recorded": True},
            "data": told,
            "train": {"steps": 1, "batch": 1},
            "eval": {"samples": 0},
        },
        folder=folder,
    )


def test_a_method_that_learns_from_it_names_the_row_that_lacks_it(tmp_path):
    lacking = [*ROWS, {"prompt": "1+1=", "completion": "2"}]
    with pytest.raises(Failure, match=r"rows\.jsonl, line 5: expected a text in 'cot'.*columns"):
        build(recipe(tmp_path, rows=lacking))
    assert len(build(recipe(tmp_path, "seqkd", lacking)).streams["train"]) == 3
    with pytest.raises(Failure, match="CoT2Align needs features"):  # not of a recorded teacher
        build(recipe(tmp_path))


def test_what_is_held_out_for_tests_alone_may_lack_it(tmp_path):
    (tmp_path / "held.jsonl").write_text('{"prompt": "1+1=", "completion": "2"}\n')
    files = {"hold_out": None, "validation": "held.jsonl", "test": "held.jsonl"}
    with pytest.raises(Failure, match="CoT2Align needs features"):  # the rows passed
        build(recipe(tmp_path, **files))


def test_limits_are_on_the_longer_answer(tmp_path, monkeypatch):
    monkeypatch.setattr(CoT2Align, "needs", Needs(teacher={"text"}, texts={"cot"}))
    limit = {"max_completion_tokens": 12}
    told = [
        build(recipe(tmp_path, name, hold_out=None, **limit)) for name in ("cot2align", "seqkd")
    ]
    kept = [{e.answer for e in job.streams["train"].examples} for job in told]
    assert kept[1] == {"4", "42", "1", "18"}
    assert "1" in kept[0] < kept[1]
    other = [{**row, "cot": f"so {row['cot']}"} for row in ROWS]
    found = [
        build(recipe(tmp_path, rows=rows, hold_out=None)).ledger["sha256"]["train"]
        for rows in (ROWS, other, ROWS)
    ]
    assert found[0] == found[2] != found[1]
    long = {**ROWS[0], "cot": "7 apples " * 30}
    with pytest.raises(Failure, match=r"tokens of prompt and .* of completion exceed"):
        build(recipe(tmp_path, rows=[long], hold_out=None))


def test_data_of_a_python_caller_are_checked_by_their_first_batch():
    made, texts = data()
    check_texts(CoT2Align(), texts.batch([0]))
    check_texts(SeqKD(), texts.batch([0]))
    plain = TextData([made.example(ROWS[0])], 0).batch([0])
    with pytest.raises(Failure, match=r"CoT2Align learns from cot of each row.*Example\.others"):
        check_texts(CoT2Align(), plain)


def test_tokenizers_learn_from_it_and_views_hold_it():
    assert ROWS[0]["cot"] in _words(ROWS[0])
    made, texts = data()
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
    lm = text.build("llama", 280, 1, 0, **sizes, num_attention_heads=2)
    fit([lm], [texts], made, size=1)
    assert lm.view is not None
    assert set(texts.examples[0].others["cot"].completion_ids) <= set(lm.view.ids.tolist())
