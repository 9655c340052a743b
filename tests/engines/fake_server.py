"""A local HTTP server that speaks OpenAI's protocol, counts what it is asked, and fails as it is told."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

# What can happen to a request instead of an answer: (status, body, headers), a pause in seconds, a closed connection.
RATE_LIMIT = (429, b'{"error": {"message": "slow down"}}', {"Retry-After": "0"})
SERVER_FAULT = (500, b"oops", {})
GARBAGE = (200, b"<html>the proxy is tired</html>", {})
HALF = (200, b'{"choices": [{"message": {"con', {})
NO_COMPLETION = (200, b'{"error": {"message": "model is loading"}}', {})
DROPPED = "dropped"


@dataclass
class FakeServer:
    """What the server does and has seen.

    Args:
        reply: prompt -> text of the answer.
        faults: request body, how often the same body came before -> a fault, or None for an answer.
        models: names of the list of models; None answers 404 to the list.
        api_key: what it wants to be sent; None wants nothing.
    """

    reply: Callable[[str], str] = lambda prompt: f"said: {prompt}"
    faults: Callable[[dict[str, Any], int], Any] = lambda body, before: None
    models: list[str] | None = field(default_factory=lambda: ["teacher"])
    api_key: str | None = None
    delay_s: float = 0.0
    usage: bool = True
    url: str = ""
    bodies: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    answered: Counter[str] = field(default_factory=Counter)
    under_way: int = 0
    most_under_way: int = 0
    lock: Any = field(default_factory=threading.Lock)

    def prompt(self, body: dict[str, Any]) -> str:
        return body["messages"][-1]["content"] if "messages" in body else body["prompt"]

    def completion(self, body: dict[str, Any]) -> dict[str, Any]:
        prompt = self.prompt(body)
        text = self.reply(prompt)
        said = {"message": {"role": "assistant", "content": text}} if "messages" in body else {"text": text}
        found: dict[str, Any] = {"choices": [{"finish_reason": "stop", **said}]}
        if self.usage:
            found["usage"] = {"prompt_tokens": len(prompt.split()), "completion_tokens": len(text.split())}
        if body.get("echo"):
            found["choices"][0]["logprobs"] = echo(prompt)
        return found


def echo(prompt: str) -> dict[str, Any]:
    """Scores a prompt: a token is a word with the space before it; its log-probability is minus its length."""
    tokens, offsets, place = [], [], 0
    for number, word in enumerate(prompt.split(" ")):
        text = word if number == 0 else " " + word
        tokens.append(text)
        offsets.append(place)
        place += len(text)
    logprobs = [None, *(-float(len(token)) for token in tokens[1:])]
    tops = [None, *({token: 0.0 if token == " right" else -1.0} for token in tokens[1:])]
    logprobs = [0.0 if token == " right" else value for token, value in zip(tokens, logprobs, strict=True)]
    return {"tokens": tokens, "text_offset": offsets, "token_logprobs": logprobs, "top_logprobs": tops}


@contextmanager
def serving(server: FakeServer) -> Iterator[FakeServer]:
    """Runs the server on a free port until the block ends."""
    asked: Counter[str] = Counter()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args: Any) -> None:
            pass

        def do_GET(self) -> None:
            if not self.allowed():
                return
            if server.models is None:
                self.send(404, b"{}")
            else:
                self.send(200, json.dumps({"data": [{"id": name} for name in server.models]}).encode())

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if not self.allowed():
                return
            key = json.dumps(body, sort_keys=True)
            with server.lock:
                server.bodies.append(body)
                server.headers.append({name.lower(): value for name, value in self.headers.items()})
                before, asked[key] = asked[key], asked[key] + 1
                server.under_way += 1
                server.most_under_way = max(server.most_under_way, server.under_way)
            try:
                time.sleep(server.delay_s)
                fault = server.faults(body, before)
                if fault == DROPPED:
                    self.close_connection = True
                    self.connection.close()
                elif isinstance(fault, float):
                    time.sleep(fault)
                    self.send(200, b"{}")
                elif fault is not None:
                    self.send(*fault)
                else:
                    with server.lock:
                        server.answered[key] += 1
                    self.answer(body)
            finally:
                with server.lock:
                    server.under_way -= 1

        def answer(self, body: dict[str, Any]) -> None:
            found = server.completion(body)
            if not body.get("stream"):
                self.send(200, json.dumps(found).encode())
                return
            text = found["choices"][0]["message"]["content"]
            pieces = [{"choices": [{"delta": {"content": piece}}]} for piece in text]
            lines = [f"data: {json.dumps(piece)}\n\n" for piece in [{"choices": []}, *pieces]]
            self.send(200, "".join([": ping\n\n", *lines, "data: [DONE]\n\n"]).encode())

        def allowed(self) -> bool:
            if server.api_key is None or self.headers.get("Authorization") == f"Bearer {server.api_key}":
                return True
            said = f"Incorrect API key provided: {self.headers.get('Authorization')}"
            self.send(401, json.dumps({"error": {"message": said}}).encode())
            return False

        def send(self, status: int, data: bytes, headers: dict[str, str] | None = None) -> None:
            try:
                self.send_response(status)
                for name, value in {"Content-Length": str(len(data)), **(headers or {})}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(data)
            except OSError:  # the client has gone
                self.close_connection = True

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.daemon_threads = True
    server.url = f"http://127.0.0.1:{http.server_address[1]}/v1"
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        http.shutdown()
        http.server_close()
