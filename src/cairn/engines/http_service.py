"""JSON over HTTP with patience: what the engines that talk to a server share.

    body ── POST ── 200 and JSON ─────────────────────────────> dict
              ├─ 429, 500-504, time-out, connection lost,
              │  garbage instead of JSON ── wait, again ──> (at the end) EngineError
              ├─ 400, 413, 422 ───────────────────────────────> InputError    this request is wrong, others may be right
              └─ 401, 403, 404 and the rest ──────────────────> ConfigError   every request would fail

The wait doubles each time, with jitter, so that many workers do not come back at once; where the server says when to
come back (Retry-After), all workers wait as long. The key is sent and never shown: it is cut out of every message.
"""

from __future__ import annotations

import email.utils
import json
import math
import os
import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar
from urllib.parse import urlsplit

import httpx2

from cairn.errors import ConfigError, EngineError, InputError

__all__ = ["HttpService", "Patience"]

Value = TypeVar("Value")

_FIRST_WAIT_S = 0.5
_LONGEST_WAIT_S = 60.0  # between two tries; a longer Retry-After ends the request
_MOST_BYTES = 32 << 20  # of one response
_THIS_REQUEST = (400, 413, 422)
_SHOWN = 300  # characters of a server's message


class Patience:
    """Says how long to wait before a try, and keeps all workers of a service back when one is told to wait.

    Args:
        sleep: waits so many seconds instead of the clock (tests).
        draw: source of the jitter.
    """

    def __init__(self, sleep: Callable[[float], Any] | None = None, draw: random.Random | None = None) -> None:
        self._sleep, self._draw = sleep, draw or random.Random()
        self._lock = threading.Lock()
        self._until = 0.0

    def after(self, tries: int, asked_s: float | None, stopping: threading.Event | None = None) -> None:
        """Waits after a failed try.

        Args:
            tries: how many failed so far, from 1.
            asked_s: what the server asked for; all workers wait so long.
            stopping: ends the wait early.
        """
        wait = min(_FIRST_WAIT_S * 2 ** (tries - 1), _LONGEST_WAIT_S) * (0.5 + self._draw.random() / 2)
        if asked_s is not None:
            wait = max(wait, asked_s)
            with self._lock:
                self._until = max(self._until, time.monotonic() + asked_s)
        self._rest(wait, stopping)

    def before(self, stopping: threading.Event | None = None) -> None:
        """Waits as long as the server has asked any worker to."""
        with self._lock:
            wait = self._until - time.monotonic()
        if wait > 0:
            self._rest(wait, stopping)

    def _rest(self, seconds: float, stopping: threading.Event | None) -> None:
        if self._sleep is not None:
            self._sleep(seconds)
        elif stopping is not None:
            stopping.wait(seconds)
        else:
            time.sleep(seconds)


class _Fault(Exception):
    """A try that may be repeated."""

    def __init__(self, what: str, asked_s: float | None = None) -> None:
        super().__init__(what)
        self.asked_s = asked_s


class HttpService:
    """One server, its address, its key and how often it is asked again.

    Args:
        url: of the API, such as "http://localhost:8000/v1"; without name and password in it.
        api_key_env: name of the environment variable that holds the key; None sends none.
        timeout_s: for one whole response, its last byte included.
        retries: further tries after a fault that may pass.
        connections: open at once.
        patience: how to wait; replaced in tests.

    Raises:
        ConfigError: not an http address, a secret in it, or the variable is not set.
    """

    def __init__(
        self,
        url: str,
        *,
        api_key_env: str | None = None,
        timeout_s: float = 120.0,
        retries: int = 6,
        connections: int = 8,
        patience: Patience | None = None,
    ) -> None:
        self.url = _checked(url)
        self._key = _key(api_key_env)
        self._key_env = api_key_env
        self._timeout_s, self._retries = timeout_s, retries
        self._patience = patience or Patience()
        self._client = httpx2.Client(
            headers={"Authorization": f"Bearer {self._key}"} if self._key else {},
            timeout=httpx2.Timeout(timeout_s, connect=min(10.0, timeout_s), pool=None),
            limits=httpx2.Limits(max_connections=connections, max_keepalive_connections=connections),
        )

    def __repr__(self) -> str:
        return f"HttpService({self.url!r})"

    def close(self) -> None:
        """Closes the connections."""
        self._client.close()

    def post(
        self,
        path: str,
        body: Mapping[str, Any],
        read: Callable[[dict[str, Any]], Value],
        *,
        headers: Mapping[str, str] | None = None,
        stopping: threading.Event | None = None,
    ) -> Value:
        """Sends JSON and returns what `read` finds in the JSON object that comes back.

        Args:
            path: below the service's address, such as "/chat/completions".
            body: the request.
            read: takes the response apart; a KeyError, IndexError, TypeError, AttributeError or ValueError of it
                means garbage, and the server is asked again.
            headers: of this request.
            stopping: when set, no further try is made.

        Raises:
            InputError: the server refuses this request. ConfigError: it would refuse every request.
            EngineError: it was not reached, or failed at every try.
        """
        return self._patiently("POST", path, self._retries, read, body=body, headers=headers, stopping=stopping)

    def get(self, path: str) -> dict[str, Any]:
        """Returns the JSON object at a path, asked for once.

        Raises:
            InputError, ConfigError, EngineError: as `post`.
        """
        return self._patiently("GET", path, 0, dict)

    @contextmanager
    def lines(self, path: str, body: Mapping[str, Any]) -> Iterator[Iterator[str]]:
        """Opens a streamed response, once, and gives its lines.

        Raises:
            InputError, ConfigError, EngineError: as `post`; what has been read is lost if the stream breaks.
        """
        try:
            with self._client.stream("POST", self.url + path, json=dict(body)) as response:
                if response.status_code != 200:
                    response.read()
                    self._judge(response.status_code, response.headers, response.content, path)
                yield response.iter_lines()
        except _Fault as fault:
            raise self._gave_up(str(fault), 1) from None
        except httpx2.TransportError as error:
            raise self._gave_up(self._lost(error), 1) from None

    def _patiently(
        self,
        method: str,
        path: str,
        retries: int,
        read: Callable[[dict[str, Any]], Value],
        *,
        body: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
        stopping: threading.Event | None = None,
    ) -> Value:
        for tries in range(1, retries + 2):
            self._patience.before(stopping)
            if stopping is not None and stopping.is_set():
                raise EngineError("stopped before the server was asked", value=self.url)
            try:
                return self._once(method, path, body, headers, read)
            except _Fault as fault:
                if tries > retries or (fault.asked_s or 0) > _LONGEST_WAIT_S:
                    raise self._gave_up(str(fault), tries) from None
                self._patience.after(tries, fault.asked_s, stopping)
        raise EngineError("no try was allowed", value=retries, allowed="retries of 0 or more")

    def _once(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None,
        headers: Mapping[str, str] | None,
        read: Callable[[dict[str, Any]], Value],
    ) -> Value:
        """One try.

        The response is read piece by piece: a server that sends a byte now and then would never run into the
        client's own limit, which counts from byte to byte.
        """
        ends = time.monotonic() + self._timeout_s
        json_body = {} if body is None else {"json": dict(body)}
        data = bytearray()
        try:
            with self._client.stream(method, self.url + path, headers=dict(headers or {}), **json_body) as response:
                for piece in response.iter_bytes():
                    data += piece
                    if time.monotonic() > ends:
                        raise _Fault(f"no whole response within {self._timeout_s:g} s")
                    if len(data) > _MOST_BYTES:
                        raise _Fault(f"a response of more than {_MOST_BYTES >> 20} MiB")
        except httpx2.TransportError as error:
            raise _Fault(self._lost(error)) from None
        except httpx2.DecodingError:
            raise _Fault("a response that cannot be unpacked") from None
        self._judge(response.status_code, response.headers, bytes(data), path)
        try:
            found = json.loads(bytes(data))
            if isinstance(found, dict):
                return read(found)
        except (KeyError, IndexError, TypeError, AttributeError, ValueError):  # bytes that are no UTF-8 as well
            pass
        raise _Fault(f"garbage instead of the JSON asked for{self._said(bytes(data[:_SHOWN]))}")

    def _lost(self, error: httpx2.TransportError) -> str:
        if isinstance(error, httpx2.ConnectTimeout | httpx2.ConnectError):
            return f"no connection ({self._clean(str(error)) or type(error).__name__})"
        if isinstance(error, httpx2.TimeoutException):
            return f"no response within {self._timeout_s:g} s"
        return f"the connection was lost ({self._clean(str(error)) or type(error).__name__})"

    def _judge(self, status: int, headers: Mapping[str, str], data: bytes, path: str) -> None:
        """Raises what a status other than 200 means."""
        if status == 200:
            return
        said = self._said(data)
        if status == 429 or 500 <= status <= 504:
            asked = _retry_after(headers.get("retry-after"))
            name = "rate limit" if status == 429 else "server fault"
            name += "" if asked is None else f", come back in {asked:.0f} s"
            raise _Fault(f"HTTP {status}, {name}{said}", asked)
        if status in _THIS_REQUEST:
            raise InputError(f"the server refuses this request (HTTP {status}){said}")
        place = self.url + path
        if status in (401, 403):
            key = f"the key in {self._key_env}" if self._key else "no key was sent; name its variable in api_key_env"
            raise ConfigError(place, [f"access is refused (HTTP {status}){said}; {key}"], next="check the key")
        if status == 404:
            raise ConfigError(
                place, [f"not found (HTTP 404){said}"],
                next="check the address (it often ends in /v1) and the name of the model",
            )  # fmt: skip
        raise ConfigError(place, [f"unexpected response (HTTP {status}){said}"], next="check the address")

    def _said(self, data: bytes) -> str:
        """Returns ': message' from an error response, as servers differ in where they put it."""
        text = data[:20_000].decode("utf-8", errors="replace")
        try:
            found = json.loads(text)
        except ValueError:
            found = text
        for key in ("error", "message", "detail"):
            if isinstance(found, dict) and key in found:
                found = found[key]
        if isinstance(found, dict | list):
            found = json.dumps(found)
        shown = self._clean(str(found))
        return f": {shown}" if shown else ""

    def _clean(self, text: str) -> str:
        if self._key:
            text = text.replace(self._key, "***")
        line = " ".join(text.split())
        return line if len(line) <= _SHOWN else line[: _SHOWN - 3] + "..."

    def _gave_up(self, fault: str, tries: int) -> EngineError:
        times = "once" if tries == 1 else f"{tries} times"
        return EngineError(
            f"the server did not answer, asked {times}: {fault}", value=self.url,
            next="check that it runs and how busy it is; the same command goes on",
        )  # fmt: skip


def _checked(url: str) -> str:
    try:
        parts = urlsplit(url)
    except ValueError:
        parts = urlsplit("")
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise ConfigError("url", [f"{url!r} is no web address, allowed: http://HOST:PORT/v1 or https://..."])
    if parts.username or parts.password:
        raise ConfigError("url", ["it holds a name or password"], next="put the key into a variable: api_key_env")
    for end in ("/chat/completions", "/completions"):
        if parts.path.rstrip("/").endswith(end):
            raise ConfigError("url", [f"{url!r} ends in {end}, allowed: the address above it"], next="drop the end")
    return url.rstrip("/")


def _key(name: str | None) -> str | None:
    if name is None:
        return None
    key = os.environ.get(name, "").strip()
    if not key:
        raise ConfigError("api_key_env", [f"the variable {name} is not set"], next=f"export {name}=...")
    if not key.isascii() or not key.isprintable() or " " in key:  # it would break the header, or be shown by an error
        raise ConfigError("api_key_env", [f"the variable {name} does not hold a key"], next="look at it for line ends")
    return key


def _retry_after(value: str | None) -> float | None:
    """Returns seconds from a Retry-After header: a number, or a date."""
    if value is None:
        return None
    try:
        seconds = float(value)
        return max(0.0, seconds) if math.isfinite(seconds) else None
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, TypeError):
        return None
