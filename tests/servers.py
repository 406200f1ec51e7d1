"""A loopback server that speaks the OpenAI protocol, counts what it is asked, and has faults.

``with Server(Model(model, tokenizer)) as server`` answers at ``server.url``: models, completions
and chat, with ``logprobs`` and ``prompt_logprobs`` (as vLLM has them), prompts as token ids too.
"""

from __future__ import annotations

import hashlib
import json
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from speakers import Reply, Speaker, chat_logprobs, logprobs, prompt_logprobs

STATUS = {
    "unauthorised": 401, "forbidden": 403, "no model": 404, "busy": 429, "wait": 429,
    "wait for a date": 429, "no money": 429, "rejected": 400, "broken": 500, "unavailable": 503,
}  # fmt: skip
FAULTS = [*STATUS, "slow", "reset", "half", "empty"]
"""What a request can meet. Of the last four the answer was made, and is billed."""


class Server:
    """Serves a speaker on a thread of its own.

    Args:
        speaker: what answers.
        faults: how often each of ``FAULTS`` befalls a request; drawn from the seed, the prompt
            and how often that was asked, so the order of requests changes nothing.
        seed: of the draws.
        pause: seconds that every answer takes.
        slow: seconds that a slow one takes.
        port: 0 takes a free one.
    """

    def __init__(
        self,
        speaker: Speaker,
        faults: Mapping[str, float] | None = None,
        *,
        seed: int = 0,
        pause: float = 0.0,
        slow: float = 2.0,
        port: int = 0,
    ) -> None:
        self.speaker, self.faults, self.seed = speaker, dict(faults or {}), seed
        self.pause, self.slow = pause, slow
        self.asked: Counter[str] = Counter()
        """Requests by prompt, faulty ones included."""
        self.answered: Counter[str] = Counter()
        """Whole answers that were sent, by prompt."""
        self.tokens: Counter[str] = Counter()
        """Tokens that were billed: ``prompt`` and ``answer``."""
        self.seen: list[tuple[Mapping[str, str], Any]] = []
        """Headers and body of each request."""
        self.flying = self.most = 0
        """Requests at this moment, and the most there were."""
        self.lock = threading.Lock()
        self._http = _Http(("127.0.0.1", port), _Handler)
        self._http.owner = self  # type: ignore[attr-defined]
        self.url = f"http://127.0.0.1:{self._http.server_port}/v1"

    def __enter__(self) -> Server:
        threading.Thread(target=self._http.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self._http.shutdown()
        self._http.server_close()

    def fault(self, prompt: str, times: int) -> str | None:
        told = hashlib.sha256(f"{self.seed}|{prompt}|{times}".encode()).digest()
        draw = int.from_bytes(told[:6], "big") / 2**48
        for name, rate in self.faults.items():
            if draw < rate:
                return name
            draw -= rate
        return None


class _Http(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that was killed is no news."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        speaker = self.server.owner.speaker  # type: ignore[attr-defined]
        self._send(200, {"object": "list", "data": [{"id": speaker.name, "object": "model"}]})

    def do_POST(self) -> None:
        owner: Server = self.server.owner  # type: ignore[attr-defined]
        told = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        asked = told.get("messages", told.get("prompt"))
        prompt = asked[-1]["content"] if "messages" in told else str(asked)
        with owner.lock:
            owner.asked[prompt] += 1
            owner.seen.append((dict(self.headers), told))
            owner.flying += 1
            owner.most = max(owner.most, owner.flying)
            fault = owner.fault(prompt, owner.asked[prompt])
        try:
            self._answer(owner, told, prompt, asked, fault)
        finally:
            with owner.lock:
                owner.flying -= 1

    def _answer(
        self, owner: Server, told: dict[str, Any], prompt: str, asked: Any, fault: str | None
    ) -> None:
        time.sleep(owner.pause)
        if told["model"] != owner.speaker.name:
            fault = "no model"
        if fault in STATUS:
            return self._refuse(fault)
        try:
            reply = owner.speaker(asked, told)
        except Exception as error:  # no template, a prompt that is too long ...
            return self._send(400, {"error": {"code": "rejected", "message": str(error)}})
        with owner.lock:
            owner.tokens += Counter(prompt=len(reply.prompt_ids), answer=len(reply.ids))
        if fault == "slow":
            time.sleep(owner.slow)
        if fault == "reset":
            hard = struct.pack("ii", 1, 0)
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, hard)
            self.close_connection = True
            self.connection.close()
            return None
        body = _body(owner.speaker.name, reply, told, chat="messages" in told)
        body |= {"choices": []} if fault == "empty" else {}
        self._send(200, body, half=fault == "half")
        if fault is None:
            with owner.lock:
                owner.answered[prompt] += 1
        return None

    def _refuse(self, fault: str) -> None:
        """An error that says the key back, as some servers do in part."""
        code = "insufficient_quota" if fault == "no money" else fault
        message = f"{fault}; you sent {self.headers.get('Authorization')}"
        after = {"wait": "1", "wait for a date": self.date_time_string(int(time.time()) + 2)}
        head = {"Retry-After": after[fault]} if fault in after else {}
        self._send(STATUS[fault], {"error": {"code": code, "message": message}}, head)

    def _send(
        self, code: int, body: Any, head: Mapping[str, str] | None = None, *, half: bool = False
    ) -> None:
        data = json.dumps(body).encode()
        data = data[: len(data) // 2] if half else data
        self.send_response(code)
        told = {
            "Content-Type": "application/json",
            "Content-Length": str(len(data)),
            **(head or {}),
        }
        for name, value in told.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)


def _body(name: str, reply: Reply, told: dict[str, Any], *, chat: bool) -> dict[str, Any]:
    prompt, answer = len(reply.prompt_ids), len(reply.ids)
    choice: dict[str, Any] = {"index": 0, "finish_reason": reply.finish, "logprobs": None}
    if chat:
        choice["message"] = {"role": "assistant", "content": reply.text}
    else:
        choice["text"] = reply.text
    k = told.get("top_logprobs", 0) if chat else told.get("logprobs")
    if reply.scores is not None and told.get("logprobs"):
        choice["logprobs"] = (chat_logprobs if chat else logprobs)(reply, k)
    usage = {"prompt_tokens": prompt, "completion_tokens": answer, "total_tokens": prompt + answer}
    body = {"id": "x", "model": name, "choices": [choice], "usage": usage}
    if reply.before is not None:
        (body if chat else choice)["prompt_logprobs"] = prompt_logprobs(
            reply, told["prompt_logprobs"]
        )
    return {**body, "object": "chat.completion" if chat else "text_completion"}
