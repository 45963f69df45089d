"""The rows of a slow model, so many at a time: as one is answered the next begins.

One thread runs an event loop, with a task for each row under way. An upstream is asked from there,
again and again while it says `NotNow`; a model of this process works in threads. A row keeps its
place in the window while it waits to be asked again, so that no more rows are in memory than there
are places. When its batch leaves `in_progress`, a row is given up.
"""

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

from batchframe.clock import Clock

from .answers import Answer, error_body
from .archive import Archive
from .models import Model
from .records import Batch
from .rows import Rows, answer_of
from .upstream import TRIES, Ask, NotNow, Upstream, delay
from .work import Request

__all__ = ["Window"]

#: Seconds of real time after which the thread looks again what the clock made due.
_TICK_SECONDS = 0.02

#: Seconds of real time until a disk that was full, or failed, is tried again.
_DISK_SECONDS = 1.0

_LOGGER = logging.getLogger("batchframe.emulator")


class Window:
    """A thread that executes the rows of an archive's batches, until it is closed."""

    def __init__(
        self,
        rows: Rows,
        archive: Archive,
        settle: Callable[[], float],
        model: Model | Upstream,
        clock: Clock,
        *,
        concurrency: int,
    ) -> None:
        self._rows = rows
        self._archive = archive
        #: Applies what is due, and returns the time. Called with the archive's lock.
        self._settle = settle
        self._model = model
        self._clock = clock
        self._concurrency = concurrency
        self._closing = False
        #: The rows under way, and their batches.
        self._tasks: dict[asyncio.Task[None], Batch] = {}
        #: Rows that wait to be asked again: until when, by the clock, and what wakes them.
        self._pauses: list[tuple[float, asyncio.Event]] = []
        self._thread = threading.Thread(target=self._run, name="emulator-rows", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop. Rows that this process computes are finished; what an upstream does is left."""
        with self._archive.changed:
            self._closing = True
            self._archive.changed.notify_all()
        self._thread.join()

    def _run(self) -> None:
        asyncio.run(self._work())

    async def _work(self) -> None:
        async with self._session() as ask:
            while not self._closing:
                try:
                    self._fill(ask)
                except Exception:  # a full disk, or what a caller's function of the pace raised
                    _LOGGER.exception("The rows cannot go on; trying again")
                    await asyncio.sleep(_DISK_SECONDS)
                if self._tasks:
                    await asyncio.wait(
                        self._tasks, timeout=_TICK_SECONDS, return_when=asyncio.FIRST_COMPLETED
                    )
                    self._reap()
            if isinstance(self._model, Upstream):
                for task in self._tasks:
                    task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            self._reap()

    def _fill(self, ask: Ask) -> None:
        """Begin what is due, give up what is over, and wait if there is neither.

        With nothing under way, the event loop may stand still until a record changes.
        """
        with self._archive.changed:
            now = self._settle()
            for task, batch in self._tasks.items():
                if self._archive.batches[batch.id].status != "in_progress":
                    task.cancel()
            while len(self._tasks) < self._concurrency and (taken := self._rows.take(now)):
                self._tasks[asyncio.create_task(self._row(ask, *taken))] = taken[0]
            for due, event in self._pauses:
                if due <= self._clock.monotonic():
                    event.set()
            if not self._tasks and not self._closing:
                live = self._archive.live_batches()
                self._archive.changed.wait(_TICK_SECONDS if live else None)

    def _reap(self) -> None:
        """Take what has ended out of the window."""
        ended = [task for task in self._tasks if task.done()]
        for task in ended:
            del self._tasks[task]
            if not task.cancelled():
                task.result()

    async def _row(self, ask: Ask, batch: Batch, request: Request) -> None:
        answer = await self._answer(ask, batch, request)
        while True:
            try:
                with self._archive.changed:
                    self._rows.keep(batch, request, answer)
            except OSError:
                if self._closing:  # the next server asks for it again
                    return
                _LOGGER.exception("An answer cannot be written; trying again")
                await asyncio.sleep(_DISK_SECONDS)
            else:
                return

    async def _answer(self, ask: Ask, batch: Batch, request: Request) -> Answer:
        tries = waits = 0
        while True:
            try:
                return await ask(request.body, batch.endpoint)
            except NotNow as not_now:
                if not_now.answer is not None:
                    tries += 1
                    if tries == TRIES:
                        return not_now.answer
                waits += 1
                seconds = delay(waits, not_now.retry_after)
            except Exception as error:  # a row that fails must not end the others
                _LOGGER.exception("A row could not be asked")
                message = f"The row could not be asked: {type(error).__name__}: {error}"
                return 500, error_body(message, "server_error", None)
            await self._pause(seconds)

    async def _pause(self, seconds: float) -> None:
        pause = (self._clock.monotonic() + seconds, asyncio.Event())
        self._pauses.append(pause)
        try:
            await pause[1].wait()
        finally:
            self._pauses.remove(pause)

    def _session(self) -> AbstractAsyncContextManager[Ask]:
        if isinstance(self._model, Upstream):
            return self._model.session(self._concurrency)
        return _in_threads(self._model, self._concurrency)


@asynccontextmanager
async def _in_threads(model: Model, concurrency: int) -> AsyncIterator[Ask]:
    loop = asyncio.get_running_loop()
    with ThreadPoolExecutor(concurrency, "emulator-row") as pool:

        async def ask(body: dict[str, Any], endpoint: str) -> Answer:
            return await loop.run_in_executor(pool, answer_of, model, body, endpoint)

        yield ask
