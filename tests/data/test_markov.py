"""The source of order two: its distributions, its text, and what is measured against it."""

import math

import pytest
import torch

from stillroom.config.build import build
from stillroom.config.recipe import make
from stillroom.core import Failure
from stillroom.data.markov import RARE, Markov
from stillroom.data.text import collate
from stillroom.data.vocabulary import PAD, SPECIAL

SMALL = Markov(symbols=4, followers=2, broad=0.25, sure=0.9, length=300, rows=300)
WORDS = slice(SPECIAL, None)


def test_a_pair_has_so_many_followers_and_a_share_of_the_pairs_one_that_is_sure():
    chances = SMALL.table.exp()
    torch.testing.assert_close(chances.sum(-1), torch.ones(6, 6, dtype=torch.double))
    pairs = chances[WORDS, WORDS].flatten(0, 1)
    assert (pairs > 10 * RARE).sum(-1).tolist() == [2] * 16
    likeliest = pairs.amax(-1)
    assert (likeliest - 0.9).abs().lt(1e-4).sum() == 12
    assert pairs[:, :SPECIAL].max() == pytest.approx(RARE)
    assert torch.equal(SMALL.allowed[WORDS, WORDS].sum(-1), torch.full((4, 4), 2))


def test_its_text_is_drawn_from_it():
    """Frequencies after each pair; the bound is five standard errors."""
    tokenizer, counts = SMALL.tokenizer(), torch.zeros(6, 6, 6, dtype=torch.double)
    for row in SMALL.splits(0)["train"]:
        ids = torch.tensor(tokenizer(f"{row['prompt']} {row['completion']}").input_ids)
        places = ids[:-2], ids[1:-1], ids[2:]
        counts.index_put_(places, torch.ones(300, dtype=torch.double), accumulate=True)
    told, seen = SMALL.table.exp()[WORDS, WORDS], counts[WORDS, WORDS]
    assert seen.sum() == counts.sum() == 300 * 300
    total = seen.sum(-1, keepdim=True)
    bound = 5 * (told * (1 - told) / total.clamp_min(1)).sqrt() + 1e-5
    assert ((seen / total.clamp_min(1) - told).abs() <= bound)[total.squeeze(-1) > 0].all()


def test_the_teacher_reads_the_two_tokens_before():
    batch = collate([((2, 3), (4, 5)), ((5, 2), (3,))], torch.arange(2), PAD)
    said = SMALL.teacher()(batch).logits
    wanted = [SMALL.table[pair] for pair in ((2, 3), (3, 4), (5, 2))]
    torch.testing.assert_close(said.double(), torch.stack(wanted), rtol=1e-6, atol=1e-6)


def test_sizes_that_do_not_fit_are_refused():
    for told, says in (
        ({"symbols": 1}, r"data\.world\.symbols: .*got 1"),
        ({"symbols": 3}, "followers: there are 3 symbols, got 5"),
        ({"sure": 1.0}, r"data\.world\.sure: .*got 1\.0"),
        ({"broad": -0.1}, r"data\.world\.broad: .*got -0\.1"),
    ):
        data = {"world": {"name": "markov", **told}, "cut_completion_tokens": 24}
        with pytest.raises(Failure, match=says):
            build(recipe(data=data))


def recipe(**more):
    told = {
        "method": "kd",
        "student": {
            "lm": {"model_type": "windowed", "hidden_size": 16, "max_position_embeddings": 32}
        },
        "teacher": {"world": True},
        "data": {
            "world": {"name": "markov", "rows": 64, "held": 16},
            "cut_completion_tokens": 24,
        },
        "train": {"steps": 2, "batch": 8, "lr": 0.01},
        "eval": {"every": None, "metrics": ["source", "agreement"], "samples": 0},
        "sampling": {"max_new_tokens": 24},
        **more,
    }
    return make(told, folder=".")


def test_the_source_as_teacher_is_what_agreement_measures_too():
    job = build(recipe())
    with torch.no_grad():
        told = job.suite.measure({"student": job.student}, "test")
    assert told["source_kl"] == pytest.approx(told["kl"], rel=1e-6)
    text = job.suite.splits["test"].batch(range(16))
    uniform = 14  # an untrained student is nearly uniform, so about 5 of 14 tokens may follow
    assert told["invalid"] == pytest.approx(1 - 5 / uniform, abs=0.15)
    likeliest = job.teachers["teacher"](text).logits.softmax(-1).amax(-1)
    share = float((likeliest > 0.9).double().mean())
    parts = share * told["source_kl_sure"] + (1 - share) * told["source_kl_broad"]
    assert told["source_kl"] == pytest.approx(parts, rel=1e-6)
    assert math.isfinite(told["source_reverse_kl"])
    assert told["source_reverse_kl"] > 0


def test_other_worlds_have_no_such_source():
    world = {"name": "zipf_chain", "words": 40, "rows": 16}
    job = build(recipe(data={"world": world, "cut_completion_tokens": 24}))
    with pytest.raises(Failure, match="world markov"), torch.no_grad():
        job.suite.measure({"student": job.student}, "test")
