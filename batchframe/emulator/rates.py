"""How often a thing may be done: a call too many is refused with 429 and how long to wait."""

import math
from collections import deque
from collections.abc import Iterable

from .records import Refusal

__all__ = ["MAX_CREATES_PER_HOUR", "MAX_UPLOADS_PER_MINUTE", "Rate"]

#: Batches that may be created in an hour (OpenAI Batch API guide, 2026-08).
MAX_CREATES_PER_HOUR = 2_000

#: Files that may be uploaded in a minute (OpenAI API spec, 2026-08).
MAX_UPLOADS_PER_MINUTE = 1_000


class Rate:
    """So many times in any span of so many seconds. Not thread-safe."""

    def __init__(self, what: str, limit: int, seconds: float, past: Iterable[float] = ()) -> None:
        """Take the times in the past that count, oldest first."""
        self._what = what
        self._limit = limit
        self._seconds = seconds
        #: The last times, at most as many as the limit: the first is the next to be forgotten.
        self._times = deque(past, limit)

    def take(self, now: float) -> None:
        """Do it once more, or raise the refusal, which counts for nothing."""
        while self._times and self._times[0] <= now - self._seconds:
            self._times.popleft()
        if len(self._times) < self._limit:
            self._times.append(now)
            return
        oldest = self._times[0] if self._times else now
        # Whole seconds, rounded up: whoever waits so long is let in. The form of the text is that
        # of the other rate limits of the service (distilabel issue 1014, 2024).
        wait = max(1, math.ceil(oldest + self._seconds - now))
        message = (
            f"Rate limit reached for {self._what}: Limit {self._limit}, Used {len(self._times)},"
            f" Requested 1. Please try again in {wait}s."
        )
        raise Refusal(
            429,
            message,
            kind="requests",
            code="rate_limit_exceeded",
            headers={"retry-after": str(wait)},
        )
