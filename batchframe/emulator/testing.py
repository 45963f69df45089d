"""A model becomes a server on this machine, for tests, demonstrations and development.

`LocalServer` runs the Files and Batches API in a thread, on 127.0.0.1 and on no other interface.
`JumpClock` is a clock that jumps instead of waiting: with it, 24 hours pass in no time.
"""

import socket
import tempfile
import threading
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from batchframe.clock import Clock, SystemClock
from batchframe.errors import MissingDependencyError

from .dialects import manners_of
from .faults import Fault, Script
from .models import Answer, Model, resolve_model
from .records import Billed
from .store import Store
from .timeline import Pace

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


class LocalServer:
    """The OpenAI Files and Batches API on 127.0.0.1.

    A context manager; where there is no block to hold it, as in a notebook, `start` and `stop` it.

    Args:
        model: What answers the requests: `"echo"`, `"smollm2"`, a `Model`, or a function
            `(body) -> (status, body)` or `(body) -> text`.
        directory: Where the state is kept, to be found again by a later server. None is a
            temporary one, removed at the end.
        clock: What time it is. None is the machine's clock.
        stage_seconds: How long each of `validating`, `finalizing` and `cancelling` lasts, and
            `in_progress` at least.
        row_seconds: How far apart the rows of a batch are executed.
        port: The port; 0 is any free one.
        dialect: The service that it speaks like: `"azure"`, `"groq"`, ... or a record of one's own.
        max_requests: Requests that one batch may have; None: as many as the service takes.
        max_file_bytes: Size that an input file may have; None: what the service takes.
        enqueued_token_limit: Prompt tokens that may be queued per model: one number for all
            models, or a number for each; None is no limit.
        faults: What goes wrong, and when.
    """

    def __init__(
        self,
        model: str | Model | Callable[[dict[str, Any]], Answer | str] = "echo",
        *,
        directory: str | Path | None = None,
        clock: Clock | None = None,
        stage_seconds: float | Callable[[str], float] = 0.05,
        row_seconds: float = 0.0,
        port: int = 0,
        dialect: "str | Dialect" = "openai",
        max_requests: int | None = None,
        max_file_bytes: int | None = None,
        enqueued_token_limit: int | Mapping[str, int] | None = None,
        faults: Iterable[Fault] = (),
    ) -> None:
        self._model = model
        self._script = Script(faults)
        self._directory = directory
        self._port = port
        self._clock = clock or SystemClock()
        self._manners = manners_of(dialect)
        taken = self._manners.dialect
        self._max_file_bytes = max_file_bytes or taken.max_bytes
        self._pace = Pace(
            stage_seconds=stage_seconds,
            row_seconds=row_seconds,
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

        Raises MissingDependencyError where the extra `emulator` is not installed.
        """
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
            listening = socket.create_server(("127.0.0.1", self._port), backlog=1024)
            self._socket = stack.enter_context(listening)
            # asyncio does so only for sockets whose protocol is spelled out; without it, every
            # answer waits 40 ms for the acknowledgement of its first half.
            listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._store = Store(
                directory,
                model=model,
                clock=self._clock,
                pace=self._pace,
                max_file_bytes=self._max_file_bytes,
                manners=self._manners,
                reshape=self._script.reshape,
            )
            stack.callback(self._store.close)
            app = create_app(self._store, self._script, self._hang_up)
            if not self._manners.is_plain:
                app = Speaker(app, self._manners)
            self._server = uvicorn.Server(
                uvicorn.Config(
                    app,
                    log_config=None,
                    log_level="error",  # what goes wrong in here is seen on stderr
                    access_log=False,
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
        self._stack.close()

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
        return f"http://127.0.0.1:{self._socket.getsockname()[1]}"

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
        if self._manners.needs_version:
            azure = {"azure_endpoint": self._origin, "api_version": "2025-04-01-preview"}
            client: OpenAI = AzureOpenAI(**{**azure, "api_key": "sk-local", **kwargs})
        else:
            client = OpenAI(**{"base_url": self.base_url, "api_key": "sk-local", **kwargs})
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

    def billed(self) -> Billed:
        """What the service would put on the bill."""
        return self._store.billed()
