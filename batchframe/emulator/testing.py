"""A model becomes a server on this machine, for tests, demonstrations and development.

`LocalServer` runs the Files, Uploads and Batches API in a thread, on 127.0.0.1 and on no other
interface, unless it is told to.
`JumpClock` is a clock that jumps instead of waiting: with it, 24 hours pass in no time.
"""

import ipaddress
import socket
import tempfile
import threading
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from batchframe.clock import Clock, SystemClock
from batchframe.errors import MissingDependencyError, ParameterError

from .answers import Answer
from .dialects import manners_of
from .door import Door
from .faults import Fault, Script
from .models import Model, resolve_model
from .rates import MAX_CREATES_PER_HOUR, MAX_UPLOADS_PER_MINUTE
from .records import Billed, Call
from .store import Policy, Store
from .timeline import Pace
from .upstream import Upstream
from .webhooks import Webhook

if TYPE_CHECKING:
    from openai import OpenAI

    from batchframe.core.dialects import Dialect

__all__ = ["JumpClock", "LocalServer"]


class JumpClock:
    """A clock that stands still until it is moved, and jumps when there is nothing but waiting."""

    #: The longest real wait, in seconds, when other threads have work in flight.
    longest_wait = 5.0

    def __init__(self, start: float = 1_790_000_000.0) -> None:
        self._start = start
        self._elapsed = 0.0
        self._lock = threading.Lock()

    def now(self) -> float:
        """The time it shows: seconds since the epoch, UTC."""
        return self._start + self.monotonic()

    def monotonic(self) -> float:
        """Seconds by which it was moved so far."""
        with self._lock:
            return self._elapsed

    def advance(self, seconds: float) -> None:
        """Move ahead."""
        if seconds < 0:
            raise ValueError(f"seconds must not be negative, but is {seconds}")
        with self._lock:
            self._elapsed += seconds

    def wait(
        self, condition: threading.Condition, seconds: float | None, *, idle: bool = False
    ) -> None:
        """Jump ahead when `idle`; else wait for a notification, as long as real work may take."""
        if idle and seconds is not None:
            self.advance(max(0.0, seconds))
        else:
            longest = self.longest_wait
            condition.wait(longest if seconds is None else min(seconds, longest))

    def pause(self, seconds: float) -> None:
        """Go on at once: a test has no other work to leave the machine to."""


class LocalServer:
    """The OpenAI Files, Uploads and Batches API on this machine.

    A context manager; where there is no block to hold it, as in a notebook, `start` and `stop` it.

    Args:
        model: What answers the requests: `"echo"`, `"smollm2"`, a `Model`, an `Upstream`, or a
            function `(body) -> (status, body)` or `(body) -> text`.
        directory: Where the state is kept, to be found again by a later server. None is a
            temporary one, removed at the end.
        clock: What time it is. None is the machine's clock.
        stage_seconds: How long each of `validating`, `finalizing` and `cancelling` lasts, and
            `in_progress` at least.
        row_seconds: How far apart the rows of a batch are executed.
        host: The address to listen on. One that other machines reach needs a *token*.
        concurrency: How many rows of an upstream, or of another model that takes its time, are
            under way at once; batches take turns.
        port: The port; 0 is any free one.
        token: The only key that is let in; None lets all in.
        dialect: The service that it speaks like: `"azure"`, `"groq"`, ... or a record of one's own.
        max_requests: Requests that one batch may have; None: as many as the service takes.
        max_file_bytes: Size that an input file may have; None: what the service takes.
        enqueued_token_limit: Prompt tokens that may be queued per model: one number for all
            models, or a number for each; None is no limit.
        refuse_at_create: Whether a batch that does not fit into the queue is refused when it is
            created, and not only while it is validated.
        max_creates_per_hour: Batches that may be created in an hour.
        max_uploads_per_minute: Files that may be uploaded in a minute.
        webhook_url: Where the end of each batch is told, signed; None is nowhere.
        webhook_secret: What signs it; None makes one, see `webhook_secret`. It is never stored.
        faults: What goes wrong, and when; also as text, see `Fault.parse`.

    Raises ValueError where these do not fit.
    """

    def __init__(
        self,
        model: str | Model | Upstream | Callable[[dict[str, Any]], Answer | str] = "echo",
        *,
        directory: str | Path | None = None,
        clock: Clock | None = None,
        stage_seconds: float | Callable[[str], float] = 0.05,
        row_seconds: float = 0.0,
        host: str = "127.0.0.1",
        concurrency: int = 2,
        port: int = 0,
        token: str | None = None,
        dialect: "str | Dialect" = "openai",
        max_requests: int | None = None,
        max_file_bytes: int | None = None,
        enqueued_token_limit: int | Mapping[str, int] | None = None,
        refuse_at_create: bool = False,
        max_creates_per_hour: int = MAX_CREATES_PER_HOUR,
        max_uploads_per_minute: int = MAX_UPLOADS_PER_MINUTE,
        webhook_url: str | None = None,
        webhook_secret: str | None = None,
        faults: Iterable[Fault | str] = (),
    ) -> None:
        if concurrency < 1:
            raise ParameterError(f"concurrency must be at least 1, but is {concurrency}")
        #: What is to be closed at the end, while it serves.
        self._stack: ExitStack | None = None
        self._model = model
        self._script = Script(Fault.parse(f) if isinstance(f, str) else f for f in faults)
        self._directory = directory
        self._host = host
        self._port = port
        self._door = Door.of(host, token)
        self._clock = clock or SystemClock()
        self._manners = manners_of(dialect)
        taken = self._manners.dialect
        self._policy = Policy(
            max_file_bytes=max_file_bytes or taken.max_bytes,
            max_creates_per_hour=max_creates_per_hour,
            max_uploads_per_minute=max_uploads_per_minute,
            refuse_at_create=refuse_at_create,
        )
        self._webhook = None if webhook_url is None else Webhook(webhook_url, webhook_secret)
        self._pace = Pace(
            stage_seconds=stage_seconds,
            row_seconds=row_seconds,
            concurrency=concurrency,
            max_requests=max_requests or taken.max_requests,
            enqueued_token_limit=enqueued_token_limit,
        )

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def start(self) -> Self:
        """Serve, until `stop` or the end of the process.

        Raises MissingDependencyError where the extra `emulator` is not installed, OSError where the
        port or the directory cannot be had, RuntimeError where it serves already.
        """
        if self._stack is not None:
            raise RuntimeError("the server has started already: use it as it is, or stop it first")
        try:
            import python_multipart  # noqa: F401 - starlette asks for it at the first upload
            import uvicorn

            from .dialects import Speaker
            from .server import create_app
        except ModuleNotFoundError as missing:
            hint = 'The local server needs an extra: pip install "openai-batchframe[emulator]"'
            raise MissingDependencyError(hint) from missing
        with ExitStack() as stack:
            if self._directory is None:
                temporary = tempfile.TemporaryDirectory(prefix="batchframe-emulator-")
                directory = Path(stack.enter_context(temporary))
            else:
                directory = Path(self._directory)
            model = resolve_model(self._model)
            # Listening from here on: a client that comes before the thread runs is kept waiting.
            family = socket.AF_INET6 if ":" in self._host else socket.AF_INET
            address = (self._host, self._port)
            listening = socket.create_server(address, family=family, backlog=1024)
            self._socket = stack.enter_context(listening)
            # asyncio does so only for sockets whose protocol is spelled out; without it, every
            # answer waits 40 ms for the acknowledgement of its first half.
            listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._store = Store(
                directory,
                model=model,
                clock=self._clock,
                pace=self._pace,
                manners=self._manners,
                policy=self._policy,
                script=self._script,
                webhook=self._webhook,
            )
            stack.callback(self._store.close)
            app = create_app(
                self._store, self._script, self._hang_up, door=self._door, clock=self._clock
            )
            if not self._manners.is_plain:
                app = Speaker(app, self._manners)
            self._server = uvicorn.Server(
                uvicorn.Config(
                    app,
                    log_config=None,
                    log_level="error",  # what goes wrong in here is seen on stderr
                    access_log=False,
                    proxy_headers=False,  # a connection is found by its address to be closed
                    lifespan="off",
                    ws="none",
                    http="h11",
                    timeout_graceful_shutdown=5,
                )
            )
            thread = threading.Thread(
                target=self._server.run, args=([listening],), name="emulator-http", daemon=True
            )
            thread.start()
            stack.callback(self._stop, thread)
            self._clients = stack.enter_context(ExitStack())
            self._stack = stack.pop_all()
        return self

    def stop(self) -> None:
        """Answer no more, and remove a directory that was temporary."""
        stack, self._stack = self._stack, None
        if stack is not None:
            stack.close()

    def _stop(self, thread: threading.Thread) -> None:
        self._server.should_exit = True
        thread.join()

    def _hang_up(self, client: tuple[str, int]) -> None:
        from uvicorn.protocols.http.h11_impl import H11Protocol

        for connection in self._server.server_state.connections:
            if isinstance(connection, H11Protocol) and connection.client == client:
                connection.transport.close()

    @property
    def base_url(self) -> str:
        """What a client takes as `base_url`."""
        return f"{self._origin}{self._manners.base}"

    @property
    def _origin(self) -> str:
        address, port = self._socket.getsockname()[:2]
        if ipaddress.ip_address(address).is_unspecified:  # all addresses, so this one as well
            address = "::1" if ":" in address else "127.0.0.1"
        host = f"[{address}]" if ":" in address else address
        return f"http://{host}:{port}"

    @property
    def webhook_secret(self) -> str:
        """What a receiver checks signatures with: `client.webhooks.unwrap(..., secret=...)`."""
        if self._webhook is None:
            raise ValueError("the server has no webhook: give it a webhook_url")
        return self._webhook.secret

    def client(self, **kwargs: Any) -> "OpenAI":
        """A client of this server, closed with it; the keywords are those of `openai.OpenAI`.

        In the dialect "azure" it is an `openai.AzureOpenAI`. Unless `http_client` is given, proxies
        of the environment are not used.
        """
        from openai import AzureOpenAI, DefaultHttpxClient, OpenAI

        if kwargs.get("http_client") is None:
            # Plain http on this machine: there is no certificate to check, and reading all that a
            # system trusts takes longer than most calls.
            kwargs["http_client"] = DefaultHttpxClient(trust_env=False, verify=False)
        key = self._door.token or "sk-local"
        if self._manners.needs_version:
            azure = {"azure_endpoint": self._origin, "api_version": "2025-04-01-preview"}
            client: OpenAI = AzureOpenAI(**{**azure, "api_key": key, **kwargs})
        else:
            client = OpenAI(**{"base_url": self.base_url, "api_key": key, **kwargs})
        return self._clients.enter_context(client)

    def inject(self, fault: Fault) -> None:
        """Let something go wrong, from the next call on."""
        self._script.add(fault)

    def executions(self) -> dict[str, int]:
        """How often each custom_id was executed and billed."""
        return self._store.executions()

    def calls(self) -> dict[str, int]:
        """How many calls of each operation arrived: `{"batches.create": 1, ...}`."""
        return self._store.calls()

    def log(self) -> list[Call]:
        """The last 1,000 calls, oldest first, with the statuses and the ids of their answers."""
        return self._store.logged()

    def billed(self) -> Billed:
        """What the service would put on the bill."""
        return self._store.billed()
