"""Addition digit by digit: right sums, chains of thought that check, splits, two tokenizers."""

import re

import pytest

from stillroom.core import Failure
from stillroom.data.addition import Addition
from stillroom.data.spelling import same_words, spelled


def test_sums_and_their_columns_are_right():
    rows = Addition(digits=3, rows=300).splits(0)["train"]
    carries = set()
    for row in rows:
        a, b = re.fullmatch(r"(\d{3})\+(\d{3})=", row["prompt"]).groups()
        assert row["completion"] == str(int(a) + int(b))
        *steps, end = row["cot"].split(";")
        assert end == row["completion"]
        carried, said = 0, ""
        for x, y, step in zip(reversed(a), reversed(b), steps, strict=True):
            terms, total = step.split("=")
            assert terms.split("+") == [x, y, *(["1"] if carried else [])]
            assert sum(map(int, terms.split("+"))) == int(total)
            carried, said = int(total) // 10, total[-1] + said
        assert int(f"{carried}{said}") == int(end)
        carries.add(carried)
    assert carries == {0, 1}


def test_what_is_tested_is_never_trained_on_whatever_the_seeds():
    splits = [Addition(digits=2, rows=2000).splits(seed) for seed in (0, 1)]
    asked = [{k: [r["prompt"] for r in v] for k, v in s.items()} for s in splits]
    assert [len(v) for v in asked[0].values()] == [2000, 256, 256]
    for kept in asked:
        assert all(len(set(v)) == len(v) for v in kept.values())
        assert not set(kept["validation"]) & set(kept["test"])
        for other in asked:
            assert not set(kept["train"]) & {*other["validation"], *other["test"]}
    assert asked[0]["train"] != asked[1]["train"]
    assert splits[0] == Addition(digits=2, rows=2000).splits(0)
    other = Addition(digits=2, rows=2000, world_seed=1).splits(0)["test"]
    assert set(asked[0]["train"]) & {row["prompt"] for row in other}


def test_a_teacher_s_rows_have_the_sum_the_chain_or_both():
    told = {
        form: Addition(digits=2, rows=50, written=form).splits(3) for form in ("sum", "cot", "both")
    }
    plain, chain, both = (told[form]["train"] for form in ("sum", "cot", "both"))
    assert [row["completion"] for row in chain] == [row["cot"] for row in plain]
    assert both[::2] == plain
    assert both[1::2] == chain
    assert told["sum"]["test"] == told["both"]["test"] == told["cot"]["test"]


@pytest.mark.parametrize(("chunk", "pieces"), [(1, "1 2 3 + 0 4 5 ="), (2, "12 3 + 04 5 =")])
def test_a_token_holds_as_many_digits_and_tells_its_bytes(chunk, pieces):
    words = Addition(chunk=chunk).tokenizer()
    ids = words("123+045=").input_ids
    assert words.convert_ids_to_tokens(ids) == pieces.split()
    assert words.decode(ids) == "123+045="
    told = spelled(words)
    assert b"".join(told[i] for i in ids) == b"123+045="
    assert told[:2] == [None, None]
    assert words.decode(words("7+5=12;168").input_ids) == "7+5=12;168"


def test_the_two_tokenizers_are_not_the_same():
    one, two = (Addition(chunk=chunk).tokenizer() for chunk in (1, 2))
    assert same_words(one, two) is not None
    assert len(two) == len(one) + 100


@pytest.mark.parametrize(
    "wrong", [{"digits": 1}, {"digits": 4}, {"chunk": 3}, {"rows": 0}, {"rows": 10**6}]
)
def test_a_world_that_cannot_be_is_refused(wrong):
    (name,) = wrong
    with pytest.raises(Failure, match=f"{name} must be .*got {wrong[name]}"):
        Addition(**wrong)
