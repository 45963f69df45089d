"""Threads that perform the engine's steps, and that a process does not wait for at its end.

Those of `concurrent.futures` take nothing more as soon as the main thread has ended, so that a call
in another thread could not go on; and the process waits for what they do, which takes as long as
its client waits where a service hangs.
"""

import functools
import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future
from queue import SimpleQueue
from typing import Any, ParamSpec, TypeVar

__all__ = ["Workers"]

P = ParamSpec("P")
T = TypeVar("T")


class Workers(Executor):
    """A pool of daemon threads, which begin as they are needed, and end by `leave`."""

    def __init__(self, n_threads: int, name: str) -> None:
        """Of so many threads, whose names begin so."""
        self._n_threads, self._name = n_threads, name
        self._n_begun = 0
        self._has_left = False
        self._lock = threading.Lock()
        self._tasks: SimpleQueue[Callable[[], None] | None] = SimpleQueue()

    def submit(
        self, function: Callable[P, T], /, *arguments: P.args, **keywords: P.kwargs
    ) -> Future[T]:
        """Call a function in one of the threads. Raises RuntimeError once they were let go."""
        future: Future[T] = Future()
        call = functools.partial(function, *arguments, **keywords)
        with self._lock:
            if self._has_left:
                raise RuntimeError(f"the threads of {self._name} were let go")
            if self._n_begun < self._n_threads:
                name = f"{self._name}_{self._n_begun}"
                threading.Thread(target=self._work, name=name, daemon=True).start()
                self._n_begun += 1
            self._tasks.put(functools.partial(_perform, future, call))
        return future

    def leave(self) -> None:
        """Have the threads end, once they have performed what they were given."""
        with self._lock:
            self._has_left = True
            for _ in range(self._n_begun):
                self._tasks.put(None)

    def _work(self) -> None:
        while (task := self._tasks.get()) is not None:
            task()
            del task  # with all that it holds, until the next one comes


def _perform(future: "Future[Any]", function: Callable[[], Any]) -> None:
    try:
        future.set_result(function())
    except BaseException as error:  # noqa: BLE001 - raised again where the result is asked for
        future.set_exception(error)
