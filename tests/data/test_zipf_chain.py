"""The chain by Zipf's law: its teacher, its text, and the recipe that is made of both."""

import math
from pathlib import Path

import pytest
import torch

from stillroom.config.build import build
from stillroom.config.recipe import make
from stillroom.core import Failure
from stillroom.data.text import collate
from stillroom.data.vocabulary import EOS, PAD, SPECIAL
from stillroom.data.zipf_chain import Chain, ZipfChain

SMALL = ZipfChain(words=6, kinds=3, exponent=1.0, length=200, rows=400)


def test_the_teacher_tells_one_distribution_a_kind_with_the_ranks_of_zipf():
    logp = SMALL.logp(torch.arange(SPECIAL, 6 + SPECIAL))
    torch.testing.assert_close(logp.exp().sum(-1), torch.ones(6, dtype=torch.double))
    total = sum(1 / rank for rank in range(1, 7))
    wanted = [(1 - 2e-6) / rank / total for rank in range(1, 7)]
    for row in logp.exp():
        assert row[SPECIAL:].sort(descending=True).values.tolist() == pytest.approx(wanted)
        assert row[[PAD, EOS]].tolist() == pytest.approx([1e-6, 1e-6])
    assert len({tuple(row.tolist()) for row in logp}) <= 3


def test_its_text_is_drawn_from_the_teacher():
    """Frequencies after each word; the bound is five standard errors."""
    tokenizer = SMALL.tokenizer()
    counts = torch.zeros(6 + SPECIAL, 6 + SPECIAL, dtype=torch.double)
    for row in SMALL.splits(0)["train"]:
        ids = torch.tensor(tokenizer(f"{row['prompt']} {row['completion']}").input_ids)
        assert len(ids) == 201
        counts.index_put_((ids[:-1], ids[1:]), torch.ones(200, dtype=torch.double), accumulate=True)
    words = slice(SPECIAL, None)
    assert counts[words].sum() == counts.sum() == 400 * 200
    told = SMALL.logp(torch.arange(6 + SPECIAL)).exp()[words]
    seen = counts[words] / counts[words].sum(-1, keepdim=True)
    error = (told * (1 - told) / counts[words].sum(-1, keepdim=True)).sqrt()
    assert ((seen - told).abs() <= 5 * error + 1e-5).all()


def test_splits_and_worlds_differ_by_their_seeds_alone():
    assert SMALL.splits(0) == ZipfChain(**vars_of(SMALL)).splits(0)
    assert SMALL.splits(0)["train"] != SMALL.splits(1)["train"]
    other = ZipfChain(**{**vars_of(SMALL), "world_seed": 1})
    ids = torch.arange(6 + SPECIAL)
    assert not torch.equal(other.logp(ids), SMALL.logp(ids))


def vars_of(world: ZipfChain) -> dict[str, float]:
    names = ("world_seed", "words", "kinds", "exponent", "length", "rows")
    return {name: getattr(world, name) for name in names}


def test_the_teacher_speaks_at_the_rows_of_a_batch():
    batch = collate([((3,), (4, 5)), ((6, 2), (7,))], torch.arange(2), PAD)
    said = Chain(SMALL)(batch)
    torch.testing.assert_close(said["logits"].double(), SMALL.logp(torch.tensor([3, 4, 2])))


@pytest.mark.parametrize(
    ("change", "says"),
    [({"words": 1}, "words must be at least 2"), ({"exponent": -1.0}, "not be below 0")],
)
def test_sizes_out_of_range_are_refused(change, says):
    with pytest.raises(Failure, match=says):
        ZipfChain(**change)


def recipe(world: dict, teacher: dict):
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 1, "num_key_value_heads": 1}
    told = {
        "method": {"name": "kd", "temperature": 1.0},
        "student": {"lm": {"model_type": "llama", **sizes, **heads}},
        "teacher": teacher,
        "data": {"world": world},
        "train": {"steps": 1, "batch": 2},
    }
    return make(told, folder=Path())


def test_a_recipe_learns_from_it_and_from_no_other_world():
    small = {"name": "zipf_chain", "words": 6, "rows": 4, "length": 5}
    teacher = build(recipe(small, {"world": True})).teachers["teacher"]
    assert isinstance(teacher.network, Chain)
    with pytest.raises(Failure, match="of no world that has a teacher"):
        build(recipe({"name": "marked_orders", "prompts": 16}, {"world": True}))
    with pytest.raises(Failure, match="one_style"):
        build(recipe({**small, "one_style": True}, {"world": True}))


def test_it_has_more_mass_beyond_a_few_words_than_a_store_of_these_holds():
    """What the recipe says of it: 12 of 1000 have 0.41, and 14 draws hold 12.1 of them."""
    t = ZipfChain().logp(torch.tensor([5])).exp()[0].sort(descending=True).values
    assert float(t[:12].sum()) == pytest.approx(0.41, abs=0.005)
    assert float((1 - (1 - t) ** 14).sum()) == pytest.approx(12.1, abs=0.05)
    assert math.isclose(float(t.sum()), 1.0, rel_tol=1e-12)
