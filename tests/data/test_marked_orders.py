"""The world of marked orders and its measures, against values worked out by hand."""

import itertools
import math
from collections import Counter

import pytest
import torch

from stillroom.core import Failure
from stillroom.data.marked_orders import EOS, VOCABULARY, MarkedOrders, decode, encode
from stillroom.evaluation import marked_orders as evaluation

WORLD = MarkedOrders()
PROMPT = [5, 6, 5, 5, 2]
HIT, MISS = math.log(1 - 1e-3 + 1e-3 / 37), math.log(1e-3 / 37)


def table(choices):
    """ln q by looking a completion up in {completion: probability}."""
    return lambda pairs: torch.tensor(
        [math.log(choices[tuple(y)]) if choices.get(tuple(y)) else -math.inf for _, y in pairs],
        dtype=torch.float64,
    )


def window_student(prompt, window=2):
    """Every completion and its probability under the best model that sees ``window`` tokens.

    That model gives the next token the teacher's frequencies after the same last tokens, which
    are counted here in the three valid answers.
    """
    found, answers = {(): 1.0}, WORLD.valid(prompt)
    for place in range(8):
        longer = {}
        for text, share in found.items():
            seen = text[max(0, place - window) :]
            agree = [y for y in answers if tuple(y[max(0, place - window) : place]) == seen]
            for token, count in Counter(y[place] for y in agree).items():
                longer[(*text, token)] = share * count / len(agree)
        found = longer
    return found


def test_the_world_is_the_one_described():
    allowed = [
        [0, 3, 5],
        [2, 3, 4],
        [2, 3, 5],
        [1, 2, 4],
        [1, 2, 4],
        [0, 1, 2],
        [1, 4, 5],
        [0, 2, 4],
    ]
    assert [list(styles) for styles in WORLD.allowed] == allowed
    assert len(VOCABULARY) == len(set(VOCABULARY)) == 37
    assert WORLD.valid(PROMPT) == [
        [21, 13, 14, 27, 13, 13, 33, 1],
        [22, 13, 14, 28, 13, 13, 34, 1],
        [24, 13, 14, 30, 13, 13, 36, 1],
    ]
    assert decode(PROMPT + WORLD.valid(PROMPT)[0]) == (
        "a2 a3 a2 a2 : m0.s2 w2 w3 m1.s2 w2 w2 m2.s2 <eos>"
    )


def test_another_world_seed_is_another_table():
    assert MarkedOrders(world_seed=1).allowed != WORLD.allowed


def test_splits_have_their_sizes_share_nothing_and_store_valid_answers():
    splits = WORLD.splits(0)
    assert {name: len(rows) for name, rows in splits.items()} == {
        "train": 2048,
        "validation": 256,
        "test": 256,
    }
    rows = [row for part in splits.values() for row in part]
    assert len({row["prompt"] for row in rows}) == 2048 + 256 + 256
    for row in rows:
        assert [*encode(row["completion"]), EOS] in WORLD.valid(encode(row["prompt"]))
    assert splits == WORLD.splits(0)
    assert splits["test"] != WORLD.splits(1)["test"]


def test_split_follows_the_permutation_of_its_seed():
    torch.manual_seed(1003)
    order = torch.randperm(4096)
    symbols = torch.tensor(list(itertools.product(range(8), repeat=4)))[order].tolist()
    expected = [[*(3 + x for x in row), 2] for row in symbols]
    splits = WORLD.splits(3)
    prompts = {name: [encode(row["prompt"]) for row in rows] for name, rows in splits.items()}
    assert prompts["train"] == expected[:2048]
    assert prompts["test"] == expected[-256:]
    assert prompts["validation"] == expected[-512:-256]


def test_stored_answers_use_all_three_styles_alike():
    picks = Counter(
        WORLD.valid(encode(row["prompt"])).index([*encode(row["completion"]), EOS])
        for row in WORLD.splits(0)["train"]
    )
    # 2048 draws of probability 1/3: four standard deviations are 85
    assert all(abs(count - 2048 / 3) < 85 for count in picks.values())
    assert len(picks) == 3


def test_one_style_keeps_the_rows_of_the_smallest_style_and_all_tests():
    plain, one = WORLD.splits(0), WORLD.splits(0, one_style=True)
    assert one["test"] == plain["test"]
    for name in ("train", "validation"):
        smallest = [
            row
            for row in plain[name]
            if encode(row["completion"]) == WORLD.valid(encode(row["prompt"]))[0][:-1]
        ]
        assert one[name] == smallest
        assert 0.25 < len(smallest) / len(plain[name]) < 0.42


def test_a_small_world_has_small_splits():
    splits = MarkedOrders(prompts=64).splits(0)
    assert {name: len(rows) for name, rows in splits.items()} == {
        "train": 32,
        "validation": 4,
        "test": 4,
    }
    assert splits["train"] == WORLD.splits(0)["train"][:32]


def test_tokenizer_has_the_ids_and_reads_back_what_it_writes():
    tokenizer = WORLD.tokenizer()
    assert len(tokenizer) == 37
    assert tokenizer.convert_ids_to_tokens(list(range(37))) == list(VOCABULARY)
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id) == (0, 1)
    assert tokenizer.decode(range(37)) == " ".join(VOCABULARY)
    assert tokenizer(tokenizer.decode(range(37)))["input_ids"] == list(range(37))
    for row in WORLD.splits(0)["test"]:
        text = f"{row['prompt']} {row['completion']}"
        ids = tokenizer(text)["input_ids"]
        assert ids == encode(text)
        assert tokenizer.decode(ids) == decode(ids) == text
        assert tokenizer(row["prompt"] + row["completion"])["input_ids"] == ids


def test_tokenizer_survives_a_folder(tmp_path):
    from transformers import AutoTokenizer

    WORLD.tokenizer().save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    text = "a2 a3 a2 a2 : m0.s2 w2 <eos>"
    assert loaded(text)["input_ids"] == [5, 6, 5, 5, 2, 21, 13, 1]
    assert loaded.decode([5, 6, 5, 5, 2, 21, 13, 1]) == text


def test_smoothed_teacher_by_hand():
    right = WORLD.valid(PROMPT)[1]
    # of eight tokens the other two answers share five: the words and the end
    others = 2 * math.exp(5 * HIT + 3 * MISS)
    expected = math.log((math.exp(8 * HIT) + others) / 3)
    assert WORLD.teacher_logp(PROMPT, right) == pytest.approx(expected, rel=1e-12)
    assert WORLD.teacher_logp(PROMPT, right) == pytest.approx(-math.log(3), abs=0.01)


@pytest.mark.parametrize("length", [1, 2])
def test_smoothed_teacher_sums_to_one_over_all_beginnings(length):
    texts = itertools.product(range(37), repeat=length)
    total = math.fsum(math.exp(WORLD.teacher_logp(PROMPT, text)) for text in texts)
    assert total == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("place", range(8))
def test_smoothed_teacher_shares_a_beginning_among_its_continuations(place):
    start = [*WORLD.valid(PROMPT)[0][:5], 14, 35][:place]
    total = math.fsum(math.exp(WORLD.teacher_logp(PROMPT, [*start, v])) for v in range(37))
    assert total == pytest.approx(math.exp(WORLD.teacher_logp(PROMPT, start)), rel=1e-12)


def test_smoothed_teacher_is_finite_for_any_length():
    right = WORLD.valid(PROMPT)[0]
    whole = WORLD.teacher_logp(PROMPT, right)
    assert WORLD.teacher_logp(PROMPT, [*right, 4, 4]) == pytest.approx(whole + 2 * MISS, rel=1e-12)
    assert WORLD.teacher_logp(PROMPT, [EOS]) == pytest.approx(MISS, rel=1e-12)
    assert math.isfinite(WORLD.teacher_logp(PROMPT, [0] * 12))


def test_teacher_measures_as_perfect():
    got = evaluation.of_teacher(WORLD.splits(0)["test"], WORLD)
    # the smoothed teacher gives its own answers a little less than 1/3
    cost = -math.log(3) - WORLD.teacher_logp(PROMPT, WORLD.valid(PROMPT)[0])
    exact = {"validity": 1, "modes": 3, "forward_kl": 0, "reverse_kl": cost}
    assert got == pytest.approx(exact | {"content": 1, "style": 1, "length_gap": 0}, abs=1e-12)
    assert 0 < cost < 0.01


def test_best_window_student_is_valid_one_time_in_nine():
    choices = window_student(PROMPT)
    assert len(choices) == 27
    rows = [{"prompt": decode(PROMPT)}] * 27
    # each of its 27 equally likely answers once, so that sampled means are exact
    got = evaluation.measured(table(choices), lambda _: [list(y) for y in choices], rows, WORLD)
    # 3 of 27 are of one style, 18 have one wrong marker, 6 have three different styles
    one = math.log(math.exp(8 * HIT) + 2 * math.exp(5 * HIT + 3 * MISS))
    two = math.log(sum(math.exp((8 - k) * HIT + k * MISS) for k in (1, 2, 3)))
    three = math.log(3 * math.exp(6 * HIT + 2 * MISS))
    teacher = (3 * one + 18 * two + 6 * three) / 27 - math.log(3)
    assert got == pytest.approx(
        {
            "validity": 1 / 9,
            "modes": 3,
            "forward_kl": 2 * math.log(3),
            "content": 1,
            "style": 1 / 9,
            "length_gap": 0,
            "reverse_kl": -math.log(27) - teacher,
        },
        abs=1e-12,
    )


def test_a_student_that_sees_its_marker_is_the_teacher():
    rows = [{"prompt": decode(PROMPT)}]
    choices = window_student(PROMPT, window=3)
    got = evaluation.measured(table(choices), lambda _: [WORLD.valid(PROMPT)[2]], rows, WORLD)
    assert got == pytest.approx(evaluation.of_teacher(rows, WORLD), abs=1e-12)


def test_committed_student_is_valid_at_the_price_of_modes():
    answer = WORLD.valid(PROMPT)[0]
    rows = [{"prompt": decode(PROMPT)}]
    got = evaluation.measured(table({tuple(answer): 1.0}), lambda _: [answer], rows, WORLD)
    assert (got["validity"], got["modes"], got["forward_kl"]) == (1, 1, math.inf)
    # ln q - ln p: the reward of an exact log-ratio has this mean, with its sign turned
    assert got["reverse_kl"] == -WORLD.teacher_logp(PROMPT, answer)
    assert got["reverse_kl"] == pytest.approx(math.log(3) - 8 * HIT, abs=1e-12)


def test_modes_are_counted_for_each_prompt():
    other = [4, 6, 5, 5, 2]
    choices = {tuple(y): 1 / 3 for y in WORLD.valid(PROMPT)} | {tuple(WORLD.valid(other)[0]): 1.0}
    rows = [{"prompt": decode(prompt)} for prompt in (PROMPT, other)]
    got = evaluation.measured(
        table(choices), lambda prompts: [WORLD.valid(x)[0] for x in prompts], rows, WORLD
    )
    assert got["modes"] == pytest.approx((3 + 1) / 2)


@pytest.mark.parametrize(
    ("text", "content", "style", "gap"),
    [
        ("m0.s2 w2 w3 m1.s2 w2 w2 m2.s2 <eos>", 1, 1, 0),
        ("m0.s0 w2 w3 m1.s0 w2 w2 m2.s0 <eos>", 1, 1, 0),  # of one style, though not an allowed one
        ("m0.s2 w2 w3 m1.s3 w2 w2 m2.s2 <eos>", 1, 0, 0),
        ("m0.s2 w3 w2 m1.s2 w2 w2 m2.s2 <eos>", 0, 1, 0),
        ("m1.s2 w2 w3 m0.s2 w2 w2 m2.s2 <eos>", 1, 0, 0),
        ("w7 w2 w3 m0.s5 w2 w2 m1.s5 <eos>", 1, 0, 0),  # as far apart as markers of one style
        ("m0.s2 <eos>", 0, 0, -6),
        ("", 0, 0, -8),
        ("m0.s2 w2 w3 m1.s2 w2 w2 m2.s2 m2.s2 w2 <eos>", 1, 1, 2),
    ],
)
def test_sampled_numbers_of_one_answer(text, content, style, gap):
    got = evaluation.sampled(lambda _: torch.zeros(1), [PROMPT], [encode(text)], WORLD)
    assert (got["content"], got["style"], got["length_gap"]) == (content, style, gap)


@pytest.mark.parametrize("prompt", [[5, 6, 5, 2], [5, 6, 5, 5], [11, 6, 5, 5, 2], [5, 6, 5, 5, 5]])
def test_a_wrong_prompt_is_refused(prompt):
    with pytest.raises(Failure, match="a prompt is 4 symbols"):
        WORLD.valid(prompt)


def test_wrong_settings_and_words_are_refused():
    with pytest.raises(Failure, match="from 16 to 4096, got 3"):
        MarkedOrders(prompts=3)
    with pytest.raises(Failure, match="between 0 and 1, got 0"):
        MarkedOrders(smoothing=0)
    with pytest.raises(Failure, match="no word 'b9'"):
        encode("a2 b9")
