"""What a judge of pairs found, and how far the order of the answers and its own words bent it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from stillroom.traces.shares import Share, difference, share

Winner = Literal["a", "b", "tie"]
Marks = tuple[float | None, float | None]
"""How much better a is than b in the order a, b and in b, a; None where a reply does not say."""


@dataclass(frozen=True)
class Judgement:
    """What came of a pair.

    Args:
        winner: None where there is no verdict.
        gap: mean over orders of a's score minus b's; None without scores or verdict.
        orders: the answer that won in the order a, b, and in b, a.
        inconsistent: the two orders disagree.
        failed: replies that came and could not be parsed.
        missing: replies that did not come.
        asked: False for identical answers.
    """

    winner: Winner | None
    gap: float | None = None
    orders: tuple[Winner | None, Winner | None] = (None, None)
    inconsistent: bool = False
    failed: int = 0
    missing: int = 0
    asked: bool = True

    def told(self) -> dict[str, Any]:
        """In plain values, for a row's provenance."""
        named = ("winner", "gap", "inconsistent", "failed", "missing", "asked")
        return {**{name: getattr(self, name) for name in named}, "orders": list(self.orders)}

    @property
    def places(self) -> list[int]:
        """Of each order with a verdict: 1 where the place shown first won, -1 the second, 0 tie."""
        signs = {"a": 1, "b": -1, "tie": 0}
        first, second = self.orders
        return [sign * signs[o] for sign, o in ((1, first), (-1, second)) if o is not None]


def concluded(marks: Marks, scored: bool, missing: int, *, single_order: bool) -> Judgement:
    """One pair's judgement; for the arguments see ``judged``."""
    kept = [mark for mark in marks if mark is not None]
    first, second = _winner(marks[0]), _winner(marks[1])
    about: dict[str, Any] = {"failed": 2 - len(kept) - missing, "missing": missing}
    about["orders"] = first, second
    if len(kept) < (1 if single_order else 2):
        return Judgement(None, **about)
    gap = sum(kept) / len(kept) if scored else None
    if len(kept) == 1:
        return Judgement(first or second, gap, **about)
    differ = first != second
    return Judgement("tie" if differ else first, gap, inconsistent=differ, **about)


def _winner(mark: float | None) -> Winner | None:
    if mark is None:
        return None
    return "tie" if mark == 0 else "a" if mark > 0 else "b"


@dataclass(frozen=True)
class Judgements:
    """Judgements of pairs in their order, and their numbers.

    Identical answers, about which nobody was asked, are in none of the shares.
    """

    each: tuple[Judgement, ...]
    kind: str

    def __iter__(self) -> Iterator[Judgement]:
        return iter(self.each)

    def __len__(self) -> int:
        return len(self.each)

    @property
    def order_bias(self) -> Share:
        """Share of pairs whose verdict follows the place instead of the answer, with its sign.

        ``order_bias = P(the first place wins in both orders) - P(the second wins in both)``, over
        pairs with a verdict in both orders. 0 is no bias, 1 (or -1) a judge that always names the
        first (second) place. If a judge names the first place blindly with probability p, the
        second with r, and else says the truth, which is no tie, the first is ``p (1 - r)`` and the
        second ``r (1 - p)``: the expected value is ``p - r``.
        """
        return difference(
            1 if places == [1, 1] else -1 if places == [-1, -1] else 0 for places in self._both
        )

    @property
    def first_rate(self) -> Share:
        """Of replies that name a winner, the share that name the place shown first; 0.5 is none.

        Wilson's interval takes replies as independent. The two of a pair are not, by way of the
        answers; for a judge that is honest or blind as above the interval is too wide, if wrong.
        """
        return share(p > 0 for one in self.each for p in one.places if p)

    @property
    def consistency(self) -> Share:
        """Of pairs with a verdict in both orders, the share with the same in both."""
        both = (one for one in self.each if None not in one.orders)
        return share(not one.inconsistent for one in both)

    @property
    def ties(self) -> Share:
        """Of pairs with a verdict, the share of ties, the inconsistent ones among them."""
        return share(one.winner == "tie" for one in self.each if one.asked and one.winner)

    @property
    def parse_failures(self) -> Share:
        """Of replies that came, the share that could not be parsed."""
        asked = [one for one in self.each if one.asked]
        failed, missing = (sum(getattr(one, n) for one in asked) for n in ("failed", "missing"))
        return share(i < failed for i in range(2 * len(asked) - missing))

    @property
    def winners(self) -> dict[str, int]:
        """How many pairs a won, b won, are ties, are identical, or have no verdict."""
        told = ("identical" if not one.asked else one.winner or "none" for one in self.each)
        return dict.fromkeys(("a", "b", "tie", "identical", "none"), 0) | Counter(told)

    @property
    def gaps(self) -> list[float]:
        """Score differences a minus b of the pairs that have one, identical ones (0) included."""
        return [one.gap for one in self.each if one.gap is not None]

    def told(self) -> dict[str, Any]:
        """All numbers in plain values."""
        names = ("order_bias", "first_rate", "consistency", "ties", "parse_failures")
        shares = {name: getattr(self, name).told() for name in names}
        gaps = self.gaps
        mean = {"mean": sum(gaps) / len(gaps) if gaps else None, "n": len(gaps)}
        return {"pairs": len(self), "winners": self.winners, **shares, "gap": mean}

    @property
    def _both(self) -> list[list[int]]:
        return [one.places for one in self.each if len(one.places) == 2]
