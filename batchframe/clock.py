"""Time as an argument: the engine asks a clock, and tests hand it one that jumps."""

import threading
import time
from typing import Protocol

__all__ = ["Clock", "SystemClock"]


class Clock(Protocol):
    """What the engine and the local server know of time."""

    def now(self) -> float:
        """Seconds since the epoch, UTC. May jump either way: only shown and compared coarsely."""
        ...

    def monotonic(self) -> float:
        """Seconds that never go back: every delay is measured with it."""
        ...

    def wait(
        self, condition: threading.Condition, seconds: float | None, *, idle: bool = False
    ) -> None:
        """Wait on a held condition until it is notified, at most `seconds` (None: no limit).

        `idle` says that no work is in flight, so that only time can bring news: a clock for
        tests then jumps ahead by `seconds` instead of waiting.
        """
        ...

    def pause(self, seconds: float) -> None:
        """Leave the machine to other threads for so long; a clock for tests need not."""
        ...


class SystemClock:
    """The machine's clock."""

    def now(self) -> float:
        return time.time()

    def monotonic(self) -> float:
        return time.monotonic()

    def wait(
        self,
        condition: threading.Condition,
        seconds: float | None,
        *,
        idle: bool = False,  # noqa: ARG002 - real time passes by itself
    ) -> None:
        condition.wait(seconds)

    def pause(self, seconds: float) -> None:
        time.sleep(seconds)
