"""What replies of the protocol mean, shape by shape."""

import json
from email.utils import formatdate
from types import SimpleNamespace
from typing import Any

import pytest

from stillroom.store.requests import Outcome, Tokens
from stillroom.teachers.replies import outcome_of

USAGE = {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7}


def told(body: Any, code: int = 200, **headers: str) -> Outcome:
    text = body if isinstance(body, str) else json.dumps(body)
    response = SimpleNamespace(
        status_code=code,
        headers={k.replace("_", "-"): v for k, v in headers.items()},
        request=SimpleNamespace(url="http://host/v1/chat/completions"),
        json=lambda: json.loads(text),
    )
    return outcome_of(response, "m", "KEY")


def reply(finish: str | None = "stop", usage: Any = USAGE, **message: Any) -> dict[str, Any]:
    return {"choices": [{"finish_reason": finish, "message": message}], "usage": usage}


@pytest.mark.parametrize(
    ("body", "kind", "text"),
    [
        (reply(content="yes"), "answer", "yes"),
        (reply(None, content="yes"), "answer", "yes"),
        (
            {"choices": [{"finish_reason": "stop", "text": " yes"}], "usage": USAGE},
            "answer",
            " yes",
        ),
        (reply(content=None, refusal="I will not"), "refusal", ""),
        (reply("content_filter", content="half a"), "refusal", "half a"),
        (reply("length", content="half an"), "truncated", "half an"),
        (reply("length", content=None), "truncated", ""),
        (reply(content=""), "empty", ""),
        (reply(content=" \n"), "empty", " \n"),
        (reply(content=None), "empty", ""),
    ],
)
def test_words_that_came_are_judged_by_how_they_ended(body, kind, text):
    outcome = told(body)
    assert (outcome.kind, outcome.text, outcome.tokens) == (kind, text, Tokens(5, 2))
    assert outcome.arrived
    assert not outcome.again


@pytest.mark.parametrize(
    "body",
    [
        '{"choices": [{"mess',
        "<html>busy</html>",
        "[]",
        {"choices": []},
        {"choices": None},
        {"choices": ["yes"]},
        {"error": {"message": "try later"}},
        reply(content=["yes"]),
        {"choices": [{"text": 3}]},
    ],
)
def test_a_reply_that_is_no_answer_is_malformed_and_asked_again(body):
    outcome = told(body)
    assert (outcome.kind, outcome.again, outcome.arrived) == ("malformed", True, False)
    assert outcome.why


def test_an_error_inside_a_good_reply_is_told():
    assert "try later" in told({"error": {"message": "try later"}}).why


@pytest.mark.parametrize(
    ("usage", "tokens"),
    [
        (USAGE, Tokens(5, 2)),
        ({**USAGE, "total_tokens": 30}, Tokens(5, 25)),  # reasoning that only the total holds
        ({"prompt_tokens": 5, "completion_tokens": 2}, Tokens(5, 2)),
        ({"prompt_tokens": 5}, None),
        (None, None),
    ],
)
def test_usage_is_taken_as_told_or_not_known(usage, tokens):
    assert told(reply(content="yes", usage=usage)).tokens == tokens


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"error": {"code": "c", "message": "no"}}, "HTTP 400: c: no"),
        ({"error": "no"}, "HTTP 400: no"),
        ({"detail": "Unexpected fields"}, "HTTP 400: Unexpected fields"),
        ({"message": "no"}, "HTTP 400: no"),
        ("<html>", "HTTP 400"),
    ],
)
def test_errors_are_told_in_the_words_of_the_server(body, words):
    assert told(body, 400) == Outcome("rejected", why=words, tokens=Tokens())


@pytest.mark.parametrize(
    ("code", "kind", "again", "fatal"),
    [
        (301, "failed", False, True),
        (400, "rejected", False, False),
        (401, "failed", False, True),
        (402, "failed", False, True),
        (404, "failed", False, True),
        (408, "failed", True, False),
        (413, "rejected", False, False),
        (422, "rejected", False, False),
        (429, "failed", True, False),
        (502, "failed", True, False),
        (529, "failed", True, False),
    ],
)
def test_what_each_status_does(code, kind, again, fatal):
    outcome = told({}, code)
    assert (outcome.kind, outcome.again, outcome.fatal) == (kind, again, fatal)
    assert outcome.tokens == Tokens()


@pytest.mark.parametrize(
    ("header", "seconds"),
    [("7", 7.0), ("0.5", 0.5), ("-3", 0.0), ("soon", 0.0), ("nan", 0.0), (formatdate(0), 0.0)],
)
def test_retry_after_in_its_forms(header, seconds):
    assert told({}, 429, retry_after=header).after == seconds


def test_who_is_asked_to_wait_for_hours_stops_and_says_so():
    outcome = told({}, 429, retry_after="86400")
    assert outcome.fatal
    assert "86,400 s" in outcome.why
