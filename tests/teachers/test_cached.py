"""A source behind a store: asked once, within the budget, all told in the end."""

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence

import pytest

from stillroom.failures import Failure
from stillroom.store.answers import Store
from stillroom.store.budget import Budget
from stillroom.store.prices import FREE, told_price
from stillroom.store.requests import Decoding, Outcome, Request, Tokens
from stillroom.teachers.cached import Cached

MOST, TOLD = Tokens(20, 10), Tokens(6, 4)
SHORT = Decoding(max_tokens=10)


class Fake:
    """Answers in this process as a function says; asks again up to three times in all."""

    def __init__(self, say: Callable[[str, int], Outcome] | None = None, **identity: str) -> None:
        self.say = say or (lambda said, times: Outcome("answer", f"so {said}", "", TOLD))
        self.identity = {"kind": "api", "model": "fake", **identity}
        self.lanes, self.size, self.opened = 4, 1, 0
        self.asked: Counter[str] = Counter()
        self.flying = self.most_flying = 0

    def price(self):
        return FREE

    def rendered(self, request: Request):
        return {"said": request.said, "most": request.decoding.max_tokens}

    def most(self, request: Request) -> Tokens:
        return Tokens(MOST.prompt, request.decoding.max_tokens or 0)

    def patient(self, ask, rest):
        async def again(requests):
            for _ in range(3):
                found = await ask(requests)
                if not found or not found[0].again:
                    break
                await rest(0.0)
            return found

        return again

    async def __aenter__(self):
        self.opened += 1
        return self

    async def __aexit__(self, *error):
        return None

    async def ask(self, requests: Sequence[Request]) -> list[Outcome]:
        self.flying += 1
        self.most_flying = max(self.most_flying, self.flying)
        await asyncio.sleep(0.001)
        self.flying -= 1
        found = []
        for request in requests:
            self.asked[request.said] += 1
            found.append(self.say(request.said, self.asked[request.said]))
        return found


def questions(n: int, how: Decoding = SHORT) -> list[Request]:
    return [Request(f"q{i}", how) for i in range(n)]


def cached(folder, source: Fake, requests: Sequence[Request], **budget) -> Cached:
    return Cached(source, Store(folder), requests, Budget(**budget))


def test_what_arrived_is_not_asked_again_and_nobody_is_opened_for_nothing(tmp_path):
    first = cached(tmp_path, Fake(), questions(9))
    first.run()
    again = Fake()
    second = cached(tmp_path, again, questions(9))
    assert second.open == {}
    second.run()
    assert (again.opened, again.asked) == (0, Counter())
    assert second.outcomes == first.outcomes
    more = cached(tmp_path, again, questions(12))
    more.run()
    assert again.asked == Counter(["q9", "q10", "q11"])


def test_equal_questions_are_one_and_copies_are_not(tmp_path):
    source = Fake()
    requests = [Request("a", SHORT), Request("a", SHORT), Request("a", SHORT, 1)]
    one = cached(tmp_path, source, requests)
    one.run()
    assert source.asked == {"a": 2}
    assert one.ledger()["answered"] == 3
    assert len(one.questions) == 2


def test_another_decoding_or_teacher_is_another_question(tmp_path):
    cached(tmp_path, Fake(), questions(2)).run()
    for source, how in ((Fake(), Decoding(max_tokens=9)), (Fake(base_url="b"), SHORT)):
        cached(tmp_path, source, questions(2, how)).run()
        assert source.asked == {"q0": 1, "q1": 1}


def test_no_more_are_in_flight_than_there_are_lanes(tmp_path):
    source = Fake()
    cached(tmp_path, source, questions(20)).run()
    assert source.most_flying == 4


def test_dropped_answers_that_arrived_stay_and_are_not_asked_again(tmp_path):
    kinds = ["answer", "truncated", "refusal", "empty"]

    def say(said: str, times: int) -> Outcome:
        kind = kinds[int(said[1:]) % 4]
        return Outcome(kind, "" if kind == "empty" else "words", "why", TOLD)

    cached(tmp_path, Fake(say), questions(8)).run()
    again = Fake(say)
    second = cached(tmp_path, again, questions(8))
    second.run()
    assert again.asked == Counter()
    assert second.ledger()["dropped"] == {"truncated": 2, "refusal": 2, "empty": 2}
    assert second.ledger(keep_truncated=True)["answered"] == 4


def test_a_truncated_answer_without_words_is_not_kept(tmp_path):
    one = cached(tmp_path, Fake(lambda s, t: Outcome("truncated", " ", "", TOLD)), questions(1))
    one.run()
    assert one.ledger(keep_truncated=True)["dropped"] == {"empty": 1}


def test_what_failed_is_dropped_with_a_reason_and_asked_again_by_the_next_run(tmp_path):
    def say(said: str, times: int) -> Outcome:
        if said == "q1":
            return Outcome("failed", why="HTTP 500", tokens=Tokens(), again=True)
        return Outcome("answer", "yes", "", TOLD)

    one = cached(tmp_path, Fake(say), questions(4))
    one.run()
    told = one.ledger()
    assert (told["answered"], told["dropped"], told["faults"]) == (
        3,
        {"failed": 1},
        {"HTTP 500": 3},
    )
    again = Fake()
    cached(tmp_path, again, questions(4)).run()
    assert again.asked == {"q1": 1}


def test_faults_are_counted_even_where_a_later_attempt_brought_the_answer(tmp_path):
    def say(said: str, times: int) -> Outcome:
        if times < 3:
            return Outcome("malformed", why="half", again=True)
        return Outcome("answer", "yes", "", TOLD)

    one = cached(tmp_path, Fake(say), questions(1), tokens=1000)
    one.run()
    assert one.ledger()["answered"] == 1
    assert one.ledger()["faults"] == {"half": 2}
    assert one.budget.spent.tokens == MOST + MOST + TOLD  # two attempts of unknown cost


@pytest.mark.parametrize("lanes", [1, 4])
def test_a_budget_stops_cleanly_and_a_larger_one_goes_on(tmp_path, lanes):
    source = Fake()
    source.lanes = lanes
    one = cached(tmp_path, source, questions(30), tokens=105)
    one.run()
    # 8 answers of 10 tokens leave 25, in which the most of another, 30, has no room
    assert (one.stopped, one.ledger()["answered"], one.ledger()["left"]) == (
        "the budget is reached", 8, 22,
    )  # fmt: skip
    assert one.budget.spent.tokens.total == 80
    two = cached(tmp_path, source, questions(30), tokens=105)
    two.run()  # what the first run spent counts
    assert (sum(source.asked.values()), two.stopped) == (8, "the budget is reached")
    cached(tmp_path, source, questions(30), tokens=400).run()
    assert set(source.asked.values()) == {1}


def test_who_waits_for_room_in_the_budget_gets_it_when_another_has_ended(tmp_path):
    source = Fake()
    one = cached(tmp_path, source, questions(2), tokens=45)  # room for one at its most, 30
    one.run()
    assert (source.most_flying, one.stopped, len(one.outcomes)) == (1, None, 2)


def test_attempts_that_a_kill_cut_off_count_as_the_most_they_may_have_cost(tmp_path):
    source, requests = Fake(), questions(3)
    one = cached(tmp_path, source, requests, tokens=89)
    for name, request in list(one.open.items())[:2]:
        one.store.begin(source.identity, name, source.rendered(request), MOST)
    two = cached(tmp_path, source, requests, tokens=89)
    assert two.budget.spent.tokens == MOST + MOST
    two.run()
    assert source.asked == Counter()
    assert two.stopped


def test_dollars_bound_too(tmp_path):
    source = Fake()
    one = cached(tmp_path, source, questions(30), usd=105e-6, price=told_price(1.0, 1.0))
    one.run()
    assert sum(source.asked.values()) == 8
    assert one.ledger()["cost"] == {
        "prompt_tokens": 48, "answer_tokens": 32, "dollars": pytest.approx(80e-6)
    }  # fmt: skip


def test_a_budget_without_a_bound_on_answers_is_refused_before_anything_is_asked(tmp_path):
    source = Fake()
    with pytest.raises(Failure, match="--max-tokens"):
        cached(tmp_path, source, questions(2, Decoding()), tokens=1000).run()
    assert source.asked == Counter()
    assert Store(tmp_path).sources() == []


def test_what_it_would_have_cost_without_the_store(tmp_path):
    price = told_price(1.0, 1.0)
    cached(tmp_path, Fake(), questions(4), price=price).run()
    six = cached(tmp_path, Fake(), [*questions(6), *questions(2)], price=price)
    six.run()
    told = {name: six.ledger()[name]["dollars"] * 1e5 for name in six.ledger() if "cost" in name}
    assert told == pytest.approx({"cost": 2, "cost_of_all_runs": 6, "cost_without_store": 8})
    assert six.ledger()["from_store"] == 6


def test_a_fatal_fault_stops_but_what_is_in_flight_arrives(tmp_path):
    def say(said: str, times: int) -> Outcome:
        if said == "q0":
            return Outcome("failed", why="HTTP 401", tokens=Tokens(), fatal=True)
        return Outcome("answer", "yes", "", TOLD)

    source = Fake(say)
    with pytest.raises(Failure, match=r"HTTP 401\. 3 of 50 answers are in the store"):
        cached(tmp_path, source, questions(50)).run()
    assert sum(source.asked.values()) == 4
    assert len(cached(tmp_path, source, questions(50)).outcomes) == 3


def test_a_bug_of_a_source_ends_it_too_and_is_not_hidden(tmp_path):
    def say(said: str, times: int) -> Outcome:
        if said == "q1":
            raise KeyError("a bug")
        return Outcome("answer", "yes", "", TOLD)

    with pytest.raises(KeyError, match="a bug"):
        cached(tmp_path, Fake(say), questions(50), tokens=120).run()
    assert len(cached(tmp_path, Fake(), questions(50)).outcomes) >= 3


def test_a_source_that_answers_nothing_is_given_up(tmp_path):
    source = Fake(lambda said, times: Outcome("rejected", why="HTTP 400: no", tokens=Tokens()))
    with pytest.raises(Failure, match=r"20 questions in a row .* HTTP 400: no"):
        cached(tmp_path, source, questions(500)).run()
    assert sum(source.asked.values()) < 30


def test_another_process_is_told_of_before_anything_is_asked(tmp_path):
    source = Fake()
    with Store(tmp_path).writing(), pytest.raises(Failure, match="being written by process"):
        cached(tmp_path, source, questions(2)).run()
    assert source.asked == Counter()


def test_what_another_process_wrote_meanwhile_is_not_asked_again(tmp_path):
    late = cached(tmp_path, Fake(), questions(5))
    cached(tmp_path, Fake(), questions(5)).run()
    late.run()
    assert late.source.asked == Counter()
    assert late.ledger()["from_store"] == 5


@pytest.mark.parametrize("what", ["tokenizer", "template", "weights"])
def test_a_local_model_that_reads_or_writes_otherwise_is_refused(tmp_path, what):
    told = {"kind": "local", "tokenizer": "t1", "template": "p1", "weights": "w1"}
    cached(tmp_path, Fake(**told), questions(2)).run()
    source = Fake(**{**told, what: "other"})
    with pytest.raises(Failure, match=f"{what} is '..' there, 'other' here"):
        cached(tmp_path, source, questions(2)).run()
    assert source.asked == Counter()


def test_where_nobody_answers_the_store_says_whose_answers_it_has(tmp_path):
    cached(tmp_path, Fake(), questions(2)).run()
    gone = Fake(lambda s, t: Outcome("failed", why="cannot reach", fatal=True), model="other")
    with pytest.raises(Failure, match=r"cannot reach.*model is 'fake' there, 'other' here"):
        cached(tmp_path, gone, questions(2)).run()


def test_the_estimate_by_hand(tmp_path):
    about, most = cached(tmp_path, Fake(), questions(3), price=told_price(2.0, 4.0)).estimate()
    assert (about.tokens, most.tokens) == (Tokens(15, 30), Tokens(60, 30))
    assert most.dollars == pytest.approx(60 * 2e-6 + 30 * 4e-6)


def test_it_runs_where_a_loop_runs_already(tmp_path):
    async def notebook() -> None:
        cached(tmp_path, Fake(), questions(3)).run()

    asyncio.run(notebook())
    assert cached(tmp_path, Fake(), questions(3)).open == {}


def test_a_source_may_take_several_at_once(tmp_path):
    source = Fake()
    source.size, source.lanes = 4, 1
    one = cached(tmp_path, source, questions(10), tokens=200)
    one.run()
    assert set(source.asked.values()) == {1}
    assert one.ledger()["answered"] == 10
