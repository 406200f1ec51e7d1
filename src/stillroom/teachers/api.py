"""A teacher behind a server that speaks the OpenAI protocol."""

from __future__ import annotations

import asyncio
import dataclasses
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import urlsplit

from stillroom.extras import extra
from stillroom.failures import Failure
from stillroom.store.prices import Price, known_price
from stillroom.store.requests import Identity, Outcome, Request, Tokens, key
from stillroom.teachers.asking import Ask, Rest
from stillroom.teachers.replies import Read, outcome_of

OPENAI = "https://api.openai.com/v1"
KEY_ENV = "OPENAI_API_KEY"
FRAME, TURN = 128, 16
"""Tokens that a chat template may put around a request, and around each message of it."""

SECRET = 16
"""Characters from which on a key is sought in answers too: ``none`` is a word as well."""


def address(url: str) -> str:
    """A base URL that may be written into files.

    Raises:
        Failure: it is none, or holds a user, a password or a query.
    """
    try:
        parts = urlsplit(url)
        secret = parts.username or parts.password or parts.query
    except ValueError as error:
        raise Failure(f"base URL: {error}") from None
    if secret:
        raise Failure(
            f"base URL of {parts.hostname}: it holds a user, a password or a query, and would be "
            f"written into files. Put the key into the environment variable {KEY_ENV} (or the one "
            "that --key-env, in a recipe teacher.key_env, names)"
        )
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise Failure(f"base URL: expected one like {OPENAI}, got {url!r}")
    return url.rstrip("/")


@dataclass(kw_only=True)
class Api:
    """Asks a model at any address that speaks the OpenAI protocol; n answers are n requests.

    A field that is not asked for is not sent. A plain prompt goes as it is to ``completions``, and
    to ``chat`` as one message of the user; no template is put around it here. Passing faults are
    met by asking again after a jittered, doubling pause, or after what Retry-After says.

    Args:
        model: its name at the server.
        base_url: the address, up to and with ``/v1``; null is OpenAI's own.
        endpoint: ``chat`` or ``completions``.
        lanes: requests in flight at once.
        key_env: the environment variable that holds the key; null is ``OPENAI_API_KEY``, which
            may be missing where ``base_url`` is given.
        timeout: seconds that an answer may take.
        tries: attempts at a question, the first included.
        pause: seconds before the second attempt, about.

    Raises:
        Failure: the address is none, or holds a password or a query.
    """

    model: str
    base_url: str | None = None
    endpoint: Literal["chat", "completions"] = "chat"
    lanes: int = 8
    key_env: str | None = None
    timeout: float = 600.0
    tries: int = 6
    pause: float = 1.0
    size: int = field(default=1, init=False)
    _client: Any = field(default=None, init=False, repr=False)
    _key: str | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        self._url = address(self.base_url or OPENAI)
        self.identity: Identity = {"kind": "api", "model": self.model, "base_url": self._url}

    def price(self) -> Price | None:
        return known_price(self.model, self._url)

    def rendered(self, request: Request) -> dict[str, Any]:
        """Exactly what is sent, and where to."""
        how = request.decoding
        limit = "max_tokens"
        if self.endpoint == "completions":
            if request.messages is not None:
                raise Failure("the endpoint 'completions' takes plain prompts, not messages")
            body, path = {"prompt": request.said}, "completions"
        else:
            asked = request.messages or [{"role": "user", "content": request.said}]
            body, path = {"messages": asked}, "chat/completions"
            if self._url == OPENAI:
                limit = "max_completion_tokens"  # its newer models refuse the older name
        told = {
            "temperature": how.temperature,
            "top_p": how.top_p,
            limit: how.max_tokens,
            "stop": list(how.stop) or None,
            "seed": request.seed,
        }
        told = {name: value for name, value in told.items() if value is not None}
        return {"path": path, "body": {"model": self.model, **body, **told}}

    def most(self, request: Request) -> Tokens:
        """A prompt has no more tokens than bytes, its template aside; 0: no bound on the answer."""
        said = request.messages or [{"content": request.said}]
        words = sum(len(str(v).encode("utf-8", "replace")) for turn in said for v in turn.values())
        return Tokens(words + FRAME + TURN * len(said), request.decoding.max_tokens or 0)

    async def __aenter__(self) -> Api:
        httpx2: Any = extra("httpx2", "api", "a teacher behind a server")
        name = self.key_env or KEY_ENV
        self._key = os.environ.get(name, "").strip() or None
        if self._key is None and (self.key_env or self._url == OPENAI):
            raise Failure(f"there is no key in the environment variable {name}: set it first")
        self._client = httpx2.AsyncClient(
            base_url=f"{self._url}/",
            headers={"Authorization": f"Bearer {self._key}"} if self._key else {},
            timeout=self.timeout,
            limits=httpx2.Limits(max_connections=self.lanes),
        )
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._client.aclose()

    def patient(self, ask: Ask, rest: Rest) -> Ask:
        """``ask``, tried again while its outcome says that this may help."""
        tenacity: Any = extra("tenacity", "api", "a teacher behind a server")
        doubling = tenacity.wait_exponential(multiplier=self.pause, max=60.0)
        pause = doubling + tenacity.wait_random(0.0, self.pause)
        return tenacity.AsyncRetrying(
            sleep=rest,
            stop=tenacity.stop_after_attempt(self.tries),
            wait=lambda state: max(state.outcome.result()[0].after, pause(state)),
            retry=tenacity.retry_if_result(lambda found: bool(found) and found[0].again),
            retry_error_callback=lambda state: state.outcome.result(),
        ).wraps(ask)

    async def ask(self, requests: Sequence[Request]) -> list[Outcome]:
        """One attempt at one question."""
        (request,) = requests
        return [await self.post(request)]

    async def post(self, request: Request, read: Read | None = None) -> Outcome:
        """One attempt, whose reply ``read`` reads; neither text nor ``why`` says the key back."""
        told = await self._sent(request, read)
        why, text = self._masked(told.why), told.text
        if self._key and len(self._key) >= SECRET:
            text = self._masked(text)
        text = text.encode("utf-8", "replace").decode()  # half a character cannot be written
        return dataclasses.replace(told, text=text, why=why)

    async def _sent(self, request: Request, read: Read | None) -> Outcome:
        httpx2: Any = extra("httpx2", "api", "a teacher behind a server")
        told = self.rendered(request)
        once = {"Idempotency-Key": key(self.identity, told, request.copy)}
        try:
            async with asyncio.timeout(self.timeout):
                response = await self._client.post(told["path"], json=told["body"], headers=once)
        except (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout) as error:
            why = f"cannot reach {self._url}: {str(error) or type(error).__name__}"
            return Outcome("failed", why=why, tokens=Tokens(), again=True, fatal=True)
        except (TimeoutError, httpx2.TimeoutException):
            return Outcome("failed", why=f"no answer in {self.timeout:g} s", again=True)
        except (httpx2.RequestError, OSError) as error:
            why = f"the connection broke: {str(error) or type(error).__name__}"
            return Outcome("failed", why=why, again=True)
        return outcome_of(response, self.model, self.key_env or KEY_ENV, read)

    def _masked(self, text: str) -> str:
        """Text of a server without the key, should it say it back."""
        return text.replace(self._key, "***") if self._key else text
