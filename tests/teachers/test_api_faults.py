"""A teacher behind a server: what is sent, what each fault does, and that no key is seen."""

import asyncio
import time

import pytest
from servers import Server
from speakers import Canned

from stillroom.failures import Failure
from stillroom.store.requests import Decoding, Outcome, Request, Tokens
from stillroom.teachers.api import Api

pytest.importorskip("httpx2", reason="the extra 'api' is not installed")
pytest.importorskip("tenacity", reason="the extra 'api' is not installed")
pytestmark = pytest.mark.extra("api")

KEY = "sk-planted-0123456789abcdef"
SHORT = Decoding(max_tokens=12)


@pytest.fixture(autouse=True)
def key(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


@pytest.fixture
def server():
    with Server(Canned(lambda prompt: f"you said {prompt}")) as running:
        yield running


def api(url: str, **more: object) -> Api:
    return Api(**{"model": "canned", "base_url": url, "pause": 0.02, "timeout": 5.0, **more})


def ask(source: Api, said: object = "hello", how: Decoding = SHORT) -> tuple[Outcome, list[float]]:
    """The final outcome of a question, and the pauses that were made."""
    rested: list[float] = []

    async def rest(seconds: float) -> None:
        rested.append(seconds)

    async def go() -> Outcome:
        async with source:
            return (await source.patient(source.ask, rest)([Request(said, how)]))[0]

    return asyncio.run(go()), rested


def test_an_answer_with_its_tokens(server):
    outcome, rested = ask(api(server.url))
    assert outcome == Outcome("answer", "you said hello", "", Tokens(9, 3))
    assert rested == []


def test_nothing_is_sent_that_was_not_asked_for(server):
    ask(api(server.url), how=Decoding())
    ask(api(server.url, endpoint="completions"), how=Decoding())
    everything = Decoding(temperature=0.0, top_p=0.5, max_tokens=7, stop=("x",), seed=3)
    ask(api(server.url), how=everything)
    messages = [{"role": "user", "content": "hello"}]
    chat, plain, full = (body for _, body in server.seen)
    assert chat == {"model": "canned", "messages": messages}
    assert plain == {"model": "canned", "prompt": "hello"}
    sent = {"temperature": 0.0, "top_p": 0.5, "max_tokens": 7, "stop": ["x"], "seed": 3}
    assert full == {**chat, **sent}


def test_messages_go_as_they_are_and_not_to_completions(server):
    turns = [{"role": "system", "content": "be kind"}, {"role": "user", "content": "hello"}]
    ask(api(server.url), turns)
    assert server.seen[0][1]["messages"] == turns
    with pytest.raises(Failure, match="takes plain prompts"):
        api(server.url, endpoint="completions").rendered(Request(turns))


def test_openai_itself_is_told_the_limit_by_its_newer_name():
    body = Api(model="gpt-5").rendered(Request("a", SHORT))["body"]
    assert body["max_completion_tokens"] == 12
    assert "max_tokens" not in body


def test_the_key_and_a_stable_idempotency_key_are_sent(server):
    for prompt in ("a", "b", "a"):
        ask(api(server.url), prompt)
    heads = [{k.lower(): v for k, v in head.items()} for head, _ in server.seen]
    assert {head["authorization"] for head in heads} == {f"Bearer {KEY}"}
    first, other, again = (head["idempotency-key"] for head in heads)
    assert first == again != other


def test_another_variable_may_hold_the_key(server, monkeypatch):
    monkeypatch.setenv("MY_KEY", "sk-mine")
    ask(api(server.url, key_env="MY_KEY"))
    assert server.seen[0][0]["Authorization"] == "Bearer sk-mine"
    monkeypatch.delenv("MY_KEY")
    with pytest.raises(Failure, match="MY_KEY"):
        ask(api(server.url, key_env="MY_KEY"))


def test_without_a_key_a_server_of_ones_own_is_asked_and_openai_is_not(server, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY")
    assert ask(api(server.url))[0].kind == "answer"
    assert "Authorization" not in server.seen[0][0]
    with pytest.raises(Failure, match="OPENAI_API_KEY"):
        ask(Api(model="gpt-5"))


PASSING = {
    "busy": (Tokens(), "HTTP 429"),
    "broken": (Tokens(), "HTTP 500"),
    "unavailable": (Tokens(), "HTTP 503"),
    "reset": (None, "connection broke"),
    "half": (None, "no whole JSON"),
    "empty": (Tokens(9, 3), "no choices"),
}


@pytest.mark.parametrize("fault", PASSING)
def test_a_passing_fault_is_met_by_asking_again_some_times(server, fault):
    tokens, why = PASSING[fault]
    server.faults = {fault: 1.0}
    outcome, rested = ask(api(server.url, tries=4))
    assert server.asked["hello"] == 4
    assert len(rested) == 3
    assert outcome.kind == ("malformed" if fault in ("half", "empty") else "failed")
    assert why in outcome.why
    assert outcome.tokens == tokens  # None: it may have been billed in full
    assert not outcome.fatal


def test_a_fault_that_passes_leaves_no_trace_in_the_answer(server):
    server.faults = {"broken": 0.5}
    for i in range(12):
        outcome, rested = ask(api(server.url, tries=40), f"q{i}")
        assert outcome.text == f"you said q{i}"
        assert len(rested) == server.asked[f"q{i}"] - 1
    assert sum(server.asked.values()) > 14


def test_a_time_out_is_a_fault_of_unknown_cost(server):
    server.faults, server.slow = {"slow": 1.0}, 0.6
    begun = time.perf_counter()
    outcome, _ = ask(api(server.url, timeout=0.15, tries=2))
    assert time.perf_counter() - begun < 3
    assert outcome.kind == "failed"
    assert "no answer in 0.15 s" in outcome.why
    assert outcome.tokens is None


def test_pauses_double_with_jitter_and_honour_retry_after(server):
    server.faults = {"busy": 1.0}
    _, rested = ask(api(server.url, tries=6, pause=0.1))
    for k, seconds in enumerate(rested):
        assert 0.1 * 2**k <= seconds <= 0.1 * 2**k + 0.1
    server.faults = {"wait": 1.0}
    assert ask(api(server.url, tries=3))[1] == [1.0, 1.0]
    server.faults = {"wait for a date": 1.0}  # two seconds from now, in whole seconds
    (seconds,) = ask(api(server.url, tries=2))[1]
    assert 0.5 < seconds <= 2


FATAL = {
    "unauthorised": ["401", "OPENAI_API_KEY", "canned"],
    "forbidden": ["403", "OPENAI_API_KEY"],
    "no model": ["404", "no model 'canned'", "/v1"],
    "no money": ["429", "insufficient_quota"],
}


@pytest.mark.parametrize("fault", FATAL)
def test_what_no_question_can_pass_is_not_repeated(server, fault):
    server.faults = {fault: 1.0}
    outcome, rested = ask(api(server.url))
    assert outcome.fatal
    assert [words for words in FATAL[fault] if words not in outcome.why] == []
    assert (server.asked["hello"], rested) == (1, [])


def test_a_rejected_question_is_dropped_without_another_try(server):
    server.faults = {"rejected": 1.0}
    outcome, _ = ask(api(server.url))
    assert (outcome.kind, outcome.fatal, server.asked["hello"]) == ("rejected", False, 1)


def test_a_server_that_is_not_there_ends_it_after_some_tries():
    with Server(Canned(str)) as gone:
        url = gone.url
    outcome, rested = ask(api(url, tries=3))
    assert outcome.fatal
    assert outcome.tokens == Tokens()
    assert f"cannot reach {url}" in outcome.why
    assert len(rested) == 2


@pytest.mark.parametrize("fault", ["unauthorised", "no model", "broken", "rejected", "busy"])
def test_a_server_that_says_the_key_back_does_not_put_it_into_words(server, fault):
    server.faults = {fault: 1.0}
    source = api(server.url, tries=2)
    outcome, _ = ask(source)
    assert KEY not in repr(outcome)
    assert KEY not in repr(source)
    said_back = fault != "unauthorised"  # of which only our own words are told
    assert ("you sent Bearer ***" in outcome.why) is said_back


def test_an_answer_that_says_the_key_back_is_masked_but_a_short_word_is_not(monkeypatch):
    with Server(Canned(lambda prompt: f"{prompt} none")) as running:
        assert ask(api(running.url), f"echo {KEY}")[0].text == "echo *** none"
        monkeypatch.setenv("OPENAI_API_KEY", "none")
        assert ask(api(running.url), "echo")[0].text == "echo none"


@pytest.mark.parametrize(
    "url", ["http://me:secret@host/v1", "http://secret@host/v1", "http://host/v1?key=secret"]
)
def test_an_address_with_a_secret_is_refused_without_saying_it(url):
    with pytest.raises(Failure, match="environment variable") as told:
        api(url)
    assert "secret" not in str(told.value)


@pytest.mark.parametrize("url", ["host/v1", "ftp://host/v1", "http://", "http://[bad/v1"])
def test_an_address_that_is_none_is_refused(url):
    with pytest.raises(Failure, match="base URL"):
        api(url)


def test_a_prompt_is_bound_by_its_bytes():
    source = api("http://host/v1")
    assert source.most(Request("é" * 100, SHORT)) == Tokens(200 + 128 + 16, 12)
    turns = [{"role": "user", "content": "abc"}] * 2
    assert source.most(Request(turns)) == Tokens(14 + 128 + 32, 0)
