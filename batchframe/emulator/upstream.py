"""Rows are answered by another server: any that speaks the OpenAI API without its batches.

A row's body is posted to the endpoint below the server's address, and what comes back is the row's
answer, whatever a 2xx or 4xx says. What may pass is asked again. `NotNow` says so, and whether the
server said it of this row: of an answer that the row met again and again, the last one counts, but
a server that is away or busy is waited for as long as the batch lasts.
"""

import math
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

import httpx2
import msgspec

from batchframe.core.addresses import is_loopback, is_private
from batchframe.errors import ApiKeyError, ParameterError

from .answers import Answer, error_body

__all__ = ["TRIES", "Ask", "NotNow", "Upstream", "delay"]

#: A body and an endpoint -> its answer. Raises NotNow.
Ask = Callable[[dict[str, Any], str], Awaitable[Answer]]

#: How often a row is asked whose answer is an error that may pass: with the delays, two minutes.
TRIES = 8

#: Seconds until an answer must have begun, as the openai SDK waits (openai 3.54), and until a
#: connection is made.
_TIMEOUT, _CONNECT_TIMEOUT = 600.0, 5.0

#: Size of an answer, in bytes: 2,048 embeddings of 1,536 numbers are about 38 MB.
_MAX_BYTES = 64 << 20

#: Statuses of an answer that may be another one later, beside 5xx.
_PASSING = frozenset({408, 409, 425})

#: Statuses with which a server speaks of itself and not of the row: too many requests, and not
#: ready (llama.cpp while it loads, gateways while nobody is behind them).
_BUSY = frozenset({429, 503})


class NotNow(Exception):  # noqa: N818 - not an error: the row is asked again
    """The upstream did not answer, or not for good."""

    def __init__(self, answer: Answer | None = None, *, retry_after: float = 0.0) -> None:
        super().__init__()
        #: What the row gets if this happens to it `TRIES` times; None: it is not about the row.
        self.answer = answer
        #: Seconds that the upstream asks to wait.
        self.retry_after = retry_after


class Upstream:
    """An OpenAI-compatible server that answers the rows: Ollama, vLLM, llama.cpp, a gateway."""

    instant = False

    def __init__(self, base_url: str, *, key_env: str | None = None) -> None:
        """Take the address and the key; nothing is sent.

        Args:
            base_url: Where the server's endpoints are, as a client takes it:
                `http://127.0.0.1:11434/v1`.
            key_env: The environment variable that holds the server's key; None is no key. The key
                is read once, and neither kept on disk nor shown.

        Raises:
            ParameterError: the address is neither https nor plain http on this machine.
            ApiKeyError: the variable is not set, or holds what is no key.
        """
        if not _is_address(base_url):
            raise ParameterError(
                f"The upstream {base_url!r} is not an address like http://127.0.0.1:11434/v1."
            )
        if not is_private(base_url):
            raise ParameterError(
                f"The upstream {base_url} is not https: the key and the prompts would travel in "
                "the clear. Plain http is taken for this machine only (127.0.0.1)."
            )
        self.base_url = base_url.rstrip("/")
        self.name = f"the server at {self.base_url}"
        self._headers = {"content-type": "application/json"}
        if key_env is not None:
            self._headers["authorization"] = f"Bearer {_key(key_env)}"
        self._settings: dict[str, Any] = {
            "headers": self._headers,
            # The key and the prompts would go where a redirect leads.
            "follow_redirects": False,
            "trust_env": not is_loopback(
                urlsplit(base_url).hostname or ""
            ),  # no proxy on the way to this machine
        }

    def look(self) -> str | None:
        """Ask for the list of models: what is wrong with the upstream, or None."""
        try:
            with httpx2.Client(timeout=_CONNECT_TIMEOUT, **self._settings) as client:
                seen = client.get(f"{self.base_url}/models")
        except httpx2.HTTPError as error:
            return f"Nothing answers at {self.base_url} ({type(error).__name__}: {error})."
        if seen.status_code in {401, 403}:
            return f"{self.base_url} refuses the key (HTTP {seen.status_code})."
        return None

    @asynccontextmanager
    async def session(self, concurrency: int) -> AsyncIterator[Ask]:
        """Give what asks for one row, once. So many may be asked for at a time."""
        limits = httpx2.Limits(max_connections=concurrency, max_keepalive_connections=concurrency)
        timeout = httpx2.Timeout(_TIMEOUT, connect=_CONNECT_TIMEOUT)
        async with httpx2.AsyncClient(limits=limits, timeout=timeout, **self._settings) as client:

            async def ask(body: dict[str, Any], endpoint: str) -> Answer:
                url = self.base_url + endpoint.removeprefix("/v1")
                return await _asked(client, url, msgspec.json.encode(body))

            yield ask


def delay(waits: int, retry_after: float = 0.0) -> float:
    """Seconds to wait for the `waits`-th time: 0.5, 1, 2, ... at most 30, or what is asked for."""
    return max(min(0.5 * 2.0 ** min(waits - 1, 6), 30.0), retry_after)


async def _asked(client: httpx2.AsyncClient, url: str, content: bytes) -> Answer:
    try:
        async with client.stream("POST", url, content=content) as response:
            status, headers = response.status_code, response.headers
            received = bytearray()
            async for chunk in response.aiter_bytes():
                received += chunk
                if len(received) > _MAX_BYTES:
                    return _broken(f"an answer of more than {_MAX_BYTES:,} bytes")
    except (httpx2.ConnectError, httpx2.ConnectTimeout) as error:
        raise NotNow from error
    except httpx2.TimeoutException as error:
        raise NotNow(_broken("no answer in time", 504)) from error
    except httpx2.TransportError as error:
        raise NotNow(_broken(f"no whole answer ({type(error).__name__}: {error})")) from error
    except httpx2.RequestError as error:  # its content encoding is not what it says
        return _broken(f"an answer that cannot be read ({error})")
    body = _object(bytes(received))
    if 300 <= status < 400:
        return _broken(f"HTTP {status}, and redirects are not followed")
    answer = (status, body) if body is not None else _broken(_not_json(status, bytes(received)))
    if status in _BUSY and not _is_without_money(body):
        raise NotNow(retry_after=_retry_after(headers))
    if status in _PASSING or status >= 500:
        raise NotNow(answer, retry_after=_retry_after(headers))
    return answer


def _broken(what: str, status: int = 502) -> Answer:
    return status, error_body(f"The upstream gave {what}.", "upstream_error", None)


def _not_json(status: int, received: bytes) -> str:
    return f"HTTP {status} with what is not a JSON object: {received[:200]!r}"


def _object(received: bytes) -> dict[str, Any] | None:
    try:
        found = msgspec.json.decode(received)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _is_without_money(body: dict[str, Any] | None) -> bool:
    # A 429 that waiting does not heal (OpenAI, error codes guide, 2026-08).
    error = (body or {}).get("error")
    return isinstance(error, dict) and error.get("code") == "insufficient_quota"


def _retry_after(headers: httpx2.Headers) -> float:
    try:
        seconds = float(headers.get("retry-after", ""))
    except ValueError:  # a date, or nothing: our own delay
        return 0.0
    return max(seconds, 0.0) if math.isfinite(seconds) else 0.0


def _is_address(url: str) -> bool:
    try:
        parts = urlsplit(url)
        is_whole = bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port or an IPv6 address that is none
        return False
    return is_whole and not (parts.query or parts.fragment or "@" in parts.netloc)


def _key(name: str) -> str:
    key = os.environ.get(name, "")
    if not key or not (key.isascii() and key.isprintable() and " " not in key):
        what = "holds white space or other characters that no key has" if key else "is not set"
        raise ApiKeyError(
            f"The key of the upstream cannot be read: the environment variable {name} {what}. "
            "The key is not shown here."
        )
    return key
