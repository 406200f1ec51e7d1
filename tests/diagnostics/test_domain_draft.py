"""Tokens a call by the geometric series, by counting draws, and runs beside each other."""

from __future__ import annotations

import itertools
from types import SimpleNamespace
from typing import Any

import pytest

from stillroom.core import Failure
from stillroom.diagnostics.domain_draft import DomainDraft, tokens_a_call
from stillroom.evaluation.drafting import GAMMA


def past(name: str, acceptance: float, steps: int = 40, **test: float) -> Any:
    numbers = {"acceptance": acceptance, "greedy_acceptance": 0.5, "block_efficiency": 2.5, **test}
    result = {"test": numbers, "steps": steps, "data": {"rows": {"train": 80}}}
    return SimpleNamespace(name=name, recipe={"train": {"batch": 4}}, result=result, metrics=[])


@pytest.mark.parametrize("gamma", [1, 2, 5])
@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.9])
def test_tokens_a_call_count_what_is_kept_before_the_first_refusal_and_one_more(
    alpha: float, gamma: int
) -> None:
    expected = 0.0
    for kept in itertools.product([True, False], repeat=gamma):
        chance = 1.0
        for one in kept:
            chance *= alpha if one else 1 - alpha
        expected += chance * (1 + len(list(itertools.takewhile(bool, kept))))
    assert tokens_a_call(alpha, gamma) == pytest.approx(expected)
    assert tokens_a_call(alpha, gamma) == pytest.approx((1 - alpha ** (gamma + 1)) / (1 - alpha))


def test_a_draft_that_is_its_target_writes_one_token_more_than_it_drafts() -> None:
    assert tokens_a_call(1.0, 4) == 5


def test_speed_up_pays_for_the_drafts() -> None:
    found = DomainDraft(gamma=3, cost=0.25).read([past("a", 0.5)])
    row = found.rows["a"]
    assert row["tokens_a_call"] == 1.875
    assert row["speed_up"] == 1.875 / 1.75
    assert "1.07 times as fast" in found.sentences[-1]


def test_runs_are_held_against_the_first() -> None:
    found = DomainDraft().read([past("black", 0.5), past("white", 0.6), past("online", 0.4)])
    assert list(found.rows) == ["black", "white", "online"]
    assert "white: acceptance 0.6000, +20.0% beside black" in found.sentences
    assert "online: acceptance 0.4000, -20.0% beside black" in found.sentences
    assert found.sentences[-1].startswith("white drafts best")
    assert all(set(row) == set(found.columns) for row in found.rows.values())


def test_texts_and_passes_tell_once_from_again() -> None:
    found = DomainDraft().read([past("again", 0.5, steps=40), past("once", 0.5, steps=10)])
    assert (found.rows["again"]["texts"], found.rows["again"]["passes"]) == (80, 2)
    assert (found.rows["once"]["texts"], found.rows["once"]["passes"]) == (40, 0.5)


def test_what_was_counted_for_another_gamma_is_not_shown() -> None:
    assert "block_efficiency" in DomainDraft(gamma=GAMMA).read([past("a", 0.5)]).rows["a"]
    assert "block_efficiency" not in DomainDraft(gamma=GAMMA + 1).read([past("a", 0.5)]).rows["a"]


def test_a_run_without_the_numbers_says_what_gives_them() -> None:
    run = past("plain", 0.5)
    del run.result["test"]["acceptance"]
    with pytest.raises(Failure, match="plain: its test split told no acceptance; add drafting"):
        DomainDraft().read([run])
