"""A run that is to be cancelled: what was not sent is given up, what is live is asked to stop.

What was sent is waited for all the same: it is collected, as it is paid. Nobody waits for the asks
themselves: a service that hangs would hold who wants to leave for as long as its client waits.
"""

import logging
import math
import queue
import threading
from collections.abc import Container, Iterable, Iterator
from dataclasses import dataclass, field

from batchframe.client import Provider, Unavailable
from batchframe.core.batches import Dropped, Live, Unsent
from batchframe.errors import ProviderError
from batchframe.watching import Watch

__all__ = ["Asks", "Cancelling"]

_log = logging.getLogger(__name__)

#: Seconds until a live batch is asked again to be cancelled, where the provider did not answer.
_CANCEL_SECONDS = 5.0
#: Batches that are asked at once to be cancelled: a hundred in seconds, and no burst of calls.
_ASKS = 8


class Asks:
    """Asks a provider to cancel batches, some at once, in threads that end by themselves."""

    def __init__(self, provider: Provider) -> None:
        self._provider = provider
        self._under_way: set[str] = set()
        self._outcomes: queue.SimpleQueue[tuple[str, BaseException | None]] = queue.SimpleQueue()

    def begin(self, batch_ids: Iterable[str]) -> None:
        """Ask for the first of these that are not under way, as far as there is room."""
        for batch_id in batch_ids:
            if len(self._under_way) == _ASKS:
                return
            if batch_id not in self._under_way:
                self._under_way.add(batch_id)
                # One that hangs keeps no process from its end.
                threading.Thread(
                    target=self._ask, args=[batch_id], name="batchframe-cancel", daemon=True
                ).start()

    def outcomes(self, seconds: float = 0.0) -> Iterator[tuple[str, BaseException | None]]:
        """What was answered since the last look; waits up to `seconds` for the first of it.

        With each batch what was raised for it; None where it was asked.
        """
        while True:
            try:
                batch_id, reason = self._outcomes.get(timeout=seconds)
            except queue.Empty:
                return
            seconds = 0.0
            self._under_way.discard(batch_id)
            yield batch_id, reason

    def _ask(self, batch_id: str) -> None:
        reason = None
        try:
            self._provider.cancel(batch_id)
        except BaseException as error:  # noqa: BLE001 - told to who looks at the outcomes
            reason = error
        self._outcomes.put((batch_id, reason))


@dataclass(slots=True)
class Cancelling:
    """How far the wish to cancel is carried out, for the shards of one call."""

    watch: Watch
    asks: Asks = field(init=False)
    #: Unsent shards, which are dropped when no other run watches them.
    _withdrawn: set[int] = field(default_factory=set)
    #: When a batch is asked again that was asked to be cancelled: never, if it was answered.
    _due: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.asks = Asks(self.watch.submission.provider)

    def begin_anew(self) -> None:
        """Forget the wish, as the call asks for rows. Shards that nobody watches stay cancelled."""
        watch, checkpoint = self.watch, self.watch.checkpoint
        if not checkpoint.is_cancelled():
            return  # who cancels from now on, while others plan, means this call as well
        with checkpoint.planning:
            numbers = list(checkpoint.shards)
            free = [n for n in numbers if not watch.engine.is_watched(checkpoint, n)]
            if checkpoint.is_cancelled():
                checkpoint.forget_cancel(free)

    def go_on(self) -> None:
        """Send nothing more, and ask for live batches to be cancelled; at each look once more."""
        self.give_up(self.watch.checkpoint.shards)
        self._ask()

    def give_up(self, shards: Container[int]) -> None:
        """Send nothing of these shards; at each look once more."""
        self._withdrawn.update(self.watch.withdraw(shards))
        if self._withdrawn:
            self._drop_withdrawn()

    def _drop_withdrawn(self) -> None:
        """Give up what was withdrawn and was not sent, once no other run watches it."""
        watch, checkpoint = self.watch, self.watch.checkpoint
        with checkpoint.planning:
            is_cancelled = checkpoint.is_cancelled()
            for number in sorted(self._withdrawn):
                state = checkpoint.shards[number].state
                is_back = not (is_cancelled or number in watch.cancelled)
                # Sent in this moment, given up by another, or asked for by a call that began anew.
                if not isinstance(state, Unsent) or is_back:
                    self._withdrawn.discard(number)
                    if not isinstance(state, Dropped):
                        watch.take_up(number)
                elif not watch.engine.is_watched(checkpoint, number):
                    watch.drop(number, is_unwanted=True)

    def _ask(self) -> None:
        now = self.watch.engine.clock.monotonic()
        for batch_id, reason in self.asks.outcomes():
            match reason:
                case Unavailable():  # asked again; it keeps none of the others running
                    self._due[batch_id] = now + _CANCEL_SECONDS
                    continue
                case ProviderError():  # it goes on, and is collected when it has ended
                    _log.warning("%s", reason)
                case BaseException():
                    raise reason
                case None:
                    pass
            self._due[batch_id] = math.inf
        live = [job.state.batch.batch_id for job in self.watch.jobs if isinstance(job.state, Live)]
        due = {batch_id: self._due.get(batch_id, 0.0) for batch_id in live}
        # First of all those that were not asked yet.
        self.asks.begin(sorted((one for one in live if due[one] <= now), key=due.__getitem__))
