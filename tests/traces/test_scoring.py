"""A pairwise scorer: what it minimises, what it keeps, and what its readers read."""

from __future__ import annotations

import json
import math

import pytest
import torch
from speakers import tiny

from stillroom.data.text import Renderer
from stillroom.failures import Failure
from stillroom.models.text import CausalLM
from stillroom.traces.judge_prompts import Pair
from stillroom.traces.readers import FEATURES, LENGTH, Joined, States, TextFeatures
from stillroom.traces.scoring import fitted, learn, load, misfit, parted, right, tuned

TEXT = TextFeatures()


def drawn(n=60, d=3, seed=0):
    draw = torch.Generator().manual_seed(seed)
    a, b = (torch.randn(n, d, generator=draw, dtype=torch.float64) for _ in range(2))
    return a, b, torch.randint(-1, 2, (n,), generator=draw)


# ---- the fit


@pytest.mark.parametrize("l2", [0.3, 5.0])
def test_the_fit_is_where_the_objectives_gradient_is_zero_ties_counting_half(l2):
    a, b, signs = drawn()
    weight, centre = fitted(a, b, signs, l2)
    # an independent writing of it: logistic regression on labels 1, 1/2, 0, in standard units
    decided = (signs != 0).double()
    times = decided + (1 - decided)  # every pair's texts count once in centre and scale
    texts = torch.cat([a, b])
    assert torch.allclose(centre, (texts * times.repeat(2)[:, None]).mean(0))
    scale = texts.var(0, correction=0).sqrt()
    v = weight * scale
    x = (a - b) / scale
    label = (signs + 1).double() / 2
    gradient = ((torch.sigmoid(x @ v) - label)[:, None] * x).sum(0) + l2 * v
    assert gradient.abs().max() < 1e-5


def test_swapping_all_pairs_with_their_winners_changes_nothing():
    a, b, signs = drawn()
    weight, _ = fitted(a, b, signs, 2.0)
    back, _ = fitted(b, a, -signs, 2.0)
    assert torch.allclose(weight, back, atol=1e-7)


def test_what_a_pair_costs_and_when_it_is_right_by_hand():
    gaps = torch.tensor([2.0, 2.0, 2.0, 0.0], dtype=torch.float64)
    signs = torch.tensor([1, -1, 0, 1])
    low, high = math.log(1 + math.exp(-2)), math.log(1 + math.exp(2))
    assert misfit(gaps, signs).tolist() == pytest.approx([low, high, (low + high) / 2, math.log(2)])
    assert right(gaps, signs)[[0, 1, 3]].tolist() == [1.0, 0.0, 0.5]


def test_folds_are_of_one_size_and_never_part_a_question():
    names = [f"q{i % 25}" for i in range(75)]
    fold = parted(names, 5, seed=3).tolist()
    assert sorted(fold) == [k for k in range(5) for _ in range(15)]
    assert len({(name, k) for name, k in zip(names, fold, strict=True)}) == 25
    assert fold != parted(names, 5, seed=4).tolist()
    with pytest.raises(Failure, match="folds"):
        parted(["a", "b"], 3, 0)


def test_noise_is_tuned_to_a_heavier_penalty_than_signal():
    a, b, _ = drawn(200, 10)
    names = [str(i) for i in range(200)]
    clear = torch.sign((a - b)[:, 0]).long()
    noise = torch.randint(0, 2, (200,), generator=torch.Generator().manual_seed(1)) * 2 - 1
    assert tuned(a, b, clear, names) < 5
    assert tuned(a, b, noise, names) > 50


# ---- the scorer


def made(count=80):
    """The longer answer wins by three words in four pairs of five; else the shorter one."""
    pairs, winners = [], []
    for i in range(count):
        short, long = "word " * (2 + i % 4), "word " * (5 + i % 4)
        pairs.append(Pair(f"q{i}", long, short) if i % 2 else Pair(f"q{i}", short, long))
        winners.append("ba"[i % 2] if i % 5 else "ab"[i % 2])
    return pairs, winners


def test_a_scorer_learns_which_wins_flips_with_the_pair_and_is_kept_without_pickle(tmp_path):
    pairs, winners = made()
    scorer = learn(pairs, winners, LENGTH, l2=0.001)
    gaps = scorer.gaps(pairs)
    assert torch.equal(torch.sign(gaps) > 0, torch.arange(80) % 2 == 1)
    assert torch.equal(scorer.gaps([Pair(p.said, p.b, p.a) for p in pairs]), -gaps)
    scores = scorer.score([(p.said, p.a) for p in pairs[:2]])
    others = scorer.score([(p.said, p.b) for p in pairs[:2]])
    assert torch.allclose(scores - others, gaps[:2])
    scorer.save(tmp_path / "kept")
    assert sorted(f.name for f in (tmp_path / "kept").iterdir()) == [
        "scorer.json", "scorer.safetensors",
    ]  # fmt: skip
    again = load(tmp_path / "kept", LENGTH)
    assert torch.equal(again.gaps(pairs), gaps)
    with pytest.raises(Failure, match="got a reader of"):
        load(tmp_path / "kept", TEXT)
    (tmp_path / "kept" / "scorer.json").write_text("{")
    with pytest.raises(Failure, match="no scorer"):
        load(tmp_path / "kept", LENGTH)


def test_pairs_without_verdict_and_dropped_ties_count_nothing():
    pairs, winners = made()
    more = [*pairs, Pair("x", "one", "one two three four five six")]
    base = learn(pairs, winners, TEXT, l2=1.0)
    assert torch.equal(learn(more, [*winners, None], TEXT, l2=1.0).weight, base.weight)
    assert torch.equal(learn(more, [*winners, "tie"], TEXT, 1.0, "drop").weight, base.weight)
    assert not torch.equal(learn(more, [*winners, "tie"], TEXT, 1.0).weight, base.weight)
    with pytest.raises(Failure, match="no pair has a winner"):
        learn(pairs, ["tie"] * len(pairs), TEXT)
    with pytest.raises(Failure, match="80 pairs, but 1"):
        learn(pairs, ["a"], TEXT)


# ---- readers


def test_features_of_a_text_by_hand():
    answer = "Cats, cats, cats, cats.\n- one\n2) Dogs"
    told = dict(zip(TEXT.names, TEXT([("Do cats sleep", answer)])[0].tolist(), strict=True))
    assert told["log_words"] == pytest.approx(math.log(1 + 8))
    assert told["log_words_squared"] == pytest.approx(math.log(9) ** 2)
    # cats cats cats cats one 2 dogs: trigrams ccc ccc cco co2 o2d
    assert told["repeated_trigrams"] == pytest.approx(1 / 5)
    assert told["type_token_ratio"] == pytest.approx(4 / 7)
    assert told["log_list_marks"] == pytest.approx(math.log(3))
    assert told["log_lines"] == pytest.approx(math.log(3))
    assert told["question_taken_up"] == pytest.approx(1 / 3)
    assert told["answer_from_question"] == pytest.approx(1 / 4)
    assert told["word_length"] == pytest.approx((16 + 3 + 1 + 4) / 7)
    assert told["digits"] == pytest.approx(1 / len(answer))
    assert told["capitals"] == pytest.approx(2 / len(answer))
    assert (told["ended"], told["says_no"]) == (0.0, 0.0)
    assert TextFeatures(("ended", "says_no"))([("q", "Sorry.")]).tolist() == [[1.0, 1.0]]


def test_empty_answers_have_features_and_unknown_ones_are_refused():
    assert torch.isfinite(TEXT([("", "")])).all()
    with pytest.raises(Failure, match="log_words"):
        TextFeatures(("length",))
    assert LENGTH.names[0] in FEATURES


def test_states_are_the_mean_over_the_answers_tokens_of_a_frozen_model():
    model, tokenizer = tiny()
    reader = States(CausalLM(model), Renderer(tokenizer, [0]), "tiny", layers=None, tokens=6)
    texts = [("ask", "ans"), ([{"role": "user", "content": "longer"}], "no"), ("ask", "0123456789")]
    found = reader(texts)
    for row, (prompt, ids) in zip(
        found,
        [("ask", [*tokenizer("ans").input_ids, 0]), ("<user>longer\n<assistant>", None),
         ("ask", tokenizer("0123456789").input_ids[:6])],
        strict=True,
    ):  # fmt: skip
        if ids is None:
            continue
        before = tokenizer(prompt).input_ids
        with torch.no_grad():
            out = model(torch.tensor([[*before, *ids]]), output_hidden_states=True)
        mean = out.hidden_states[-1][0, len(before) :].double().mean(0)
        torch.testing.assert_close(row, mean, atol=1e-5, rtol=1e-5)
    assert torch.isfinite(found).all()
    assert not any(p.requires_grad for p in model.parameters())
    assert torch.isfinite(reader([("ask", "")])).all()
    json.dumps(reader.identity)


def test_joined_readers_stand_side_by_side():
    both = Joined(LENGTH, TextFeatures(("digits",)))
    assert both([("q", "a 1")]).tolist() == [[pytest.approx(math.log(3)), pytest.approx(1 / 3)]]
    assert both.identity != Joined(LENGTH).identity
