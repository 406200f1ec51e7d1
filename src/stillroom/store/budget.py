"""The budget: what may be spent, what is spent, and what requests in flight may yet cost."""

from __future__ import annotations

from dataclasses import dataclass, field

from stillroom.failures import Failure
from stillroom.store.prices import Price
from stillroom.store.requests import Tokens


@dataclass(frozen=True)
class Cost:
    """Tokens, and dollars (0 where the price is not known)."""

    tokens: Tokens = field(default_factory=Tokens)
    dollars: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.tokens + other.tokens, self.dollars + other.dollars)

    def __sub__(self, other: Cost) -> Cost:
        return Cost(self.tokens - other.tokens, self.dollars - other.dollars)


class Budget:
    """Bounds, in dollars and tokens, on what the answers to some questions cost over all runs.

    The most that a request may cost is held before it is sent, and given back for what it did
    cost once that is known; so the bound stands whatever comes, a kill included.

    Args:
        usd: the most dollars.
        tokens: the most tokens, prompts and answers together.
        price: None where it is not known.

    Raises:
        Failure: dollars are bounded and the price is not known.
    """

    def __init__(
        self, usd: float | None = None, tokens: int | None = None, price: Price | None = None
    ) -> None:
        if usd is not None and price is None:
            raise Failure(
                "a budget in dollars needs a price, and none is known of this model at this "
                "address: tell it (--price IN,OUT in dollars a million tokens; in a recipe "
                "teacher.price), or bound the tokens"
            )
        self.usd, self.tokens, self.price = usd, tokens, price
        self.spent = Cost()
        self.margin = Tokens()
        """By how much a teacher has counted more than was thought to be the most."""
        self._held: dict[str, Tokens] = {}

    @property
    def bounded(self) -> bool:
        return self.usd is not None or self.tokens is not None

    @property
    def idle(self) -> bool:
        """Whether nothing is in flight, so that nothing will be given back."""
        return not self._held

    def cost(self, *tokens: Tokens) -> Cost:
        """Of requests, each priced by itself."""
        told = [Cost(t, self.price.dollars(t) if self.price else 0.0) for t in tokens]
        return sum(told, Cost())

    def room(self, *most: Tokens) -> bool:
        """Whether these may be sent too, and all in flight cost the most they can."""
        whole = self.spent + self.cost(*self._held.values(), *most)
        dollars = self.usd is None or whole.dollars <= self.usd
        return dollars and (self.tokens is None or whole.tokens.total <= self.tokens)

    def widened(self, most: Tokens) -> Tokens:
        """The bound on a request, by what is known of this teacher's count."""
        return most + self.margin if most.answer else most

    def hold(self, key: str, most: Tokens) -> None:
        self._held[key] = most

    def settle(self, key: str, told: Tokens | None) -> None:
        """What was held for ``key`` is spent: as told, or all of it where nobody knows."""
        most = self._held.pop(key)
        self.count(most, told)

    def count(self, most: Tokens, told: Tokens | None) -> None:
        """Counts an attempt that may have cost ``most`` and cost ``told``, if that is known."""
        told = most if told is None else told
        self.spent += self.cost(told)
        if most.answer:  # else its answer had no bound
            over = told - most
            self.margin += Tokens(max(0, over.prompt), max(0, over.answer))

    def told(self, cost: Cost) -> dict[str, float]:
        """A cost as plain values."""
        tokens = {"prompt_tokens": cost.tokens.prompt, "answer_tokens": cost.tokens.answer}
        return {**tokens, "dollars": round(cost.dollars, 9)} if self.price else {**tokens}

    def says(self, cost: Cost) -> str:
        """A cost in words."""
        dollars = f", ${cost.dollars:.4f}" if self.price else ""
        return f"{cost.tokens.total:,} tokens{dollars}"
