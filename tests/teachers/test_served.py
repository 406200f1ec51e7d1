"""A teacher behind a server: what it says is what the model behind it says, or nothing."""

import math
from typing import Any

import pytest
import torch
from servers import Server
from speakers import Model, Reply, tiny

from stillroom.core import Batch, Failure
from stillroom.data.text import collate
from stillroom.losses.sparse import top_k
from stillroom.store.budget import Budget
from stillroom.teachers.entries import REST, largest, rows_of, sparse_of
from stillroom.teachers.served import Scorer, Served

pytest.importorskip("httpx2", reason="the extra 'api' is not installed")
pytestmark = pytest.mark.extra("api")

KEY = "sk-planted-0123456789abcdef"
PAIRS = [((5, 9, 11), (20, 21, 3, 0)), ((7,), (8, 0)), ((30, 31), (32, 33, 34, 35, 36, 0))]
SENT = sum(len(p) + len(c) for p, c in PAIRS)


@pytest.fixture(scope="module")
def network():
    return tiny()


@pytest.fixture(autouse=True)
def key(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


def teacher(url: str, k: int = 4, budget: Budget | None = None, **more: Any) -> Served:
    told = {"model": "tiny", "base_url": url, "pause": 0.01, "timeout": 20.0, "tries": 3, **more}
    return Served(Scorer(k=k, **told), 98, budget or Budget())


def batch(side: str = "right") -> Batch:
    return collate(PAIRS, torch.arange(len(PAIRS)), 1, side=side)


def wanted(model: Any, k: int):
    """``top_k`` of the model's own logits, each sequence read by itself."""
    with torch.no_grad():
        rows = [
            model(torch.tensor([[*p, *c]])).logits[0, len(p) - 1 : -1] for p, c in PAIRS
        ]  # fmt: skip
    return top_k(torch.cat(rows), k)


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("k", [1, 4])
def test_it_says_the_largest_of_the_models_own_logits(network, side, k):
    assert len(network[1]) == 98
    with Server(Model(*network, "tiny")) as server:
        told = teacher(server.url, k)(batch(side)).sparse
    own = wanted(network[0], k)
    assert torch.equal(told.ids, own.ids)
    torch.testing.assert_close(told.logp, own.logp, rtol=0, atol=1e-4)
    torch.testing.assert_close(told.tail, own.tail, rtol=0, atol=1e-4)
    assert told.shape == (len(batch().rows), 98)


def test_what_is_sent_is_ids_and_nothing_that_would_process_the_numbers(network):
    with Server(Model(*network, "tiny")) as server:
        teacher(server.url)(batch())
    bodies = [body for _, body in server.seen]
    assert sorted(body.pop("prompt") for body in bodies) == sorted([*p, *c] for p, c in PAIRS)
    told = {"model": "tiny", "max_tokens": 1, "temperature": 1.0, "top_p": 1.0}
    assert bodies == [{**told, "prompt_logprobs": 4}] * 3


def test_requests_are_in_flight_together_up_to_concurrency_and_equal_ones_are_one(network):
    many = collate([((5, 6), (i % 9, 0)) for i in range(12)], torch.arange(12), 1)
    with Server(Model(*network, "tiny"), pause=0.05) as server:
        told = teacher(server.url, lanes=3)(many).sparse
    assert server.most == 3
    assert sum(server.asked.values()) == 9
    assert torch.equal(told.logp[:2], told.logp[18:20])


def test_a_row_without_a_label_is_not_paid_for(network):
    told = batch().add_rows(rows=batch().rows[:4], labels=batch().labels[:4], mask=torch.ones(4))
    with Server(Model(*network, "tiny")) as server:
        said = teacher(server.url)(told).sparse
    assert sum(server.asked.values()) == 1
    torch.testing.assert_close(said.logp, wanted(network[0], 4).logp[:4], rtol=0, atol=1e-4)


def test_nothing_is_asked_where_no_token_counts(network):
    none = batch().add_rows(rows=batch().rows[:0], labels=batch().labels[:0], mask=torch.ones(0))
    with Server(Model(*network, "tiny")) as server:
        assert teacher(server.url)(none).sparse.logp.shape == (0, 4)
    assert not server.asked


def test_passing_faults_change_nothing(network):
    faults = {"broken": 0.2, "empty": 0.1, "half": 0.1}
    with Server(Model(*network, "tiny"), faults, seed=3) as server:
        told = teacher(server.url, tries=12)(batch()).sparse
    assert sum(server.asked.values()) > 3
    assert torch.equal(told.ids, wanted(network[0], 4).ids)


def entry(*pairs: tuple[int, float]) -> dict[str, Any]:
    return {str(i): {"logprob": math.log(p), "rank": 1, "decoded_token": "x"} for i, p in pairs}


def test_the_rest_by_hand():
    """Of .5 and .25 a quarter is left; of all there is, the least that single precision knows."""
    choice = {"prompt_logprobs": [None, entry((3, 0.5), (7, 0.25)), entry((1, 0.6), (2, 0.4))]}
    told = sparse_of(rows_of(choice, [9, 7, 2], [0, 1], 2, 10), 2, 10)
    assert told.ids.tolist() == [[3, 7], [1, 2]]
    assert told.tail.tolist() == pytest.approx([math.log(0.25), math.log(REST)])


def test_a_small_rest_is_not_lost_in_rounding():
    """In single precision 1 - .5 - .49999 would be off by a hundredth."""
    told = sparse_of([[(3, math.log(0.5)), (4, math.log(0.5 - 1e-5))]], 2, 10)
    assert float(told.tail) == pytest.approx(math.log(1e-5), abs=1e-5)


def test_the_token_that_stands_there_is_none_of_the_largest_unless_it_is_one():
    assert [i for i, _ in largest(entry((3, 0.5), (7, 0.25), (9, 0.01)), 9, 2, 10)] == [3, 7]
    assert [i for i, _ in largest(entry((3, 0.25), (7, 0.5)), 7, 2, 10)] == [7, 3]


WRONG = {
    "fewer": (entry((3, 0.5), (9, 0.1)), "2 tokens came where the 3 likeliest were asked for"),
    "fewer beside it": (entry((3, 0.5), (4, 0.2), (9, 0.1)), None),
    "more": (entry((3, 0.3), (4, 0.2), (5, 0.1), (6, 0.1), (9, 0.1)), "5 tokens came"),
    "one too many": (entry((3, 0.3), (4, 0.2), (5, 0.1), (9, 0.15)), "4 tokens came"),
    "not of it": (entry((3, 0.5), (4, 0.2), (5, 0.1)), "tells nothing of it"),
    "beyond": (entry((3, 0.5), (40, 0.2), (9, 0.1)), "id 40 came, and the tokenizer has ids below"),
    "more than all": (entry((3, 0.9), (4, 0.2), (9, 0.1)), "sum to 1.2000"),
    "none": (None, "no map of ids to 'logprob'"),
    "no number": ({"9": {"logprob": None}}, "no map of ids to 'logprob'"),
    "not a number": ({"9": {"logprob": math.nan}}, "must be 0 at most, got nan"),
    "above one": (entry((3, 0.5), (4, 1.5), (9, 0.1)), "must be 0 at most"),
}


@pytest.mark.parametrize("case", WRONG)
def test_an_entry_that_is_not_as_it_must_be_is_refused(case):
    told, says = WRONG[case]
    if says is None:  # three of three, the one that stands there among them
        assert len(largest(told, 9, 3, 10)) == 3
        return
    with pytest.raises(Failure, match=says):
        largest(told, 9, 3, 10)


def test_probabilities_that_round_to_a_little_more_than_1_are_taken():
    assert len(largest(entry((3, 0.8), (9, 0.2008)), 9, 2, 10)) == 2
    with pytest.raises(Failure, match=r"sum to 1\.0020"):
        largest(entry((3, 0.8), (9, 0.202)), 9, 2, 10)


class Longer(Model):
    """Reads one token more than it was sent."""

    def ids(self, asked: Any) -> list[int]:
        return [0, *super().ids(asked)]


class Silent(Model):
    def __call__(self, asked: Any, told: dict[str, Any]) -> Reply:
        reply = super().__call__(asked, told)
        reply.before = None
        return reply


@pytest.mark.parametrize(
    ("speaker", "says"),
    [
        (Silent, r"the reply has no prompt_logprobs \(it has: finish_reason, index, text\)"),
        (Longer, r"\d prompt_logprobs came for \d tokens"),
    ],
)
def test_a_reply_that_does_not_fit_is_refused(network, speaker, says):
    with (
        Server(speaker(*network, "tiny")) as server,
        pytest.raises(Failure, match=says),
    ):
        teacher(server.url)(batch())


def test_a_budget_stops_before_it_is_passed(network):
    budget = Budget(tokens=SENT + len(PAIRS) + 9)
    with Server(Model(*network, "tiny")) as server:
        asks = teacher(server.url, budget=budget)
        asks(batch())
        assert budget.spent.tokens.total == SENT + len(PAIRS) == server.tokens.total()
        with pytest.raises(Failure, match=r"the budget is reached: \d+ tokens are spent, and 2 of"):
            asks(batch())
    assert server.tokens.total() <= budget.tokens


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        ("unauthorised", "HTTP 401: the server refuses the key in OPENAI_API_KEY"),
        ("rejected", r"HTTP 400: rejected.*the 4 likeliest of each token were asked for"),
        ("broken", "did not answer 3 of 3 requests: HTTP 500"),
    ],
)
def test_a_fault_that_stays_is_told_without_the_key(network, fault, says):
    with (
        Server(Model(*network, "tiny"), {fault: 1.0}) as server,
        pytest.raises(Failure, match=says) as told,
    ):
        teacher(server.url)(batch())
    assert server.seen[0][0]["Authorization"] == f"Bearer {KEY}"
    assert KEY not in str(told.value)
