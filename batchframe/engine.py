"""The submission engine: one for the process, shared by all frames, runs and threads.

decide -> perform -> record. A control thread decides, with pure functions, which shard may take
its next step; a small pool performs the steps, one at a time for each shard; each step records
what happened in the checkpoint's log, and only that moves the shard on. Runs watch shards and wait.
Runs take turns, in the queue and in the pool; many live batches are looked at by one listing.
A shard that nobody watches any more is left alone: its batch goes on at the provider, and the next
call that needs its rows picks it up where the log has it.
"""

import logging
import os
import secrets
import threading
import time
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from hashlib import sha256
from itertools import chain
from pathlib import Path
from typing import cast

import pyarrow as pa
import pyarrow.compute as pc

from batchframe.checkpoint import Checkpoint, DownloadKind
from batchframe.client import Provider, Unavailable
from batchframe.clock import Clock, SystemClock
from batchframe.core.batches import (
    BatchSeen,
    BatchStatus,
    Collect,
    Collected,
    Create,
    CreateRefused,
    CreateStarted,
    Creating,
    Dropped,
    Ended,
    FileLost,
    FileUploaded,
    Live,
    NotFound,
    Nothing,
    Planned,
    Poll,
    Reconcile,
    ResultsCommitted,
    ResultsLost,
    State,
    TurnedAway,
    Upload,
    Uploaded,
    Uploading,
    UploadStarted,
    Usage,
    next_action,
)
from batchframe.core.dialects import Dialect
from batchframe.core.prices import Prices, priced
from batchframe.core.queues import Queue, queue_of
from batchframe.core.results import collect_results, whole_lines
from batchframe.core.retries import (
    PASSING_REFUSALS,
    poll_delay,
    queue_delay,
    retry_delay,
    was_turned_away,
)
from batchframe.core.schedule import Load, admit, until_create
from batchframe.core.shards import MAX_CREATES_PER_HOUR, Limits
from batchframe.core.spec import Account
from batchframe.errors import (
    AccountMismatchError,
    AuthenticationError,
    CheckpointCorruptError,
    ProviderError,
    UnknownOutcomeError,
)
from batchframe.ledger import Ledger
from batchframe.storage import Storage

__all__ = [
    "Engine",
    "Job",
    "Submission",
    "default_engine",
    "delete_quietly",
    "repair",
]

_log = logging.getLogger(__name__)

#: Steps that may be performed at once: enough to keep uploads, downloads and parsing overlapping.
_THREADS = 4
#: Live batches of a call from which on they are looked at by a listing, and not one by one.
_MANY_LIVE = 5
#: How much longer a run waits between looks than a look takes, so that many shards are no burden.
_LOOKS = 10.0
#: Files of a shard that the provider may lose before a person has to look.
_LOST_FILES = 3
#: Ends after which a batch that has done rows has a file of them (OpenAI, Batch guide, 2026-08).
_WITH_FILES = frozenset({BatchStatus.COMPLETED, BatchStatus.EXPIRED, BatchStatus.CANCELLED})
#: Delays between searches for a batch whose create got no answer, in seconds; the last repeats.
_SEARCH_DELAYS = (0.0, 15.0, 30.0)
#: Failed tries after which a service that never answered at all is taken for the wrong address.
_UNREACHED_TRIES = 6
#: How often a batch is turned away, while no other of ours is live, before its rows fail: then the
#: queue is probably too small for it.
_LONELY_TRIES = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Submission:
    """How a run's shards are sent: what does not change their bytes."""

    provider: Provider
    limits: Limits
    #: The batch's completion window, in the provider's words.
    completion_window: str
    #: Seconds between looks at a batch, or None to adapt.
    poll_interval: float | None
    #: Ask a person, by an error, where a batch's create got no answer and no batch is found.
    ask_if_unknown: bool = False
    #: Delete our files at the provider once their results are in the checkpoint.
    delete_remote: bool = False
    #: Rates that hold instead of the published ones.
    prices: Prices | None = None


@dataclass(slots=True, eq=False)
class Job:
    """One shard under way. Changed under the engine's lock only."""

    checkpoint: Checkpoint
    number: int
    #: The limits of the run that watched it first.
    limits: Limits
    #: Who waits for it, and how each of them would send it; the newest comes last.
    watchers: dict[Hashable, Submission] = field(default_factory=dict)
    #: A step is being performed.
    busy: bool = False
    #: When the next step is due, on the clock's monotonic scale.
    due: float = 0.0
    #: Failed tries of the present step.
    tries: int = 0
    #: When the present state was first seen here, on the monotonic scale.
    since: float | None = None
    #: Fruitless, complete searches for the batch so far, and when the first one ended.
    searches: int = 0
    searched_since: float | None = None
    #: How often the queue was full for its batch, in all and while none of ours was live in it.
    turned_away: int = 0
    turned_away_alone: int = 0
    #: What the provider said when the queue was full, until that is learned from.
    refusals: list[str] = field(default_factory=list)
    #: Uploaded files that the provider did not know afterwards.
    lost_files: int = 0
    #: When its batch was first seen to have ended and to name no result file.
    nameless_since: float | None = None
    #: A listing says that its batch ended: the batch itself is asked, before that is believed.
    is_doubtful: bool = False
    #: Its batch is too far down the listings: it is asked by itself, at its own pace.
    is_unlisted: bool = False
    #: Tokens of its answered prompts, as they were guessed and as they were.
    usage: tuple[int, int] = (0, 0)
    #: What the next step waits for, for people; "" while all goes well.
    note: str = ""
    #: What ended the work on this shard for now.
    error: BaseException | None = None
    #: What it weighs in its queue.
    load: Load = field(init=False)

    def __post_init__(self) -> None:
        checkpoint = self.checkpoint
        self.load = Load(
            queue=queue_of(checkpoint.spec.account, checkpoint.model_of(self.number)),
            n_tokens=checkpoint.shards[self.number].frozen.n_tokens,
            limits=self.limits,
            owner=next(iter(self.watchers)),
        )

    @property
    def submission(self) -> Submission | None:
        """How it is sent: as its newest watcher says, whose client is the least likely closed.

        None when nobody watches any more.
        """
        return next(reversed(self.watchers.values()), None)

    @property
    def state(self) -> State:
        """Where the shard stands."""
        return self.checkpoint.shards[self.number].state

    @property
    def is_settled(self) -> bool:
        """True when there is nothing more to wait for."""
        return self.error is not None or isinstance(self.state, Collected | Dropped)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Around:
    """What a step must know beside its shard: of its queue, and who reads results."""

    #: The shard has more tokens than the queue takes at all, and is to be cut anew.
    is_too_large: bool
    #: It has no more tokens than the provider says that the queue takes: others fill it.
    fits: bool
    #: No other shard of ours is in it.
    alone: bool
    #: Tokens that it takes beside our other shards; None where no limit is known.
    room: float | None
    #: Path and number of our other shards that are in it or on their way.
    ours: frozenset[tuple[Path, int]]
    #: What others have in it.
    ledger: Ledger
    #: Reads results, those of one shard at a time.
    reader: Executor


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
    #: What others have in the queues, by the roots of checkpoints.
    _ledgers: dict[Path, Ledger] = field(default_factory=dict)
    #: Steps that are being performed, and runs that make shards.
    _n_steps: int = 0
    _n_freezing: int = 0

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
            startable = _startable(unsettled, now, self._queues)
            return not any(id(job) in ours for group in startable for job in group) and all(
                not job.busy and (isinstance(job.state, Planned | Live) or _waits_for_its_hour(job))
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

        No further step of a job that nobody else watches begins; those that are being performed
        are waited for. An exception that ends the wait, such as Ctrl-C, changes nothing of that.
        """
        with self._changed:
            left = [job for job in self._jobs.values() if job.watchers.pop(owner, None)]
            for job in left:
                self._drop_if_idle(job)
            self._changed.notify_all()
            while any(job.busy and not job.watchers for job in left):
                self._changed.wait(0.2)

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
                return settled
            self.clock.pause(min(_LOOKS * (time.perf_counter() - began), 0.2))

    # The control thread

    def _control(self) -> None:
        with self._changed:
            pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="batchframe")
            # Results are read by one thread: more would be no faster, as Python runs one of them,
            # and each would keep the memory of a whole shard.
            reader = ThreadPoolExecutor(1, thread_name_prefix="batchframe-reader")
            try:
                self._decide(pool, reader)
            except BaseException as error:  # noqa: BLE001 - raised again in the threads that wait
                for job in self._jobs.values():
                    job.error = job.error or error
            finally:
                self._thread = None
                self._changed.notify_all()
                pool.shutdown(wait=False)
                reader.shutdown(wait=False)

    def _decide(self, pool: ThreadPoolExecutor, reader: Executor) -> None:
        while jobs := [job for job in self._jobs.values() if job.busy or not job.is_settled]:
            now = self.clock.monotonic()
            for group in _in_turn(_startable(jobs, now, self._queues), jobs):
                if self._n_steps == _THREADS:
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

    def _may_create(self, job: Job, now: float) -> bool:
        """Count a create of the account that begins now, or have the job wait for its hour."""
        creates = self._creates.setdefault(job.checkpoint.spec.account, [])
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
            around = self._around(jobs[0], reader)
        watched = [(job, how) for job, how in zip(jobs, submissions, strict=True) if how]
        if len(watched) > 1:
            outcomes = _glance(watched, self.clock)
        else:
            outcomes = {id(job): _attempt(job, how, around, self.clock) for job, how in watched}
        with self._changed:
            self._n_steps -= 1
            for job, state, how in zip(jobs, before, submissions, strict=True):
                self._end_step(job, state, how, outcomes.get(id(job), _AT_ONCE))
            self._changed.notify_all()

    def _around(self, job: Job, reader: Executor) -> _Around:
        queue, load = self._queues.get(job.load.queue, Queue()), job.load
        # Only who goes into the queue, or may be turned away from it, asks for the others.
        entering = Planned | Uploaded | Ended
        others = [
            other
            for other in (self._jobs.values() if isinstance(job.state, entering) else ())
            if other is not job and other.load.queue == load.queue and _is_in_queue(other)
        ]
        room = queue.room(job.limits.max_enqueued_tokens)
        return _Around(
            is_too_large=_is_too_large(job, queue),
            fits=queue.is_stated and load.n_tokens <= (queue.room(None) or 0),
            alone=not any(isinstance(other.state, Creating | Live) for other in others),
            room=None if room is None else room - sum(other.load.n_tokens for other in others),
            ours=frozenset((other.checkpoint.path, other.number) for other in (job, *others)),
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
        outcome: "_Next | BaseException",
    ) -> None:
        job.busy = False
        delay, note = 0.0, ""
        match outcome:
            case Unavailable() as reason:
                job.tries += 1
                delay = retry_delay(job.tries, retry_after=reason.retry_after)
                note = f"{reason}; again in {delay:.0f} s"
                _log.warning("shard %s: %s", job.number, note)
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
        if outcome is _CROWDED:  # nor is there room for the others
            for other in self._jobs.values():
                if isinstance(other.state, Planned) and other.load.queue == job.load.queue:
                    other.due = max(other.due, job.due)
        if type(job.state) is not type(before):
            job.since = None
        self._drop_if_idle(job)

    def _learn(self, job: Job, before: State) -> None:
        """What a step tells of the job's queue."""
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


def _begin_anew() -> None:
    # The threads of the parent's engine do not exist in a forked child, and locks may be held.
    global _default  # noqa: PLW0603 - one for the process
    _default = Engine()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_anew)


def _is_too_large(job: Job, queue: Queue) -> bool:
    """True for a shard that was not sent and that its queue would never take as it is."""
    room = queue.room(job.limits.max_enqueued_tokens)
    return (
        isinstance(job.state, Planned)
        and queue.limit is not None
        and room is not None
        and job.load.n_tokens > room
        and _n_requests(job) > 1
    )


def _is_in_queue(job: Job) -> bool:
    """True for a shard that is in its provider's queue, or on its way there."""
    if isinstance(job.state, Planned):
        return job.busy
    return not isinstance(job.state, Ended | Collected | Dropped)


def _startable(
    jobs: list[Job], now: float, queues: Mapping[tuple[str, ...], Queue]
) -> list[list[Job]]:
    """The jobs whose next step is due and whose queue has room; those of one step together."""
    under_way, waiting, due = [], [], []
    for job in jobs:
        is_unsent = isinstance(job.state, Planned | Uploading | Uploaded)
        if is_unsent and not job.busy and job.checkpoint.was_cancelled:
            continue
        if job.busy or not isinstance(job.state, Planned):
            under_way.append(job)
        elif _is_too_large(job, queues.get(job.load.queue, Queue())):
            due.append(job)
        else:
            waiting.append(job)
    live = [job.load for job in under_way if not isinstance(job.state, Ended)]
    admitted = admit([job.load for job in waiting], live, queues)
    candidates = [*under_way, *due, *(waiting[index] for index in admitted)]
    due = [job for job in candidates if not job.busy and job.due <= now]
    return _grouped(due, under_way)


def _grouped(due: list[Job], under_way: list[Job]) -> list[list[Job]]:
    """The jobs one by one; but live ones of one client together with all others of it, if many."""
    to_look_at = [job for job in due if _is_running(job)]
    if not to_look_at:
        return [[job] for job in due]
    live: dict[int, list[Job]] = {}
    for job in under_way:
        if not job.busy and _is_running(job) and (submission := job.submission):
            live.setdefault(id(submission.provider), []).append(job)
    many = [group for group in live.values() if len(group) >= _MANY_LIVE]
    together = {id(job) for group in many for job in group}
    asked = {id(job) for job in to_look_at}
    return [
        *([job] for job in due if id(job) not in together),
        *(group for group in many if any(id(job) in asked for job in group)),
    ]


def _waits_for_its_hour(job: Job) -> bool:
    return isinstance(job.state, Uploaded) and not job.tries


def _is_running(job: Job) -> bool:
    return isinstance(job.state, Live) and not (job.is_doubtful or job.is_unlisted)


def _in_turn(groups: list[list[Job]], jobs: list[Job]) -> Iterator[list[Job]]:
    """The groups in their order, but those first whose owner has the fewest steps under way."""
    busy = Counter(job.load.owner for job in jobs if job.busy)
    left = list(groups)
    while left:
        group = min(left, key=lambda one: busy[one[0].load.owner])
        left.remove(group)
        busy[group[0].load.owner] += 1
        yield group


# The steps: each performs one action and records what happened. They return the seconds until the
# shard's next step, and what it waits for, in words, where that is worth telling.

_Next = tuple[float, str]
_AT_ONCE: _Next = (0.0, "")
_CROWDED: _Next = (15.0, "batches of other processes fill the provider's queue")


def _attempt(
    job: Job, submission: Submission, around: _Around, clock: Clock
) -> "_Next | BaseException":
    try:
        return _perform(job, submission, around, clock)
    except BaseException as error:  # noqa: BLE001 - raised again in the thread that waits
        return error


def _perform(job: Job, submission: Submission, around: _Around, clock: Clock) -> _Next:
    if around.is_too_large:
        _cut_anew(job)
        return _AT_ONCE
    match next_action(job.state):
        case Upload(again=again):
            return _upload(job, submission, around, again=again)
        case Create(file_id=file_id):
            return _create(job, submission, around, file_id, clock)
        case Reconcile() as search:
            return _reconcile(job, submission, search, clock)
        case Poll(batch_id=batch_id):
            return _poll(job, submission, batch_id, clock)
        case Collect(batch=batch):
            if was_turned_away(batch):
                messages = [error.message for error in batch.errors]
                turned_away = _turned_away(job, submission, around, batch.input_file_id, messages)
                if turned_away is not None:
                    return turned_away
            return _collect(job, submission, batch, around.reader, clock)
        case Nothing():
            return _AT_ONCE


def _upload(job: Job, submission: Submission, around: _Around, *, again: bool) -> _Next:
    frozen = job.checkpoint.shards[job.number].frozen
    if not again and not _enter(job, submission, around):
        return _CROWDED
    fingerprint = job.checkpoint.spec.fingerprint
    name = f"bf1-{fingerprint[:8]}-{job.number:05d}-{frozen.sha256[:16]}.jsonl"
    with job.checkpoint.input_file(job.number) as file:
        file_id = submission.provider.upload(file, name, frozen.n_bytes)
    job.checkpoint.commit(job.number, FileUploaded(file_id=file_id))
    return _AT_ONCE


def _enter(job: Job, submission: Submission, around: _Around) -> bool:
    """Record that the shard goes into its queue, if others leave it room there."""

    def commit() -> None:
        job.checkpoint.commit(job.number, UploadStarted())

    if around.room is None:
        commit()
        return True
    return around.ledger.put(
        job.load.n_tokens,
        queue=job.load.queue,
        room=around.room,
        ours=around.ours,
        provider=submission.provider,
        commit=commit,
    )


def _create(job: Job, submission: Submission, around: _Around, file_id: str, clock: Clock) -> _Next:
    checkpoint = job.checkpoint
    # As the lines have it: whoever wrote them may have taken the service for another.
    dialect = submission.provider.dialect
    url = checkpoint.url_of(job.number) or dialect.url(checkpoint.spec.endpoint)
    token = secrets.token_hex(16)
    checkpoint.commit(job.number, CreateStarted(token=token, at=clock.now()))
    outcome = submission.provider.create(
        file_id,
        endpoint=url,
        window=submission.completion_window,
        metadata={
            "batchframe": "1",
            "checkpoint": checkpoint.spec.fingerprint,
            "shard": str(job.number),
            "token": token,
        },
    )
    match outcome:
        case BatchSeen():
            checkpoint.commit(job.number, outcome)
            return poll_delay(0.0, submission.poll_interval), ""
        case CreateRefused():
            checkpoint.commit(job.number, outcome)
            if outcome.code != "token_limit_exceeded":
                return _refused(job, submission, outcome, clock)
            turned_away = _turned_away(job, submission, around, file_id, [outcome.message])
            if turned_away is None:
                raise ProviderError(
                    f"One row by itself was refused {_LONELY_TRIES + 1} times: {outcome.code}, "
                    f"{outcome.message!r}. Nothing was billed. Either it is longer than the queue, "
                    "and must be shortened, or others fill the queue: then run the same call "
                    "again later."
                )
            return turned_away
        case None:
            _log.warning("shard %s: the create got no answer; looking for its batch", job.number)
            job.searches, job.searched_since = 0, None
            return _AT_ONCE


def _refused(job: Job, submission: Submission, refusal: CreateRefused, clock: Clock) -> _Next:
    if not refusal.is_file_unknown:
        raise _refusal(refusal)
    # A file that was just uploaded may not be visible yet (bespokelabs curator issue 116, 2024);
    # one that stays unknown is gone, and no create for it is under way.
    if _age(job, clock) <= submission.limits.reconcile_seconds:
        raise _refusal(refusal)
    job.lost_files += 1
    if job.lost_files > _LOST_FILES:
        raise ProviderError(
            f"The provider took {job.lost_files} files, and knows none of them: "
            f"{refusal.message!r}. Nothing was billed. Check that the key may use files and "
            "batches of the same project."
        )
    if isinstance(job.state, Uploaded):
        delete_quietly(submission.provider, job.state.file_id)
    job.checkpoint.commit(job.number, FileLost())
    _log.warning("shard %s: the provider lost its file, which is uploaded again", job.number)
    return _AT_ONCE


def _refusal(refusal: CreateRefused) -> Exception:
    message = f"The batch was refused: {refusal.code}, {refusal.message!r}. Nothing was billed."
    if refusal.code in {"http_401", "http_403", "invalid_api_key"}:
        return AuthenticationError(f"{message} Set a valid key and run the same call again.")
    if refusal.code == "insufficient_quota":
        return ProviderError(f"{message} Add credit to the account and run the same call again.")
    # What passes by itself is waited for; anything else will not change.
    if refusal.is_file_unknown or refusal.code in PASSING_REFUSALS:
        return Unavailable(message)
    return ProviderError(f"{message} Change the call and run it again.")


def _reconcile(job: Job, submission: Submission, search: Reconcile, clock: Clock) -> _Next:
    provider = submission.provider
    found = provider.find(file_id=search.file_id, token=search.token, since=search.since)
    if found:
        # Of several the oldest that came to something: one that failed has no answers to lose.
        came_to_nothing = {BatchStatus.FAILED, BatchStatus.EXPIRED, BatchStatus.CANCELLED}
        found.sort(key=lambda batch: batch.status in came_to_nothing)
        for extra in found[1:]:
            _log.warning(
                "shard %s: batch %s reads the same file as %s; it is cancelled if it still runs, "
                "and the %s requests that it has done are billed twice",
                job.number,
                extra.batch_id,
                found[0].batch_id,
                extra.n_done,
            )
            if not extra.status.is_final:
                with suppress(ProviderError):  # it has ended in this moment
                    provider.cancel(extra.batch_id)
        _check_named(job, submission, found[0], clock)
        job.checkpoint.commit(job.number, found[0])
        return _AT_ONCE
    now = clock.monotonic()
    if job.searched_since is None:
        job.searched_since = now
    job.searches += 1
    grace = submission.limits.reconcile_seconds
    left = job.searched_since + grace - now
    if left > 0:
        note = (
            f"looking for a batch whose create got no answer: {grace - left:.0f} of {grace:.0f} s"
        )
        return min(left, _SEARCH_DELAYS[min(job.searches, len(_SEARCH_DELAYS) - 1)]), note
    job.searches, job.searched_since = 0, None
    if submission.ask_if_unknown:
        raise UnknownOutcomeError(
            f"The create of a batch for file {search.file_id} got no answer at "
            f"{datetime.fromtimestamp(search.since, UTC):%Y-%m-%d %H:%M} UTC, and in {grace:.0f} "
            f"seconds of listing no batch was found. Its {_n_requests(job)} rows were not sent "
            "again. Look at the batches on the provider's page; the same call with "
            'on_unknown="resend" sends them again if it finds none.'
        )
    # Deleting the file is the fence: a create that is still on its way then finds no input.
    provider.delete_file(search.file_id)
    job.checkpoint.commit(job.number, NotFound())
    return _AT_ONCE


def _n_requests(job: Job) -> int:
    return job.checkpoint.shards[job.number].frozen.n_requests


def _is_too_small(job: Job) -> bool:
    """True when the queue had no room even while it held nothing of ours, again and again."""
    job.turned_away_alone += 1
    return job.turned_away_alone > _LONELY_TRIES


def _cut_anew(job: Job) -> None:
    """Give up a shard that is too large for its queue: its rows go into smaller ones."""
    _log.warning(
        "shard %s: its %s requests are more than the provider's queue takes, and go into smaller "
        "batches",
        job.number,
        _n_requests(job),
    )
    job.checkpoint.drop(job.number, is_unwanted=False)


def _turned_away(
    job: Job, submission: Submission, around: _Around, file_id: str, messages: list[str]
) -> _Next | None:
    """The queue was full, and nothing ran: not yet is not no, so it costs no attempt.

    None, and nothing done, for one request that a queue never takes that holds nothing of ours.
    """
    is_too_small = around.alone and _is_too_small(job) and not around.fits
    if is_too_small and _n_requests(job) == 1:
        return None
    job.refusals = messages
    job.checkpoint.commit(job.number, TurnedAway())
    delete_quietly(submission.provider, file_id)
    if is_too_small:
        _cut_anew(job)
        return _AT_ONCE
    job.turned_away += 1
    delay = queue_delay(job.turned_away)
    note = f"the provider's queue is full; again in {delay:.0f} s"
    _log.warning("shard %s: %s (%s)", job.number, note, messages[0])
    return delay, note


def delete_quietly(provider: Provider, file_id: str | None) -> None:
    """Delete a file of ours, where that is only a matter of tidiness."""
    if file_id:
        with suppress(Unavailable, ProviderError):
            provider.delete_file(file_id)


def _glance(
    watched: list[tuple[Job, Submission]], clock: Clock
) -> "Mapping[int, _Next | BaseException]":
    """Look at live batches of one client by a listing. Returns the outcomes by the jobs' ids."""
    _, submission = watched[0]
    try:
        seen = submission.provider.glance({_batch_of(job).batch_id for job, _ in watched})
        return {
            id(job): _glanced_at(job, how, seen.get(_batch_of(job).batch_id), clock)
            for job, how in watched
        }
    except BaseException as error:  # noqa: BLE001 - raised again in the threads that wait
        return dict.fromkeys((id(job) for job, _ in watched), error)


def _glanced_at(job: Job, submission: Submission, seen: BatchSeen | None, clock: Clock) -> _Next:
    if seen is None:
        job.is_unlisted = True
        return max(0.0, job.due - clock.monotonic()), ""
    if seen.status.is_final:
        job.is_doubtful = True
        return _AT_ONCE
    job.checkpoint.observe(job.number, seen)
    return poll_delay(_age(job, clock), submission.poll_interval), ""


def _batch_of(job: Job) -> BatchSeen:
    return cast("Live", job.state).batch


def _age(job: Job, clock: Clock) -> float:
    """Seconds for which the present state of a job was seen here."""
    now = clock.monotonic()
    if job.since is None:
        job.since = now
    return now - job.since


def _poll(job: Job, submission: Submission, batch_id: str, clock: Clock) -> _Next:
    age = _age(job, clock)
    try:
        seen = submission.provider.retrieve(batch_id)
    except AccountMismatchError as error:
        # A batch that was just made may not be visible yet; an older one is another's.
        made = job.state.batch.created_at if isinstance(job.state, Live) else 0.0
        if clock.now() - made < submission.limits.reconcile_seconds:
            raise Unavailable(f"the provider does not know the batch {batch_id} yet") from error
        raise
    _check_named(job, submission, seen, clock)
    job.is_doubtful = False
    if seen.status.is_final:
        job.checkpoint.commit(job.number, seen)
        return _AT_ONCE
    job.checkpoint.observe(job.number, seen)
    return poll_delay(age, submission.poll_interval), ""


def _check_named(job: Job, submission: Submission, seen: BatchSeen, clock: Clock) -> None:
    """Raise Unavailable for a batch that has done rows, has ended, and names no file of theirs yet.

    To believe it would take what is paid for as missing, or send it again as expired.
    """
    has_files = seen.output_file_id is not None or seen.error_file_id is not None
    if has_files or not seen.n_done or seen.status not in _WITH_FILES:
        return
    now = clock.monotonic()
    if job.nameless_since is None:
        job.nameless_since = now
    if now - job.nameless_since < submission.limits.reconcile_seconds:
        raise Unavailable(f"the batch {seen.batch_id} has ended and names no result file yet")


def _collect(
    job: Job, submission: Submission, batch: BatchSeen, reader: Executor, clock: Clock
) -> _Next:
    checkpoint, provider = job.checkpoint, submission.provider
    files: dict[DownloadKind, str | None] = {
        "output": batch.output_file_id,
        "error": batch.error_file_id,
    }
    digests: dict[str, str] = {}
    for kind, file_id in files.items():
        if file_id is not None:
            try:
                with checkpoint.download(job.number, kind) as target:
                    digests[kind] = provider.download(file_id, target)
            except AccountMismatchError:
                _check_gone(job, submission, batch, file_id, clock)
    at = batch.created_at or clock.now()

    def read() -> ResultsCommitted:
        table, committed = _read_downloads(
            checkpoint, job.number, batch, digests, at, provider.dialect, submission.prices
        )
        checkpoint.store_results(job.number, table, committed)
        job.usage = _guessed_and_used(checkpoint, job.number, table)
        return committed

    committed = reader.submit(read).result()
    if batch.usage is not None and batch.usage != committed.usage:
        _log.warning(
            "shard %s: the rows of %s add up to %s, the batch says %s",
            job.number,
            batch.batch_id,
            committed.usage,
            batch.usage,
        )
    if submission.delete_remote:
        for file_id in (batch.input_file_id, *files.values()):
            delete_quietly(provider, file_id)
    return _AT_ONCE


def _guessed_and_used(checkpoint: Checkpoint, number: int, table: pa.Table) -> tuple[int, int]:
    """Tokens of a shard's answered prompts, as they were guessed and as they were."""
    guessed = checkpoint.requests(number, ("n_tokens",))["n_tokens"]
    has_usage = pc.is_valid(table["input_tokens"])
    n_guessed = pc.sum(guessed.filter(has_usage)).as_py() or 0
    return n_guessed, pc.sum(table["input_tokens"]).as_py() or 0


def _check_gone(
    job: Job, submission: Submission, batch: BatchSeen, file_id: str, clock: Clock
) -> None:
    """Return only if a result file is gone for good; its rows are then `missing`."""
    submission.provider.retrieve(batch.batch_id)  # raises if it is the key that is wrong
    if _age(job, clock) < submission.limits.reconcile_seconds:
        raise Unavailable(f"the provider does not know the result file {file_id}")
    _log.warning(
        "shard %s: the provider has deleted %s, a result file of %s that was paid for; rows "
        "without a result are missing, and are sent again only with retry_failed=True",
        job.number,
        file_id,
        batch.batch_id,
    )


def _read_downloads(
    checkpoint: Checkpoint,
    number: int,
    batch: BatchSeen,
    digests: dict[str, str],
    at: float,
    dialect: Dialect,
    prices: Prices | None,
) -> tuple[pa.Table, ResultsCommitted]:
    """A shard's downloads, as they are on disk -> one result per request, with its cost."""
    kinds: tuple[DownloadKind, ...] = ("output", "error")
    requests = checkpoint.requests(number, ("row_key", "id"))
    collected = collect_results(
        requests["row_key"].to_pylist(),
        requests["id"].combine_chunks(),
        chain.from_iterable(
            whole_lines(checkpoint.downloaded(number, kind)) for kind in kinds if kind in digests
        ),
        batch_id=batch.batch_id,
        ended=batch.status.value,
        files_gone=any(
            file_id is not None and kind not in digests
            for kind, file_id in (
                ("output", batch.output_file_id),
                ("error", batch.error_file_id),
            )
        ),
        batch_errors=batch.errors,
    )
    table = priced(
        collected.table,
        model=checkpoint.model_of(number),
        at=datetime.fromtimestamp(at, UTC),
        prices=prices,
        price_list=dialect.price_list,
    )
    committed = ResultsCommitted(
        downloads=digests,
        usage=Usage(
            input_tokens=collected.input_tokens,
            cached_tokens=collected.cached_tokens,
            output_tokens=collected.output_tokens,
            reasoning_tokens=collected.reasoning_tokens,
        ),
        n_duplicate=collected.n_duplicate,
        n_foreign=collected.n_foreign,
        n_unreadable=collected.n_unreadable,
    )
    return table, committed


def repair(checkpoint: Checkpoint, clock: Clock, dialect: Dialect, prices: Prices | None) -> None:
    """Make damaged results anew from their downloads, or have them fetched again.

    Where the downloads are damaged too, the shard goes back to Ended: the provider keeps its files
    for 30 days, and nothing is sent again.
    """
    for number, shard in list(checkpoint.shards.items()):
        state = shard.state
        if not isinstance(state, Collected):
            continue
        try:
            checkpoint.results_of(number)
        except CheckpointCorruptError:
            digests = state.results.downloads
            try:
                for kind in ("output", "error"):
                    if kind in digests:
                        _check_download(checkpoint, number, kind, digests[kind])
                at = state.batch.created_at or clock.now()
                table, _ = _read_downloads(
                    checkpoint, number, state.batch, digests, at, dialect, prices
                )
                checkpoint.write_results(number, table)
                _log.warning("The damaged results of shard %s were made anew.", number)
            except CheckpointCorruptError as worse:
                checkpoint.commit(number, ResultsLost())
                _log.warning("The damaged results of shard %s are fetched again: %s", number, worse)


def _check_download(checkpoint: Checkpoint, number: int, kind: DownloadKind, expected: str) -> None:
    digest = sha256()
    for piece in checkpoint.downloaded(number, kind):
        digest.update(piece)
    if digest.hexdigest() != expected:
        raise CheckpointCorruptError(f"The {kind} file of shard {number} was changed.")
