"""What a server's reply means: an answer, a refusal, a fault that passes, one that stays."""

from __future__ import annotations

import time
from collections.abc import Callable
from email.utils import parsedate_to_datetime
from typing import Any

from stillroom.store.requests import Outcome, Tokens

Read = Callable[[Any], Outcome]
"""From the JSON of a reply (None where it is none) to what it says; ``answer_of`` if none."""
TOO_LONG = 3600.0
"""Seconds: who is asked to wait longer had better stop."""


def outcome_of(response: Any, model: str, key_env: str, read: Read | None = None) -> Outcome:
    """The outcome that a reply tells of; ``read`` takes it where it is no fault."""
    try:
        told = response.json()
    except ValueError:
        told = None
    if response.status_code == 200:
        return (read or answer_of)(told)
    return _fault(response, _message(told), model, key_env)


def _fault(response: Any, message: str, model: str, key_env: str) -> Outcome:
    code, url = response.status_code, response.request.url
    why = f"HTTP {code}{f': {message}' if message else ''}"
    if code in (401, 403):  # what the server says of a key may hold a part of it
        why = f"HTTP {code}: the server refuses the key in {key_env} (or its lack) for {model!r}"
    elif code == 404:
        why = f"{why}. There is no model {model!r} at {url}, or the base URL lacks its '/v1'"
    fatal = code in (401, 402, 403, 404) or code < 400 or "insufficient_quota" in message
    passing = code in (408, 409, 425, 429) or code >= 500
    after = _seconds(response.headers.get("retry-after", ""))
    if passing and after > TOO_LONG:
        fatal, why = True, f"{why}; it asks to wait {after:,.0f} s before the next request"
    kind = "failed" if passing or fatal else "rejected"
    again = passing and not fatal
    return Outcome(kind, why=why, tokens=Tokens(), again=again, after=after, fatal=fatal)


def _message(told: Any) -> str:
    """What an error body says, in its many shapes."""
    if isinstance(told, dict):
        error = told.get("error", told.get("detail", told.get("message")))
        if isinstance(error, dict):
            parts = (error.get("code"), error.get("message"))
            return ": ".join(str(part) for part in parts if part)[:500]
        return str(error)[:500] if error else ""
    return ""


def _seconds(told: str) -> float:
    """Retry-After as seconds or as an HTTP date; 0 where it is neither."""
    try:
        return max(0.0, float(told))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(told).timestamp() - time.time())
    except (TypeError, ValueError):
        return 0.0


def answer_of(told: Any) -> Outcome:
    """The words of a reply's one choice."""
    if not isinstance(told, dict):
        return Outcome("malformed", why="the reply is no whole JSON object", again=True)
    tokens = _tokens(told.get("usage"))
    choices = told.get("choices")
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        why = f"the reply has no choices {_message(told)}".strip()
        return Outcome("malformed", why=why, tokens=tokens, again=True)
    choice, message = choices[0], choices[0].get("message")
    message = message if isinstance(message, dict) else {}
    text = choice.get("text", message.get("content"))
    if text is not None and not isinstance(text, str):
        return Outcome("malformed", why="the answer is no text", tokens=tokens, again=True)
    return judged(text or "", choice.get("finish_reason"), message.get("refusal"), tokens)


def judged(text: str, finish: Any, refusal: Any, tokens: Tokens | None) -> Outcome:
    """The outcome of words that came, by how they ended."""
    if refusal or finish == "content_filter":
        return Outcome("refusal", text, str(refusal or "filtered by the server"), tokens)
    if finish == "length":
        return Outcome("truncated", text, "the answer met its limit of tokens", tokens)
    if not text.strip():
        return Outcome("empty", text, f"the answer is empty (it ended by {finish})", tokens)
    return Outcome("answer", text, "", tokens)


def _tokens(usage: Any) -> Tokens | None:
    """As reported; tokens of reasoning count as answer, also where only the total holds them."""
    if not isinstance(usage, dict):
        return None
    prompt, answer, total = (
        usage.get(name) for name in ("prompt_tokens", "completion_tokens", "total_tokens")
    )
    if not isinstance(prompt, int) or not isinstance(answer, int):
        return None
    return Tokens(prompt, max(answer, (total or 0) - prompt))
