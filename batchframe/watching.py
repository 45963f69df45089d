"""The shards that a call has to do with: those that it made, holds back, and waits for.

A shard is held as long as there is no room for what it may cost. Then the call watches it: the
engine moves it on, and the call waits until it is settled.
"""

from collections.abc import Container, Iterable
from dataclasses import dataclass, field

import pyarrow as pa

from batchframe.budget import Budget
from batchframe.checkpoint import Checkpoint
from batchframe.client import delete_quietly
from batchframe.core.batches import Sent, Unsent, Uploaded
from batchframe.engine import Engine
from batchframe.jobs import Job, Submission

__all__ = ["Watch"]


@dataclass(slots=True, eq=False)
class Watch:
    """The shards of one call; the engine knows the call by it."""

    checkpoint: Checkpoint
    submission: Submission
    engine: Engine
    #: It hears of each shard before that is watched, as its requests may be gone afterwards.
    budget: Budget
    #: The call has the rows that it asks for: else it does what is left of the checkpoint.
    has_rows: bool
    #: What the call waits for; the engine looks at the same list.
    jobs: list[Job] = field(default_factory=list)
    #: Frozen shards that the budget, or the tolerance of failures, has no room for yet.
    held: list[int] = field(default_factory=list)
    #: The shards that were made by this call: each row is in one window, and so in none of them.
    made: set[int] = field(default_factory=set)
    #: In which round of this call each shard is, from 0.
    rounds: dict[int, int] = field(default_factory=dict)
    #: The shards that an earlier call sent: what it met says nothing of what this one would meet.
    sent_before: set[int] = field(default_factory=set)

    def add(self, number: int, *, round_: int) -> None:
        """Hold a shard that this call made."""
        self.rounds[number] = round_
        self.made.add(number)
        self.held.append(number)

    def take_up(self, number: int) -> None:
        """Wait for a shard that was there before; one that was not sent is held first."""
        if not isinstance(self.checkpoint.shards[number].state, Unsent):
            self.watch(number)
        elif number not in self.held and all(job.number != number for job in self.jobs):
            self.held.append(number)

    @property
    def cancelled(self) -> frozenset[int]:
        """The shards of which the call sends nothing: one that has rows asks for its shards."""
        return frozenset() if self.has_rows else self.checkpoint.cancelled_shards

    def is_too_large(self, number: int) -> bool:
        """True for a shard to be cut anew: an earlier call of larger limits left it unsent."""
        shard, limits = self.checkpoint.shards[number], self.submission.limits
        frozen = shard.frozen
        is_within = frozen.n_requests <= limits.max_requests and frozen.n_bytes <= limits.max_bytes
        return (
            isinstance(shard.state, Unsent)
            and not (is_within or frozen.n_requests == 1)
            and not self.engine.is_watched(self.checkpoint, number)
        )

    def watch(self, number: int) -> None:
        """Have the engine work on a shard, and wait for it."""
        if self.has_rows:
            self.checkpoint.take_back([number])
        shard = self.checkpoint.shards[number]
        if isinstance(shard.state, Sent):
            self.sent_before.add(number)
        # A shard under way counts on where it was made: a process that begins every ten minutes
        # must come to an end of rows that fail each time.
        self.rounds.setdefault(number, shard.frozen.round)
        self.budget.expect(number)
        job = self.engine.watch(self, self.checkpoint, number, self.submission)
        if job not in self.jobs:
            self.jobs.append(job)

    def drop(self, number: int, *, is_unwanted: bool) -> None:
        """Give up a shard that was not sent and that nobody watches: its rows are free.

        Those that are wanted are in need of other shards at once.
        """
        state = self.checkpoint.shards[number].state
        self.checkpoint.drop(number, is_unwanted=is_unwanted)
        if isinstance(state, Uploaded):
            delete_quietly(self.submission.provider, state.file_id)

    def withdraw(self, shards: Container[int]) -> list[int]:
        """Let go of those of these shards that were not sent. Returns what they are."""
        waiting = (job.number for job in self.jobs if isinstance(job.state, Unsent))
        unsent = [number for number in (*self.held, *waiting) if number in shards]
        gone = set(unsent)
        self.held[:] = [number for number in self.held if number not in gone]
        for number in unsent:
            self.engine.withdraw(self, self.checkpoint, number)
        self.jobs[:] = [job for job in self.jobs if job.number not in gone]
        return unsent

    def release(self) -> None:
        """Let go of all: no further step begins, and those under way are waited for."""
        self.engine.release(self)

    def is_done(self) -> bool:
        """True when nothing is held, and nothing waited for."""
        return not self.held and all(job.is_settled for job in self.jobs)

    def n_held(self) -> int:
        """How many rows are held."""
        return sum(self.checkpoint.shards[number].frozen.n_requests for number in list(self.held))

    def n_unsent(self) -> int:
        """How many rows are held, or are waited for and not at the provider."""
        waiting = (job for job in self.jobs if not isinstance(job.state, Sent))
        return self.n_held() + sum(job.n_requests for job in waiting)

    def keys_in(self, numbers: Iterable[int]) -> pa.FixedSizeBinaryArray:
        """The keys of all requests of these shards, and of those that are held."""
        keys = [self.checkpoint.row_keys(number) for number in (*numbers, *self.held)]
        return pa.concat_arrays([pa.array([], pa.binary(16)), *keys])
