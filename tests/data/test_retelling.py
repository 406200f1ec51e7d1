"""Sequences in another tokenizer: the same text, and rows that say what comes after the same."""

import pytest
import torch
import vocabularies

from stillroom.core import Failure
from stillroom.data.retelling import Retelling
from stillroom.data.text import Renderer, TextData, collate

CHAT = (
    "{% for m in messages %}<s>{{ m.role }}: {{ m.content }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant: {% endif %}"
)
OTHER_CHAT = (
    "{% for m in messages %}[{{ m.role[0] }}] {{ m.content }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}[a] {% endif %}"
)
ROWS = [
    {"prompt": "the cat", "completion": " sat on the mat"},
    {"prompt": "say", "completion": " 你好 😀 hello"},
    {"prompt": "naïve", "completion": "café"},
]


def made(rows=ROWS, own=None, other=None, keep=None):
    """A retelling, and the batch of its rows; ``keep`` cuts answers to so many tokens."""
    own = Renderer(own or vocabularies.byte_level(280), [1])
    other = Renderer(other or vocabularies.byte_level(360), [1])
    data = TextData([own.example(row) for row in rows], own.pad_id)
    retell = Retelling(own, other, [data])
    batch = data.batch(range(len(data)))
    if keep is not None:
        pairs = [(e.prompt_ids, e.completion_ids[:keep]) for e in data.examples]
        batch = collate(pairs, batch.id, own.pad_id)
    return retell, batch


def before(tokenizer, batch, row):
    """The text of an answer before the token that a row says; bytes as they are."""
    length = batch.ids.shape[1]
    i, place = divmod(int(batch.rows[row]), length)
    ids = batch.ids[i, int(batch.prompt[i]) : place + 1].tolist()
    letters = "".join(tokenizer.convert_ids_to_tokens(ids))
    return i, tokenizer.backend_tokenizer.decoder.decode([letters]) if letters else ""


@pytest.mark.parametrize(("sizes"), [(280, 360), (360, 280), (280, 280)])
def test_rows_that_meet_come_after_the_same_text(sizes):
    own, other = (vocabularies.byte_level(size) for size in sizes)
    retell, batch = made(own=own, other=other)
    told = retell(batch)
    pairs = told.pairs["bytes"]
    met = [(row, int(at)) for row, at in enumerate(pairs) if at >= 0]
    for row, at in met:
        assert before(own, batch, row) == before(other, told.batch, at)
    both = [
        {before(t, b, r) for r in range(len(b.rows))}
        for t, b in ((own, batch), (other, told.batch))
    ]
    assert len(met) == len(both[0] & both[1])  # and none is missed
    if sizes[0] == sizes[1]:
        assert pairs.tolist() == list(range(len(batch.rows)))
        assert (told.pairs["within"] == -1).all()


def test_the_text_is_the_same_and_ends_as_it_did():
    retell, batch = made()
    told = retell(batch)
    for i, row in enumerate(ROWS):
        assert (
            retell.other.decode(told.batch.ids[i][told.batch.real[i]])
            == row["prompt"] + row["completion"]
        )
    last = told.batch.ids[torch.arange(3), told.batch.last]
    assert (last == 1).all()
    cut, batch = made(keep=2)
    assert not (cut(batch).batch.ids[torch.arange(3), cut(batch).batch.last] == 1).any()


def test_by_index_the_t_th_goes_with_the_t_th():
    retell, batch = made(own=vocabularies.byte_level(360), other=vocabularies.byte_level(280))
    told = retell(batch)
    for i in range(3):
        mine = told.pairs["index"][batch.owner == i]
        first = int((told.batch.owner < i).sum())
        assert mine.tolist() == list(range(first, first + len(mine)))  # the student's is shorter
    retell, batch = made()
    told = retell(batch)
    for i in range(3):
        mine, theirs = told.pairs["index"][batch.owner == i], (told.batch.owner == i).sum()
        assert (mine >= 0).sum() == theirs < len(mine)
        assert (mine[int(theirs) :] == -1).all()


def test_within_a_token_of_the_others_it_is_where_that_token_was_said():
    own, other = vocabularies.merged("h e"), vocabularies.merged("h e", "l l", "he ll")
    rows = [{"prompt": "a", "completion": "hello"}]
    retell, batch = made(rows, own, other)  # he l l o against hell o
    told = retell(batch)
    assert told.pairs["bytes"].tolist() == [0, -1, -1, 1, 2]
    assert told.pairs["within"].tolist() == [-1, 0, 0, -1, -1]
    assert told.nodes[[1, 2]].unique().numel() == 2
    assert (told.nodes[[0, 3, 4]] == -1).all()


def test_a_sample_that_ends_within_a_character_is_told_up_to_there():
    own = vocabularies.byte_level(258)  # a token a byte
    retell, batch = made([{"prompt": "say", "completion": "ab😀"}], own, keep=4)
    told = retell(batch)
    assert retell.other.decode(told.batch.labels) == "ab"
    meets = told.pairs["bytes"].tolist()
    assert meets[2:] == [-1, -1]
    assert meets[0] == 0


def test_each_renders_messages_by_its_own_template():
    own, other = vocabularies.byte_level(280), vocabularies.byte_level(360)
    own.chat_template, other.chat_template = CHAT, OTHER_CHAT
    turns = [{"role": "user", "content": "where is the cat"}]
    said = {"role": "assistant", "content": "on the mat"}
    retell, batch = made([{"messages": [*turns, said]}], own, other)
    told = retell(batch)
    wanted = retell.other.example({"messages": [*turns, said]})
    assert told.batch.ids[0].tolist() == [*wanted.prompt_ids, *wanted.completion_ids]
    assert told.pairs["bytes"][0] == 0
    assert told.pairs["bytes"][-1] == len(told.batch.rows) - 1


def test_a_beginning_of_text_that_one_of_them_adds_moves_nothing():
    other = vocabularies.byte_level(360)
    other.bos_token = "<s>"
    from tokenizers.processors import TemplateProcessing

    other.backend_tokenizer.post_processor = TemplateProcessing(
        "<s> $A", special_tokens=[("<s>", 0)]
    )
    retell, batch = made(other=other)
    plain, _ = made()
    told = retell(batch)
    assert told.batch.ids[0, 0] == 0
    assert told.pairs["bytes"].tolist() == plain(batch).pairs["bytes"].tolist()


def test_a_space_of_its_own_before_a_text_is_none_of_it():
    """Llama's way writes `` cat`` for ``cat``: the first row means something else, the rest not."""
    own, other = vocabularies.byte_fallback(), vocabularies.byte_level(280)
    rows = [{"prompt": "a", "completion": "the hat"}, {"prompt": "a", "completion": " the hat"}]
    own_first, batch = made(rows, own, other)
    told = own_first(batch)
    first = [told.pairs["bytes"][batch.owner == i].tolist() for i in (0, 1)]
    assert first[0][0] == -1
    assert first[0][-1] >= 0
    assert retelling_text(own_first, told) == [" the hat"[1:], " the hat"]


def retelling_text(retell, told):
    batch = told.batch
    return [retell.other.decode(batch.labels[batch.owner == i]) for i in range(batch.size)]


def test_what_a_normalizer_changes_is_met_up_to_there():
    other = vocabularies.word_piece()
    own = vocabularies.byte_level(280)
    retell, batch = made([{"prompt": "the", "completion": " hat Hello hat"}], own, other)
    told = retell(batch)
    texts = [before(own, batch, row)[1] for row, at in enumerate(told.pairs["bytes"]) if at >= 0]
    assert texts
    assert all(" hat Hello".startswith(text) and "H" not in text for text in texts)


def test_earlier_turns_have_no_pair_and_an_unknown_prompt_is_refused():
    retell, batch = made()
    extra = batch.add_rows(
        rows=torch.cat([torch.tensor([0]), batch.rows]),
        labels=torch.cat([batch.ids[0, 1:2], batch.labels]),
        mask=torch.ones(len(batch.rows) + 1),
    )
    plain, told = retell(batch), retell(extra)
    assert told.pairs["bytes"][0] == -1
    assert told.pairs["bytes"][1:].tolist() == plain.pairs["bytes"].tolist()
    with pytest.raises(Failure, match="none of the data's"):
        retell(collate([((5, 6), (7, 1))], torch.tensor([0]), 1))
