"""What others have in a provider's queue, by the logs of the checkpoints beside ours.

Checkpoints in one directory, their root, share a ledger, which is nothing but their logs: a shard
is in the queue from its `UploadStarted` on. Who wants to put one there claims the root, reads what
the logs say of all others, and commits its own `UploadStarted` before anybody else of the same root
can. A batch that nobody works on any more is in the queue until the provider says that it is not.
"""

import contextlib
import os
import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path

from batchframe.checkpoint import Checkpoint
from batchframe.client import Provider, Unavailable
from batchframe.clock import Clock
from batchframe.core.batches import Creating, Live, State, Uploaded, Uploading
from batchframe.core.queues import queue_of
from batchframe.errors import AccountMismatchError, CheckpointError, ProviderError
from batchframe.layout import Layout
from batchframe.storage import Storage

try:
    import fcntl
except ImportError:  # Windows: processes that start in the same moment do not see each other
    fcntl = None  # type: ignore[assignment]

__all__ = ["Ledger"]

#: Batches that the provider is asked about when the queue seems to be full, at most; and how many
#: seconds pass until it is asked again.
_ASKED, _ASKED_SECONDS = 10, 60.0
#: How long a batch that was made may be unknown to the provider, in seconds.
_VISIBLE_SECONDS = 600.0
#: How long a create whose process died may still become a batch, in seconds: a day.
_LANDING_SECONDS = 86_400.0


class Ledger:
    """The queues of the checkpoints in one root. Used by several threads."""

    def __init__(self, root: Path, storage: Storage, clock: Clock) -> None:
        self._root = root
        self._storage = storage
        self._clock = clock
        self._lock = threading.Lock()
        #: The checkpoints that were found, as far as they were read.
        self._known: dict[Path, Checkpoint] = {}
        #: Batches that ended, and the tokens of creates that made none, whatever the logs say.
        self._ended: set[str] = set()
        #: When the provider may be asked again, on the clock's monotonic scale.
        self._next_asked = 0.0

    def put(
        self,
        n_tokens: int,
        *,
        queue: tuple[str, ...],
        room: float,
        ours: Mapping[Path, Collection[int]],
        provider: Provider,
        commit: Callable[[], object],
    ) -> bool:
        """Commit that a shard goes into its queue. False, and nothing done, if others fill it.

        Args:
            n_tokens: The shard's, as they are guessed.
            queue: Its queue, as `queue_of` has it.
            room: Tokens that the queue takes beside `ours`.
            ours: The checkpoints that this process works on: for each path, the numbers of the
                shards that the caller counts itself. Nobody works on the others there.
            provider: Is asked about batches that may have ended.
            commit: Puts it into its checkpoint's log.
        """
        with self._lock:
            if self._tokens(queue, ours) + n_tokens > room:
                now = self._clock.monotonic()
                if now >= self._next_asked:
                    self._next_asked = now + _ASKED_SECONDS
                    self._ask(queue, ours, provider)
            with self._claim():
                tokens = self._tokens(queue, ours)
                if tokens and tokens + n_tokens > room:
                    return False
                commit()
                return True

    def _tokens(self, queue: tuple[str, ...], ours: Mapping[Path, Collection[int]]) -> int:
        self._refresh()
        return sum(n_tokens for n_tokens, _ in self._others(queue, ours))

    def _others(
        self, queue: tuple[str, ...], ours: Mapping[Path, Collection[int]]
    ) -> Iterator[tuple[int, State]]:
        """Tokens of all shards of others in the queue, and where they stand."""
        for path, checkpoint in self._known.items():
            account = checkpoint.spec.account
            if queue_of(account, queue[-1]) != queue:
                continue
            counted = ours.get(path, ())
            at_work = path not in ours and checkpoint.is_at_work()
            for number, shard in checkpoint.shards.items():
                state = shard.state
                if number in counted or not self._is_in_queue(state, at_work=at_work):
                    continue
                if checkpoint.model_of(number) == queue[-1]:
                    yield shard.frozen.n_tokens, state

    def _is_in_queue(self, state: State, *, at_work: bool) -> bool:
        match state:
            case Uploading() | Uploaded():
                return at_work
            case Creating(token=token, since=since):
                is_late = self._clock.now() - since >= _LANDING_SECONDS
                return at_work or not (is_late or token in self._ended)
            case Live(batch=batch):
                return batch.batch_id not in self._ended
            case _:
                return False

    def _ask(
        self, queue: tuple[str, ...], ours: Mapping[Path, Collection[int]], provider: Provider
    ) -> None:
        """Find out which live batches have ended, and which creates came to nothing.

        The oldest are the likeliest.
        """
        states = [state for _, state in self._others(queue, ours)]
        live = [state.batch for state in states if isinstance(state, Live)]
        for batch in sorted(live, key=lambda one: one.created_at)[:_ASKED]:
            try:
                is_over = provider.retrieve(batch.batch_id).status.is_final
            except AccountMismatchError:  # deleted, or not visible yet
                is_over = self._clock.now() - batch.created_at > _VISIBLE_SECONDS
            except (Unavailable, ProviderError):
                return
            if is_over:
                self._ended.add(batch.batch_id)
        before = self._clock.now() - _VISIBLE_SECONDS
        lost = [state for state in states if isinstance(state, Creating) and state.since < before]
        for create in sorted(lost, key=lambda one: one.since)[:_ASKED]:
            try:
                found = provider.find(
                    file_id=create.file_id, token=create.token, since=create.since
                )
            except (Unavailable, ProviderError):
                return
            if all(batch.status.is_final for batch in found):
                self._ended.add(create.token)

    def _refresh(self) -> None:
        """Read what was committed since."""
        try:
            paths = list(self._root.iterdir())
        except OSError:  # one that may be used and not listed: nobody else is seen
            paths = []
        for path in paths:
            try:
                if path in self._known:
                    self._known[path].catch_up()
                elif Layout(path).spec.is_file():
                    self._known[path] = Checkpoint.read(path, self._storage, self._clock)
            except (CheckpointError, OSError):  # not a checkpoint, or not any more
                self._known.pop(path, None)

    @contextlib.contextmanager
    def _claim(self) -> Iterator[None]:
        """Be the only process that puts shards of this root into a queue."""
        if fcntl is None:
            yield
            return
        with contextlib.ExitStack() as stack:
            with contextlib.suppress(OSError):  # a file system without locks, or of another's
                # The directory itself, so that nothing is left in it.
                descriptor = os.open(self._root, os.O_RDONLY)
                stack.callback(os.close, descriptor)
                fcntl.flock(descriptor, fcntl.LOCK_EX)
                # Unlocked, and not only closed: a forked child may hold a copy.
                stack.callback(fcntl.flock, descriptor, fcntl.LOCK_UN)
            yield
