"""The log of a checkpoint: what happened to its shards, and so where each of them stands.

The log is the truth: a shard's state is its events, folded. A commit that finds its number taken
belongs to a process that another one has overtaken, and stops there, before it can spend money.
Each commit is sealed with its own hash, and chained by the hash of the one before.
"""

import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path

import msgspec

from batchframe.clock import Clock
from batchframe.core.batches import (
    BatchSeen,
    Event,
    IllegalTransitionError,
    ShardFrozen,
    State,
    advance,
)
from batchframe.core.spec import Spec
from batchframe.errors import CheckpointBusyError, CheckpointCorruptError
from batchframe.layout import Layout
from batchframe.storage import Storage

__all__ = ["Commit", "Log", "Shard"]


class Shard(msgspec.Struct):
    """One shard as the log has it."""

    #: What was frozen.
    frozen: ShardFrozen
    #: Where it stands.
    state: State


class Commit(msgspec.Struct, frozen=True, kw_only=True):
    """One file of the log."""

    n: int
    #: Hex SHA-256 of the commit before, "" for the first.
    prev: str
    #: When, UTC; for people only.
    at: str
    shard: int
    event: Event


class Log:
    """One spec's log, shared by all threads of this process."""

    def __init__(self, path: Path, spec: Spec, storage: Storage, clock: Clock) -> None:
        self.path = path
        self.spec = spec
        #: Where each shard stands.
        self.shards: dict[int, Shard] = {}
        self._layout = Layout(path)
        self._storage = storage
        self._clock = clock
        self._commits = threading.Lock()
        self._n_commits = 0
        self._last_hash = ""
        self._failure: OSError | None = None

    def catch_up(self) -> None:
        """Read what was committed since, which is all of it at first.

        Raises CheckpointCorruptError if the log is broken.
        """
        names = self._storage.names(self._layout.log)
        if names and names[-1] != self._layout.commit(len(names) - 1).name:
            # A listing that was made while files were added may lack one before the last.
            names = self._storage.names(self._layout.log)
        for n, name in enumerate(names[self._n_commits :], start=self._n_commits):
            path = self._layout.commit(n)
            if name != path.name:
                raise self._broken_log(f"{path.name} is missing")
            commit, digest = self._read(n)
            if commit.n != n or commit.prev != self._last_hash:
                raise self._broken_log(f"{name} does not follow the commit before it")
            shard = self.shards.get(commit.shard)
            try:
                state = advance(shard.state if shard else None, commit.event)
            except IllegalTransitionError as error:
                raise self._broken_log(f"{name}: {error}") from None
            self._apply(commit.shard, state, commit.event)
            self._n_commits = n + 1
            self._last_hash = digest

    def commit(self, number: int, event: Event) -> State:
        """Record what happened to a shard; only then is it so.

        Raises CheckpointBusyError when another process committed in between.
        """
        with self._commits:
            shard = self.shards.get(number)
            state = advance(shard.state if shard else None, event)
            commit = Commit(
                n=self._n_commits,
                prev=self._last_hash,
                at=datetime.fromtimestamp(self._clock.now(), UTC).isoformat(),
                shard=number,
                event=event,
            )
            data = _sealed(msgspec.json.encode(commit))
            try:
                is_ours = self._storage.create(self._layout.commit(commit.n), data)
            except OSError as error:
                self._failure = error
                raise
            if not is_ours and self._failure is not None:
                # Our own commit, which failed after it had its name: the next opening reads it.
                raise self._failure
            if not is_ours:
                raise self.overtaken()
            self._n_commits += 1
            self._last_hash = sha256(data).hexdigest()
            self._apply(number, state, event)
            return state

    def is_overtaken(self) -> bool:
        """True when another process has committed what this one does not know."""
        with self._commits:
            return self._layout.commit(self._n_commits).exists()

    def overtaken(self) -> CheckpointBusyError:
        """What is to be raised then."""
        return CheckpointBusyError(
            f"Another process works on {self.path} and has overtaken this one, which stops here. "
            "Nothing is lost: run the same call again when the other has ended."
        )

    def observe(self, number: int, seen: BatchSeen) -> None:
        """Take note of a live batch's progress, which the log does not keep."""
        with self._commits:
            self.shards[number].state = advance(self.shards[number].state, seen)

    def history(self) -> Iterator[tuple[datetime, int, Event]]:
        """What the log says: when it was, UTC, to which shard, and what happened; in its order.

        The log is read again from the disk, as far as this checkpoint knows it, because what is
        kept in memory is only where each shard stands.

        Raises CheckpointCorruptError if a commit is not what was written.
        """
        for n in range(self._n_commits):
            commit, _ = self._read(n)
            yield datetime.fromisoformat(commit.at), commit.shard, commit.event

    def _read(self, n: int) -> tuple[Commit, str]:
        """One commit of the log, and the hex SHA-256 of its file."""
        path = self._layout.commit(n)
        try:
            data = self._storage.read(path)
        except FileNotFoundError:
            raise self._broken_log(f"{path.name} is missing") from None
        payload = data.partition(b"\n")[0]
        if data != _sealed(payload):
            raise self._broken_log(f"{path.name} is not what was written")
        try:
            commit = msgspec.json.decode(payload, type=Commit)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise self._broken_log(f"{path.name} cannot be read: {error}") from None
        return commit, sha256(data).hexdigest()

    def _apply(self, number: int, state: State, event: Event) -> None:
        if isinstance(event, ShardFrozen):
            self.shards[number] = Shard(frozen=event, state=state)
        else:
            self.shards[number].state = state

    def _broken_log(self, what: str) -> CheckpointCorruptError:
        return CheckpointCorruptError(
            f"The log of {self.path} is broken: {what}. Nothing was sent. Restore the directory "
            "from a copy. Without one: results/*.parquet, which any parquet reader opens, hold "
            "what was collected; what was not is on the provider's page for 30 days after its "
            f"batch, under the metadata checkpoint={self.spec.fingerprint}. A call with another "
            "checkpoint= sends its rows anew, and they are paid for again: leave out those."
        )


def _sealed(payload: bytes) -> bytes:
    """A commit as it stands in its file: one line of JSON, and one with the JSON's SHA-256."""
    return payload + b"\n" + sha256(payload).hexdigest().encode() + b"\n"
