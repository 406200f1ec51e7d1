"""Lying servers are found out, each by the test about its lie, and a truthful one passes."""

from typing import Any

import liars
import pytest
import servers
from servers import Server
from speakers import Model, prompt_logprobs, tiny

from stillroom.core import Failure
from stillroom.store.budget import Budget
from stillroom.teachers.probing import Probe
from stillroom.teachers.served import Scorer

pytest.importorskip("httpx2", reason="the extra 'api' is not installed")
pytestmark = pytest.mark.extra("api")

WORDS, MOST, RAW, HEAT, PLACE = (
    "tokenizer as claimed", "the 5 likeliest", "raw, not processed", "temperature honoured",
    "no off by one",
)  # fmt: skip
ALL = (WORDS, MOST, RAW, HEAT, PLACE)


@pytest.fixture(scope="module")
def network():
    return tiny()


def found(speaker: Any, tokenizer: Any, k: int = 5, budget: Budget | None = None) -> dict[str, Any]:
    ids = tokenizer("say 1 very loud it is").input_ids
    with Server(speaker) as server:
        source = Scorer(model="tiny", base_url=server.url, k=k, pause=0.01)
        probe = Probe(source, len(tokenizer), budget or Budget(), tokenizer, ids)
        return {one.about: one for one in probe.findings()}


@pytest.mark.parametrize("k", [1, 5])
def test_a_truthful_server_passes_every_test(network, k):
    told = found(Model(*network, "tiny"), network[1], k)
    assert all(one.fine for one in told.values()), told
    assert len(told) == 5


LIES = {
    "Shifted": ({HEAT, PLACE}, PLACE, "its entry at token 1 and what it says next"),
    "Late": ({HEAT, PLACE}, PLACE, "the entries stand at other places"),
    "Renormalised": ({RAW, PLACE}, RAW, "with prompt_logprobs 1: they are processed or renorm"),
    "Heated": ({RAW}, RAW, "with temperature 2: they are processed"),
    "Cut": ({RAW}, RAW, "with top_p 0.5: they are processed"),
    "Few": ({MOST, RAW, HEAT, PLACE}, MOST, "4 tokens came where the 5 likeliest were asked for"),
    "Deaf": ({HEAT}, HEAT, "two answers at temperature 0 differ"),
    "Contrary": ({HEAT}, HEAT, "most likely"),
    "Beginning": (set(ALL), WORDS, "21 ids were sent, and its usage counts 22"),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_lie_is_found_out(network, lie):
    fails, about, says = LIES[lie]
    told = found(getattr(liars, lie)(*network, "tiny"), network[1])
    assert {name for name, one in told.items() if not one.fine} == fails
    assert says in told[about].says


def test_another_tokenizer_than_claimed_is_found_out(network):
    model, tokenizer = network
    told = found(Model(model, liars.other_words(tokenizer), "tiny"), tokenizer)
    assert {name for name, one in told.items() if not one.fine} == {WORDS}
    assert "in the tokenizer that is named" in told[WORDS].says


def test_a_server_that_reads_text_in_another_way_is_found_out(network):
    class Split(Model):
        def ids(self, asked: Any) -> list[int]:
            return super().ids(asked[::-1] if isinstance(asked, str) else asked)

    told = found(Split(*network, "tiny"), network[1])
    assert {name for name, one in told.items() if not one.fine} == {WORDS}
    assert "becomes other ids there" in told[WORDS].says


def _without(field: str, value: Any = None) -> Any:
    """Entries in which one field says the same of all tokens."""

    def told(reply: Any, k: int) -> list[Any]:
        entries = prompt_logprobs(reply, k)
        return [e and {i: {**one, field: value} for i, one in e.items()} for e in entries]

    return told


@pytest.mark.parametrize(
    ("made", "about", "says"),
    [
        (_without("decoded_token"), WORDS, "is None there"),
        (_without("rank"), MOST, "have the ranks [None"),
        (_without("rank", 1), MOST, "have the ranks [1, 1"),
    ],
)
def test_what_entries_lack_is_found_out(network, monkeypatch, made, about, says):
    monkeypatch.setattr(servers, "prompt_logprobs", made)
    told = found(Model(*network, "tiny"), network[1])
    assert not told[about].fine
    assert says in told[about].says


def test_ranks_against_the_order_of_probabilities_are_found_out(network, monkeypatch):
    def told(reply: Any, k: int) -> list[Any]:
        entries = prompt_logprobs(reply, k)
        turned = {1: 2, 2: 1}
        return [
            e and {i: {**one, "rank": turned.get(one["rank"], one["rank"])} for i, one in e.items()}
            for e in entries
        ]

    monkeypatch.setattr(servers, "prompt_logprobs", told)
    said = found(Model(*network, "tiny"), network[1])
    assert {name for name, one in said.items() if not one.fine} == {MOST}
    assert "a token of lower rank is likelier" in said[MOST].says


def test_a_server_without_scores_of_what_it_writes_is_found_out(network, monkeypatch):
    monkeypatch.setattr(servers, "logprobs", lambda reply, k: None)
    told = found(Model(*network, "tiny"), network[1])
    assert {name for name, one in told.items() if not one.fine} == {HEAT, PLACE}
    assert "no 'logprobs' of the tokens that were written" in told[PLACE].says


def test_a_probe_keeps_to_the_budget(network):
    with pytest.raises(Failure, match="the budget is reached"):
        found(Model(*network, "tiny"), network[1], budget=Budget(tokens=10))
