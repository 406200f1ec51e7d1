"""The budget holds the worst case, gives back what was not used, and prices each request."""

import importlib

import pytest

from stillroom.failures import Failure
from stillroom.store.budget import Budget, Cost
from stillroom.store.prices import known_price, told_price
from stillroom.store.requests import Tokens

MOST = Tokens(60, 40)


def test_what_is_in_flight_counts_as_the_most_it_may_cost():
    budget = Budget(tokens=250)
    assert budget.room(MOST)
    budget.hold("a", MOST)
    budget.hold("b", MOST)
    assert not budget.room(MOST)
    assert not budget.idle
    budget.settle("a", Tokens(10, 5))
    assert budget.room(MOST)  # 15 spent, 100 held, 100 wanted
    budget.settle("b", None)
    assert budget.idle
    assert budget.spent.tokens == Tokens(70, 45)  # nobody knows what b cost
    assert budget.room(Tokens(60, 75))
    assert not budget.room(Tokens(60, 76))


def test_nothing_spent_is_not_the_same_as_not_known():
    budget = Budget(tokens=100)
    budget.hold("a", MOST)
    budget.settle("a", Tokens())
    assert budget.spent == Cost()


def test_dollars_by_hand():
    budget = Budget(usd=0.0011, price=told_price(5.0, 20.0))
    assert budget.cost(MOST).dollars == pytest.approx(60 * 5e-6 + 40 * 20e-6)  # 0.0011
    assert budget.room(MOST)
    assert not budget.room(Tokens(61, 40))


def test_a_teacher_that_counts_more_than_the_bound_gets_a_wider_one():
    budget = Budget(tokens=1000)
    budget.hold("a", MOST)
    budget.settle("a", Tokens(90, 40))
    assert budget.widened(MOST) == Tokens(90, 40)
    budget.hold("b", budget.widened(MOST))
    budget.settle("b", Tokens(95, 39))
    assert budget.widened(MOST) == Tokens(95, 40)
    assert budget.widened(Tokens(60, 0)) == Tokens(60, 0)  # no bound stays none


def test_dollars_without_a_price_are_refused_before_anything_is_asked():
    with pytest.raises(Failure, match="--price IN,OUT"):
        Budget(usd=1.0)


@pytest.mark.extra("api")
def test_known_prices_come_dated_and_are_those_of_the_provider():
    prices = pytest.importorskip("genai_prices")
    found = known_price("gpt-4o-mini", "https://api.openai.com/v1")
    assert found is not None
    one = prices.calc_price(
        prices.Usage(input_tokens=2_000_000, output_tokens=500_000), "gpt-4o-mini",
        provider_id="openai",
    )  # fmt: skip
    assert found.dollars(Tokens(2_000_000, 500_000)) == pytest.approx(float(one.total_price))
    assert f"genai-prices {prices.__version__}" in found.says


@pytest.mark.extra("api")
def test_an_unknown_model_or_address_has_no_price():
    pytest.importorskip("genai_prices")
    assert known_price("gpt-4o-mini", "http://127.0.0.1:1/v1") is None
    assert known_price("no-such-model", "https://api.openai.com/v1") is None


def test_the_table_is_an_extra(monkeypatch):
    def missing(name: str, *rest: object) -> object:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(Failure, match=r"stillroom\[api\]"):
        known_price("gpt-4o-mini", "https://api.openai.com/v1")
