"""What tokens cost: a table of known prices, and the price that a person tells."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

from stillroom.extras import extra
from stillroom.store.requests import Tokens


@dataclass(frozen=True)
class Price:
    """Dollars of one request by its tokens, and where the price is from."""

    dollars: Callable[[Tokens], float]
    says: str


FREE = Price(lambda tokens: 0.0, "nothing: the model is in this process")


def told_price(prompt: float, answer: float) -> Price:
    """A price in dollars for a million tokens of prompt and of answer.

    >>> told_price(1.0, 4.0).dollars(Tokens(1_000_000, 500_000))
    3.0
    """
    return Price(
        lambda tokens: (tokens.prompt * prompt + tokens.answer * answer) / 1e6,
        f"${prompt:g} and ${answer:g} a million tokens of prompt and answer, as told",
    )


def known_price(model: str, base_url: str) -> Price | None:
    """The price in the table of the package genai-prices; None where that has none.

    The table is the one that the installed version ships; it is not fetched anew, and its version
    is its date. Steps in the price of long prompts are kept; what a provider takes off for prompts
    that it saw lately is not counted, so the true cost may be less.
    """
    prices: Any = extra("genai_prices", "api", "the table of prices")

    @cache
    def found(tokens: Tokens) -> Any:
        usage = prices.Usage(input_tokens=tokens.prompt, output_tokens=tokens.answer)
        return prices.calc_price(usage, model, provider_api_url=base_url)

    try:
        told = found(Tokens(1, 1))
    except LookupError:
        return None
    return Price(
        lambda tokens: float(found(tokens).total_price),
        f"{told.model_price} ({told.model.id} in genai-prices {prices.__version__})",
    )
