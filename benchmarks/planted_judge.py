"""A judge with known faults, asked through a loopback server, and what it is measured as."""

from __future__ import annotations

import hashlib
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks import fresh
from stillroom.store.answers import Store
from stillroom.store.budget import Budget
from stillroom.store.requests import Decoding, Request
from stillroom.teachers.api import Api
from stillroom.teachers.cached import Cached
from stillroom.traces.judge_prompts import Pair, Template, questions
from stillroom.traces.judging import judged, replies
from stillroom.traces.shares import share

PLANTED = (
    {"first": 0.0, "second": 0.0, "unread": 0.0},
    {"first": 0.3, "second": 0.0, "unread": 0.05},
    {"first": 0.0, "second": 0.2, "unread": 0.1},
    {"first": 0.25, "second": 0.1, "unread": 0.05},
)
"""Shares of prompts at which a judge names the first or the second place blindly, or no verdict."""


def planted(pairs: Sequence[Pair], winners: Sequence[str]) -> list[dict[str, Any]]:
    """What judges with known faults are measured to have, asked through a loopback server."""
    template = Template("verdict")
    prompts = questions(pairs, template)
    truths = [w for p, w in zip(pairs, winners, strict=True) if not p.same]
    said = {"a": "AB", "b": "BA", "tie": ("tie", "tie")}
    truth = dict(zip(prompts, (v for w in truths for v in said[w]), strict=True))
    found = []
    for faults in PLANTED:
        with _served(_judge(truth, faults)) as url, tempfile.TemporaryDirectory() as folder:
            source = Api(model="canned", base_url=url)
            asked = [Request(prompt, Decoding(max_tokens=64)) for prompt in prompts]
            cached = Cached(source, Store(Path(folder)), asked, Budget())
            cached.run()
            got = judged(pairs, replies(cached))
        one = [j.orders[0] == w for j, w in zip(got, winners, strict=True) if j.orders[0]]
        both = [
            j.winner == w
            for j, w in zip(got, winners, strict=True)
            if j.asked and j.winner in ("a", "b")
        ]
        p, r = faults["first"], faults["second"]
        expected = {
            "order_bias": p - r,
            "first_rate": (1 + p - r) / 2,
            "consistency": 1 - p * (1 - r) - r * (1 - p),
            "parse_failures": faults["unread"],
        }
        told = {"faults": faults, "expected": expected, **got.told()}
        told |= {"right_one_order": share(one).told(), "right_both": share(both).told()}
        found.append(told)
    return found


def _judge(truth: Mapping[str, str], faults: Mapping[str, float]) -> Callable[[str], str]:
    """Says the truth, but for shares of prompts that their hash picks."""

    def draw(what: str, prompt: str) -> float:
        told = hashlib.sha256(f"{what}|{faults}|{prompt}".encode()).digest()
        return int.from_bytes(told[:6], "big") / 2**48

    def say(prompt: str) -> str:
        if draw("unread", prompt) < faults["unread"]:
            return "Both have their merits, A and B alike."
        blind = draw("blind", prompt)
        if blind < faults["first"]:
            return "Verdict: A"
        told = "B" if blind < faults["first"] + faults["second"] else truth[prompt]
        return f"Verdict: {told}"

    return say


@contextmanager
def _served(say: Callable[[str], str]) -> Iterator[str]:
    """The loopback server of the tests."""
    sys.path.insert(0, str(fresh.ROOT / "tests"))
    from servers import Server
    from speakers import Canned

    with Server(Canned(say)) as server:
        yield server.url
