"""A run that is to be cancelled: what was not sent is given up, what is live is asked to stop.

What was sent is waited for all the same: it is collected, as it is paid.
"""

import logging
from dataclasses import dataclass, field

from batchframe.client import Unavailable
from batchframe.core.batches import Dropped, Live, Unsent
from batchframe.errors import ProviderError
from batchframe.watching import Watch

__all__ = ["Cancelling"]

_log = logging.getLogger(__name__)

#: Seconds until a live batch is asked again to be cancelled, where the provider did not answer.
_CANCEL_SECONDS = 5.0


@dataclass(slots=True)
class Cancelling:
    """How far the wish to cancel is carried out, for the shards of one call."""

    watch: Watch
    #: Unsent shards, which are dropped when no other run watches them.
    _withdrawn: set[int] = field(default_factory=set)
    #: The live batches that were asked to be cancelled; and when to ask again, where that failed.
    _asked: set[str] = field(default_factory=set)
    _next: float = 0.0

    def go_on(self) -> None:
        """Send nothing more, and ask for live batches to be cancelled; at each look once more."""
        self._withdrawn.update(self.watch.withdraw())
        self._drop_withdrawn()
        self._ask()

    def _drop_withdrawn(self) -> None:
        """Give up what was withdrawn and was not sent, once no other run watches it."""
        watch, checkpoint = self.watch, self.watch.checkpoint
        with checkpoint.planning:
            for number in sorted(self._withdrawn):
                state = checkpoint.shards[number].state
                if not isinstance(state, Unsent):  # sent in this moment, or given up by another
                    self._withdrawn.discard(number)
                    if not isinstance(state, Dropped):
                        watch.watch(number)
                elif not watch.engine.is_watched(checkpoint, number):
                    watch.drop(number)

    def _ask(self) -> None:
        now = self.watch.engine.clock.monotonic()
        if now < self._next:
            return
        for job in self.watch.jobs:
            if isinstance(job.state, Live) and job.state.batch.batch_id not in self._asked:
                try:
                    self.watch.submission.provider.cancel(job.state.batch.batch_id)
                except Unavailable:  # asked again; it keeps none of the others running
                    self._next = now + _CANCEL_SECONDS
                    continue
                except ProviderError as reason:  # it goes on, and is collected when it has ended
                    _log.warning("%s", reason)
                self._asked.add(job.state.batch.batch_id)
