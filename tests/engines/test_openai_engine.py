"""The engine behind a URL: what it sends, what it tries again and what it never does, and that a key stays secret."""

from __future__ import annotations

import email.utils
import random
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from cairn.engines.base import Constraint, Engine, GenerationRequest, Sampling, ScoreRequest, require
from cairn.engines.http_service import Patience
from cairn.engines.openai_engine import OpenAIEngine
from cairn.errors import ConfigError, EngineError, InputError
from tests.engines import fake_server
from tests.engines.fake_server import FakeServer, serving

SECRET = "sk-very-secret-0123"


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with serving(FakeServer()) as running:
        yield running


def engine_of(server: FakeServer, waits: list[float] | None = None, **settings: Any) -> OpenAIEngine:
    patience = Patience((waits if waits is not None else []).append, random.Random(0))
    return OpenAIEngine(server.url, "teacher", patience=patience, **settings)


def ask(prompt: str, **sampling: Any) -> GenerationRequest:
    return GenerationRequest(prompt, None, Sampling(**sampling))


def test_a_chat_is_sent_as_the_protocol_says(server: FakeServer) -> None:
    engine = engine_of(server, system="Be short.")
    assert isinstance(engine, Engine)
    made = engine.generate([ask("one", max_new_tokens=7, temperature=0.5, top_p=0.9, seed=3, stop=("\n",)), ask("two")])
    assert [one.text for one in made] == ["said: one", "said: two"]
    assert [(one.prompt_tokens, one.new_tokens, one.finish) for one in made] == [(1, 2, "stop")] * 2
    first, second = sorted(server.bodies, key=lambda body: server.prompt(body))
    assert first == {
        "model": "teacher", "max_tokens": 7, "temperature": 0.5, "top_p": 0.9, "seed": 3, "stop": ["\n"],
        "messages": [{"role": "system", "content": "Be short."}, {"role": "user", "content": "one"}],
    }  # fmt: skip
    assert "seed" not in second and "stop" not in second and second["temperature"] == 0
    assert not engine.tokens_estimated
    assert len({headers["idempotency-key"] for headers in server.headers}) == 2


def test_plain_completions_an_adapter_and_an_extra_body(server: FakeServer) -> None:
    server.models = ["teacher", "lora-1"]
    server.usage = False
    engine = engine_of(
        server, api="completions", adapters={"plan": "lora-1"}, probe=False,
        extra_body={"max_tokens": None, "max_completion_tokens": 5},
    )  # fmt: skip
    assert engine.generate([GenerationRequest("go on", "plan")])[0].text == "said: go on"
    assert server.bodies == [{"model": "lora-1", "prompt": "go on", "temperature": 0.0, "max_completion_tokens": 5}]
    assert engine.tokens_estimated
    with pytest.raises(EngineError, match="adapter is not known.*did you mean plan"):
        engine.generate([GenerationRequest("go on", "plann")])
    with pytest.raises(EngineError, match="cannot hold an output to choices"):
        engine.generate([GenerationRequest("x", None, Sampling(), Constraint(("a",)))])


def test_a_stream_is_the_text_in_pieces(server: FakeServer) -> None:
    assert "".join(engine_of(server).stream(ask("hello"))) == "said: hello"


FAULTS = ["RATE_LIMIT", "SERVER_FAULT", "GARBAGE", "HALF", "NO_COMPLETION", "DROPPED"]


@pytest.mark.parametrize("name", FAULTS)
def test_what_may_pass_is_tried_again(server: FakeServer, name: str) -> None:
    server.faults = lambda body, before: getattr(fake_server, name) if before < 3 else None
    waits: list[float] = []
    assert engine_of(server, waits, retries=3).generate([ask("x")])[0].text == "said: x"
    assert len(server.bodies) == 4
    assert len({headers["idempotency-key"] for headers in server.headers}) == 1
    own = [wait for wait in waits if wait > 0]
    assert len(own) == 3 and len(set(own)) == 3
    assert all(2**n / 4 <= wait <= 2**n / 2 for n, wait in enumerate(own)), "twice as long each time, with jitter"


@pytest.mark.parametrize("status", [500, 501, 502, 503, 504, 429])
def test_it_gives_up_after_its_tries_and_says_what_came(server: FakeServer, status: int) -> None:
    server.faults = lambda body, before: (status, b'{"error": {"message": "too busy"}}', {})
    with pytest.raises(EngineError, match=rf"asked 3 times: HTTP {status}, .*: too busy.*the same command goes on"):
        engine_of(server, retries=2).generate([ask("x")])
    assert len(server.bodies) == 3


@pytest.mark.parametrize(
    ("status", "kind"), [(400, InputError), (413, InputError), (422, InputError), (401, ConfigError),
                         (403, ConfigError), (404, ConfigError), (301, ConfigError)],
)  # fmt: skip
def test_what_cannot_pass_is_tried_once(server: FakeServer, status: int, kind: type[Exception]) -> None:
    server.faults = lambda body, before: (status, b'{"error": {"message": "no such thing"}}', {})
    waits: list[float] = []
    with pytest.raises(kind, match=f"HTTP {status}.*no such thing"):
        engine_of(server, waits).generate([ask("x")])
    assert len(server.bodies) == 1 and not waits


def test_all_workers_wait_when_the_server_says_so(server: FakeServer) -> None:
    told = {"Retry-After": "7"}
    server.faults = lambda body, before: (429, b"{}", told) if server.prompt(body) == "first" and not before else None
    waits: list[float] = []
    engine = engine_of(server, waits, concurrency=1)
    engine.generate([ask("first"), ask("second")])
    assert waits[0] == pytest.approx(7, abs=0.1)
    assert all(6 < wait <= 7 for wait in waits[1:]) and len(waits) >= 2, "the clock stood still: the others wait too"
    date = email.utils.formatdate(time.time() + 30, usegmt=True)
    server.faults = lambda body, before: (503, b"", {"Retry-After": date}) if not before else None
    waits.clear()
    engine_of(server, waits).generate([ask("third")])
    assert waits[0] == pytest.approx(30, abs=2)
    server.faults = lambda body, before: (429, b"", {"Retry-After": "3600"})
    with pytest.raises(EngineError, match="asked once: HTTP 429, rate limit, come back in 3600 s"):
        engine_of(server).generate([ask("fourth")])


def test_a_slow_server_and_a_trickle_are_bounded(server: FakeServer) -> None:
    server.faults = lambda body, before: 0.5
    started = time.perf_counter()
    with pytest.raises(EngineError, match=r"asked 2 times: no response within 0\.1 s"):
        engine_of(server, timeout_s=0.1, retries=1).generate([ask("x")])
    assert time.perf_counter() - started < 1.5
    listener = socket.create_server(("127.0.0.1", 0))

    def trickle() -> None:
        connection, _ = listener.accept()
        connection.recv(65536)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
        try:
            for _ in range(50):
                connection.sendall(b" ")
                time.sleep(0.02)
        except OSError:
            pass

    threading.Thread(target=trickle, daemon=True).start()
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    with listener, pytest.raises(EngineError, match=r"no whole response within 0\.2 s"):
        OpenAIEngine(url, "m", timeout_s=0.2, retries=0, probe=False).generate([ask("x")])


def test_a_teacher_that_is_down_is_known_at_once() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    waits: list[float] = []
    with pytest.raises(EngineError, match="did not answer, asked once: no connection.*check that it runs"):
        OpenAIEngine(f"http://127.0.0.1:{port}/v1", "m", patience=Patience(waits.append))
    assert not waits


def test_the_model_is_looked_for_at_the_start(server: FakeServer) -> None:
    server.models = ["techer", "other"]
    with pytest.raises(ConfigError, match=r"no model 'teacher' \(did you mean techer\?\).*it has techer, other"):
        engine_of(server)
    server.models = None  # a server without the list
    engine_of(server)
    assert not server.bodies


def test_a_key_is_sent_and_never_shown(server: FakeServer, monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    server.api_key = SECRET
    monkeypatch.setenv("TEACHER_KEY", f"{SECRET}\n")
    engine = engine_of(server, api_key_env="TEACHER_KEY")
    assert engine.generate([ask("x")])[0].text == "said: x"
    server.api_key = "another"
    with pytest.raises(ConfigError) as caught:
        engine.generate([ask("x")])
    assert "Bearer ***" in str(caught.value) and "the key in TEACHER_KEY" in str(caught.value)
    shown = "".join([str(caught.value), repr(caught.value.__dict__), repr(vars(engine)), *capfd.readouterr()])
    assert SECRET not in shown
    with pytest.raises(ConfigError, match="no key was sent; name its variable in api_key_env"):
        engine_of(server)
    monkeypatch.setenv("TEACHER_KEY", f"{SECRET}\r\nX-Evil: 1")
    with pytest.raises(ConfigError, match="TEACHER_KEY does not hold a key") as caught:
        engine_of(server, api_key_env="TEACHER_KEY")
    assert SECRET not in str(caught.value)
    monkeypatch.delenv("TEACHER_KEY")
    with pytest.raises(ConfigError, match="the variable TEACHER_KEY is not set.*export TEACHER_KEY"):
        engine_of(server, api_key_env="TEACHER_KEY")


@pytest.mark.parametrize(
    ("url", "why"),
    [("localhost:8000", "no web address"), ("ftp://host/v1", "no web address"), ("http://[", "no web address"),
     ("http://me:sk@host/v1", "it holds a name or password"), ("http://host/v1/chat/completions", "the address above"),
     ("http://host/v1?key=sk", "no web address")],
)  # fmt: skip
def test_addresses_that_cannot_be_right(url: str, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        OpenAIEngine(url, "m")


def test_answers_are_handed_over_as_they_come_and_only_so_many_are_under_way(server: FakeServer) -> None:
    server.delay_s = 0.05
    server.faults = lambda body, before: (400, b"", {}) if server.prompt(body) == "bad" else None
    engine = engine_of(server, concurrency=3)
    results: dict[int, Any] = {}
    prompts = [f"p{n}" for n in range(8)] + ["bad"]
    engine.generate_each([ask(p) for p in prompts], results.__setitem__, go=lambda place: place != 2)
    assert server.most_under_way == 3
    assert sorted(results) == [0, 1, 3, 4, 5, 6, 7, 8]
    assert isinstance(results.pop(8), InputError) and {one.text for one in results.values()} >= {"said: p0"}


def test_after_an_error_of_the_taker_nothing_more_is_sent_and_what_is_under_way_is_handed_over(
    server: FakeServer,
) -> None:
    server.delay_s = 0.05
    engine = engine_of(server, concurrency=2)
    taken: list[int] = []

    def take(place: int, _: Any) -> None:
        taken.append(place)
        if len(taken) == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        engine.generate_each([ask(f"p{n}") for n in range(20)], take)
    assert len(taken) == len(server.bodies) <= 4


def test_scores_where_the_server_echoes_and_a_refusal_where_it_does_not(server: FakeServer) -> None:
    engine = engine_of(server, api="completions")
    assert engine.capabilities.logprobs
    scores = engine.loglikelihood([ScoreRequest("the sky is", " blue now"), ScoreRequest("it is", " right")])
    assert [(score.logprob, score.greedy, score.tokens) for score in scores] == [(-9.0, False, 2), (0.0, True, 1)]
    with pytest.raises(EngineError, match="no token begins where the scored part does"):
        engine.loglikelihood([ScoreRequest("the sk", "y is")])
    with pytest.raises(EngineError, match="first token"):
        engine.loglikelihood_rolling(["a text"])
    chat = engine_of(server)
    assert not chat.capabilities.logprobs
    with pytest.raises(EngineError, match="cannot do what is needed"):
        require(chat, "logprobs")
    with pytest.raises(EngineError, match="no log-probabilities of a prompt"):
        chat.loglikelihood([ScoreRequest("a", " b")])


def test_a_server_that_cannot_echo_is_found_out(server: FakeServer) -> None:
    server.faults = lambda body, before: (400, b"echo is not supported", {})
    assert not engine_of(server, api="completions").capabilities.logprobs
