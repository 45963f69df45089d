"""The submission engine: one for the process, shared by all frames, runs and threads.

decide -> perform -> record. A control thread decides, with pure functions, which shard may take
its next step; a small pool performs the steps, one at a time for each shard; each step records
what happened in the checkpoint's log, and only that moves the shard on. Runs watch shards and wait.
Runs take turns, in the queue and in the pool; many live batches are looked at by one listing.
A shard that nobody watches any more is left alone: its batch goes on at the provider, and the next
call that needs its rows picks it up where the log has it.
"""

import atexit
import logging
import os
import threading
import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from batchframe.checkpoint import Checkpoint
from batchframe.client import Unavailable
from batchframe.clock import Clock, SystemClock
from batchframe.core.batches import (
    Collected,
    Creating,
    Dropped,
    Ended,
    Live,
    Planned,
    State,
    Uploaded,
)
from batchframe.core.queues import Queue, queue_of
from batchframe.core.retries import retry_delay, was_turned_away
from batchframe.core.schedule import creates_of, until_create
from batchframe.core.shards import MAX_CREATES_PER_HOUR
from batchframe.core.spec import Account
from batchframe.errors import ProviderError
from batchframe.jobs import (
    Job,
    Submission,
    in_turn,
    is_in_queue,
    is_too_large,
    startable,
    waits_for_its_hour,
)
from batchframe.ledger import Ledger
from batchframe.steps import AT_ONCE, CROWDED, Around, Next, attempt, glance
from batchframe.storage import Storage
from batchframe.workers import Workers

__all__ = ["Engine", "default_engine"]

_log = logging.getLogger(__name__)

#: Steps that may be performed at once: enough to keep uploads, downloads and parsing overlapping.
_THREADS = 4
#: How much longer a run waits between looks than a look takes, so that many shards are no burden.
_LOOKS = 10.0
#: Failed tries after which a service that never answered at all is taken for the wrong address.
_UNREACHED_TRIES = 6
#: How long a process that ends waits for steps that are being performed, in seconds: they are taken
#: up where they stood, but a thread that is cut off within Arrow may abort the process.
_LAST_SECONDS = 5.0


@dataclass(slots=True)
class Engine:
    """Moves watched shards from frozen to collected."""

    clock: Clock = field(default_factory=SystemClock)
    _jobs: dict[tuple[int, int], Job] = field(default_factory=dict)
    _changed: threading.Condition = field(default_factory=threading.Condition)
    _thread: threading.Thread | None = None
    #: What is learned of the providers' queues, by account and model.
    _queues: dict[tuple[str, ...], Queue] = field(default_factory=dict)
    #: When batches were created, by account, on the clock's monotonic scale.
    _creates: dict[Account, list[float]] = field(default_factory=dict)
    #: Until when the service asks for no further create, by account, on the same scale.
    _create_due: dict[Account, float] = field(default_factory=dict)
    #: The checkpoints whose earlier creates are among `_creates`.
    _counted: set[Path] = field(default_factory=set)
    #: What others have in the queues, by the roots of checkpoints.
    _ledgers: dict[Path, Ledger] = field(default_factory=dict)
    #: Steps that are being performed, and runs that make shards.
    _n_steps: int = 0
    _n_freezing: int = 0
    #: The process ends: no further step begins.
    _is_resting: bool = False

    def room(
        self, account: Account, model: str, given: int | None, count: Callable[[], float | None]
    ) -> float | None:
        """Guessed tokens that fit into the empty queue; None where no limit is known.

        Args:
            account: Who pays.
            model: Which model.
            given: The limit as the user knows it, or None.
            count: What `Queue.sampled` takes, or None. It is called where there is a limit and
                nothing is known of what our guesses are worth.
        """
        queue = queue_of(account, model)
        with self._changed:
            known = self._queues.get(queue, Queue())
        if known.room(given) is None or known.is_calibrated:
            return known.room(given)
        ratio = count()
        with self._changed:
            known = self._queues.get(queue, Queue())
            if ratio is not None:
                self._queues[queue] = known = known.sampled(ratio)
        return known.room(given)

    def watch(
        self, owner: Hashable, checkpoint: Checkpoint, number: int, submission: Submission
    ) -> Job:
        """Work on a shard until it is collected, or until its owners `release` it."""
        with self._changed:
            job = self._jobs.get((id(checkpoint), number))
            if job is None:
                job = Job(checkpoint, number, submission.limits, {owner: submission})
                # Until its last step has ended, whoever closes the checkpoint in between.
                checkpoint.share()
                self._count_creates(checkpoint)
                self._jobs[id(checkpoint), number] = job
            else:
                # A new watcher may have mended what ended the work for an earlier one.
                job.watchers[owner] = submission
                job.error, job.tries, job.due = None, 0, min(job.due, self.clock.monotonic())
            if self._thread is None:
                thread = threading.Thread(
                    target=self._control, name="batchframe-engine", daemon=True
                )
                thread.start()
                self._thread = thread
            self._changed.notify_all()
        return job

    @contextmanager
    def freezing(self) -> Iterator[None]:
        """While a run makes shards, there is more to come than time alone brings."""
        with self._changed:
            self._n_freezing += 1
        try:
            yield
        finally:
            with self._changed:
                self._n_freezing -= 1
                self._changed.notify_all()

    def is_watched(self, checkpoint: Checkpoint, number: int) -> bool:
        """True while anybody waits for the shard, or a step of it is being performed."""
        with self._changed:
            return (id(checkpoint), number) in self._jobs

    def is_waiting(self, jobs: Sequence[Job]) -> bool:
        """True when nothing can be done for these jobs until the provider, or time, moves on."""
        with self._changed:
            if any(job.error is not None for job in jobs):
                return False
            ours = {id(job) for job in jobs if not job.is_settled}
            unsettled = [job for job in self._jobs.values() if job.busy or not job.is_settled]
            now = self.clock.monotonic()
            groups = startable(unsettled, now, self._queues)
            return not any(id(job) in ours for group in groups for job in group) and all(
                not job.busy and (isinstance(job.state, Planned | Live) or waits_for_its_hour(job))
                for job in jobs
                if not job.is_settled
            )

    def withdraw(self, owner: Hashable, checkpoint: Checkpoint, number: int) -> None:
        """Stop watching one shard, as `release` does with all."""
        with self._changed:
            job = self._jobs.get((id(checkpoint), number))
            if job is None or job.watchers.pop(owner, None) is None:
                return
            self._drop_if_idle(job)
            while job.busy and not job.watchers:
                self._changed.wait(0.2)

    def release(self, owner: Hashable) -> None:
        """Stop watching all that the owner watches.

        No further step of a job that nobody else watches begins; those that are being performed,
        or were begun with the owner's client, are waited for. An exception that ends the wait, such
        as Ctrl-C, changes nothing of that.
        """
        with self._changed:
            left = [(j, how) for j in self._jobs.values() if (how := j.watchers.pop(owner, None))]
            for job, _ in left:
                self._drop_if_idle(job)
            self._changed.notify_all()
            # Who has left may close its client.
            while any(job.busy and (not job.watchers or job.used is how) for job, how in left):
                self._changed.wait(0.2)

    def rest(self, seconds: float) -> None:
        """Begin no further step, and wait at most `seconds` for those that are being performed."""
        deadline = self.clock.monotonic() + seconds
        with self._changed:
            self._is_resting = True
            self._changed.notify_all()
            while self._n_steps and (left := deadline - self.clock.monotonic()) > 0:
                self._changed.wait(left)

    def _drop_if_idle(self, job: Job) -> None:
        if not job.watchers and not job.busy:
            key = (id(job.checkpoint), job.number)
            if self._jobs.get(key) is job:
                del self._jobs[key]
                job.checkpoint.close()

    def wait(self, jobs: list[Job], *, seconds: float, look: Callable[[], None]) -> bool:
        """Wait until all jobs are settled, at most `seconds`; call `look` at each change.

        `look` may change the list. Returns True when all are settled, and raises the first
        error among them at once.
        """
        deadline = self.clock.monotonic() + seconds
        while True:
            with self._changed:
                for job in jobs:
                    if job.error is not None:
                        raise job.error
                settled = all(job.is_settled for job in jobs)
                left = deadline - self.clock.monotonic()
                if not settled and left > 0:
                    # Woken at each step's end, and now and then for a signal such as Ctrl-C.
                    self._changed.wait(min(left, 0.2))
            before, began = list(jobs), time.perf_counter()
            look()
            if left <= 0 or (settled and jobs == before):
                return settled and jobs == before
            if not all(job.is_settled for job in jobs):  # else there is only the end to look at
                self.clock.pause(min(_LOOKS * (time.perf_counter() - began), 0.2))

    # The control thread

    def _control(self) -> None:
        with self._changed:
            pool = Workers(_THREADS, "batchframe")
            # Results are read by one thread: more would be no faster, as Python runs one of them,
            # and each would keep the memory of a whole shard.
            reader = Workers(1, "batchframe-reader")
            try:
                self._decide(pool, reader)
            except BaseException as error:  # noqa: BLE001 - raised again in the threads that wait
                for job in self._jobs.values():
                    job.error = job.error or error
            finally:
                self._thread = None
                self._changed.notify_all()
                pool.leave()
                reader.leave()

    def _decide(self, pool: Executor, reader: Executor) -> None:
        while jobs := [job for job in self._jobs.values() if job.busy or not job.is_settled]:
            if self._is_resting and not self._n_steps:
                return
            now = self.clock.monotonic()
            for group in in_turn(startable(jobs, now, self._queues), jobs):
                if self._n_steps == _THREADS or self._is_resting:
                    break
                if isinstance(group[0].state, Uploaded) and not self._may_create(group[0], now):
                    continue
                pool.submit(self._step, group, reader)
                self._n_steps += 1
                for job in group:
                    job.busy = True
            waiting = [job.due for job in jobs if not job.busy and job.due > now]
            self.clock.wait(
                self._changed,
                min(waiting) - now if waiting else None,
                idle=bool(waiting) and not self._n_steps and not self._n_freezing,
            )

    def _count_creates(self, checkpoint: Checkpoint) -> None:
        """Count what an earlier process created of a checkpoint: its hour is not over yet."""
        if checkpoint.path in self._counted:
            return
        self._counted.add(checkpoint.path)
        states = [shard.state for shard in list(checkpoint.shards.values())]
        creates, now = self._creates.setdefault(checkpoint.spec.account, []), self.clock.monotonic()
        creates += [now - age for age in creates_of(states, self.clock.now())]
        creates.sort()
        del creates[:-MAX_CREATES_PER_HOUR]

    def _may_create(self, job: Job, now: float) -> bool:
        """Count a create of the account that begins now, or have the job wait for its hour."""
        account = job.checkpoint.spec.account
        due = self._create_due.get(account, now)
        if due > now:
            job.due = due
            job.note = f"the service asks for no further batch; again in {due - now:.0f} s"
            return False
        creates = self._creates.setdefault(account, [])
        per_hour = job.limits.max_creates_per_hour
        wait = until_create(creates, now, per_hour)
        if wait:
            job.due = now + wait
            job.note = f"{per_hour:,} batches were created within an hour; again in {wait:.0f} s"
            return False
        creates.append(now)
        del creates[:-MAX_CREATES_PER_HOUR]  # no hour has more
        return True

    def _step(self, jobs: list[Job], reader: Executor) -> None:
        """Take the next step of a job, or have several live ones looked at together."""
        with self._changed:
            before = [job.state for job in jobs]
            # A control thread that failed leaves steps behind that are not to be taken any more.
            submissions = [job.submission if job.error is None else None for job in jobs]
            for job, used in zip(jobs, submissions, strict=True):
                job.used = used
            around = self._around(jobs[0], reader)
        watched = [(job, how) for job, how in zip(jobs, submissions, strict=True) if how]
        if len(watched) > 1:
            outcomes = glance(watched, self.clock)
        else:
            outcomes = {id(job): attempt(job, how, around, self.clock) for job, how in watched}
        with self._changed:
            self._n_steps -= 1
            for job, state, how in zip(jobs, before, submissions, strict=True):
                self._end_step(job, state, how, outcomes.get(id(job), AT_ONCE))
            self._changed.notify_all()

    def _around(self, job: Job, reader: Executor) -> Around:
        queue, load = self._queues.get(job.load.queue, Queue()), job.load
        # Only who goes into the queue, or may be turned away from it, asks for the others.
        asks = isinstance(job.state, Planned | Uploaded | Ended)
        jobs = list(self._jobs.values()) if asks else []
        others = [
            other
            for other in jobs
            if other is not job and other.load.queue == load.queue and is_in_queue(other)
        ]
        ours: dict[Path, set[int]] = {other.checkpoint.path: set() for other in jobs}
        for other in (job, *others):
            ours.setdefault(other.checkpoint.path, set()).add(other.number)
        room = queue.room(job.limits.max_enqueued_tokens)
        return Around(
            is_too_large=is_too_large(job, queue),
            fits=queue.is_stated and load.n_tokens <= (queue.room(None) or 0),
            alone=not any(isinstance(other.state, Creating | Live) for other in others),
            room=None if room is None else room - sum(other.load.n_tokens for other in others),
            ours=ours,
            ledger=self._ledger(job.checkpoint.path.parent),
            reader=reader,
        )

    def _ledger(self, root: Path) -> Ledger:
        if root not in self._ledgers:
            self._ledgers[root] = Ledger(root, Storage(), self.clock)
        return self._ledgers[root]

    def _end_step(
        self,
        job: Job,
        before: State,
        submission: Submission | None,
        outcome: "Next | BaseException",
    ) -> None:
        job.busy = False
        delay, note = 0.0, ""
        match outcome:
            case Unavailable() as reason:
                job.tries += 1
                delay = retry_delay(job.tries, retry_after=reason.retry_after)
                note = f"{reason}; again in {delay:.0f} s"
                # Once for each spell; bars have the note as long as it lasts.
                level = logging.WARNING if job.tries == 1 else logging.INFO
                _log.log(level, "shard %s: %s", job.number, note)
                provider = submission.provider if submission else None
                if job.tries >= _UNREACHED_TRIES and provider and not provider.reached:
                    job.error = job.error or ProviderError(
                        f"Nothing answers at {provider.account.base_url}: {reason}. Nothing was "
                        "sent. Check base_url and the connection, and run the call again."
                    )
            case BaseException() as reason:
                job.error = job.error or reason
            case delay, note:
                job.tries = 0
        try:
            self._learn(job, before)
        except BaseException as reason:  # noqa: BLE001 - raised again in the thread that waits
            job.error = job.error or reason
        job.note = note
        job.due = self.clock.monotonic() + delay
        if outcome is CROWDED:  # nor is there room for the others
            for other in self._jobs.values():
                if isinstance(other.state, Planned) and other.load.queue == job.load.queue:
                    other.due = max(other.due, job.due)
        if type(job.state) is not type(before):
            job.since = None
        self._drop_if_idle(job)

    def _learn(self, job: Job, before: State) -> None:
        """What a step tells of the job's account and queue."""
        account = job.checkpoint.spec.account
        self._create_due[account] = max(self._create_due.get(account, 0.0), job.create_due)
        queue = self._queues.get(job.load.queue, Queue())
        match before, job.state:
            case Ended() | Uploaded(), Planned() | Dropped() if job.refusals:
                n_live = sum(
                    other.load.n_tokens
                    for other in self._jobs.values()
                    if other.load.queue == job.load.queue
                    and isinstance(other.state, Creating | Live)
                )
                messages, job.refusals = job.refusals, []
                queue = queue.refused(messages, n_live=n_live, n_shard=job.load.n_tokens)
                if isinstance(job.state, Dropped):
                    queue = queue.too_large(job.load.n_tokens)
            case Live(), Ended(batch=batch) if not was_turned_away(batch):
                queue = queue.accepted()
            case Ended(), Collected():
                queue = queue.used(*job.usage)
            case _:
                return
        self._queues[job.load.queue] = queue


_default = Engine()


def default_engine() -> Engine:
    """The engine that all calls of this process share."""
    return _default


def _rest() -> None:
    _default.rest(_LAST_SECONDS)


atexit.register(_rest)


def _begin_anew() -> None:
    # The threads of the parent's engine do not exist in a forked child, and locks may be held.
    global _default  # noqa: PLW0603 - one for the process
    _default = Engine()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_anew)
