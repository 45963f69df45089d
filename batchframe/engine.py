"""The submission engine: one for the process, shared by all frames, runs and threads.

decide -> perform -> record. A control thread decides, with pure functions, which shard may take
its next step; a small pool performs the steps, one at a time for each shard; each step records
what happened in the checkpoint's log, and only that moves the shard on. Runs watch shards and wait.
A shard that nobody watches any more is left alone: its batch goes on at the provider, and the next
call that needs its rows picks it up where the log has it.
"""

import logging
import os
import secrets
import threading
from collections.abc import Callable, Hashable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from hashlib import sha256
from itertools import chain

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
    UploadStarted,
    Usage,
    next_action,
)
from batchframe.core.prices import Prices, priced
from batchframe.core.queues import Queue
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
#: Files of a shard that the provider may lose before a person has to look.
_LOST_FILES = 3
#: Results are read by one thread at a time: more would be no faster, as Python runs one of them,
#: and each holds the answers of a whole shard.
_one_at_a_time = threading.Lock()
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
    #: Uploaded files that the provider did not know afterwards.
    lost_files: int = 0
    #: No other shard of ours is in its queue.
    alone: bool = False
    #: It has more tokens than its queue takes at all, and is to be cut anew.
    is_too_large: bool = False
    #: It has no more tokens than the provider says that its queue takes: others fill it.
    fits: bool = False
    #: Tokens of its answered prompts, as they were guessed and as they were.
    usage: tuple[int, int] = (0, 0)
    #: What the next step waits for, for people; "" while all goes well.
    note: str = ""
    #: What ended the work on this shard for now.
    error: BaseException | None = None

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

    @property
    def queue(self) -> tuple[str, ...]:
        """Who pays, and for which model."""
        return _queue_of(self.checkpoint.spec.account, self.checkpoint.model_of(self.number))

    @property
    def load(self) -> Load:
        """What the shard weighs in its queue."""
        return Load(
            queue=self.queue,
            n_tokens=self.checkpoint.shards[self.number].frozen.n_tokens,
            limits=self.limits,
        )


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

    def room(self, account: Account, model: str, given: int | None) -> float | None:
        """Guessed tokens that fit into the empty queue; None where no limit is known."""
        with self._changed:
            return self._queues.get(_queue_of(account, model), Queue()).room(given)

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

    def is_watched(self, checkpoint: Checkpoint, number: int) -> bool:
        """True while anybody waits for the shard, or a step of it is being performed."""
        with self._changed:
            return (id(checkpoint), number) in self._jobs

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
            before = list(jobs)
            look()
            if left <= 0 or (settled and jobs == before):
                return settled

    # The control thread

    def _control(self) -> None:
        with self._changed:
            pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="batchframe")
            try:
                self._decide(pool)
            except BaseException as error:  # noqa: BLE001 - raised again in the threads that wait
                for job in self._jobs.values():
                    job.error = job.error or error
            finally:
                self._thread = None
                self._changed.notify_all()
                pool.shutdown(wait=False)

    def _decide(self, pool: ThreadPoolExecutor) -> None:
        while jobs := [job for job in self._jobs.values() if job.busy or not job.is_settled]:
            now = self.clock.monotonic()
            for job in jobs:
                queue = self._queues.get(job.queue, Queue())
                job.is_too_large = _is_too_large(job, queue)
                job.fits = queue.is_stated and job.load.n_tokens <= (queue.room(None) or 0)
            for job in _startable(jobs, now, self._queues):
                if isinstance(job.state, Uploaded) and not self._may_create(job, now):
                    continue
                job.alone = not any(
                    other is not job
                    and other.queue == job.queue
                    and isinstance(other.state, Creating | Live)
                    for other in jobs
                )
                pool.submit(self._step, job)
                job.busy = True
            waiting = [job.due for job in jobs if not job.busy and job.due > now]
            self.clock.wait(
                self._changed,
                min(waiting) - now if waiting else None,
                idle=bool(waiting) and not any(job.busy for job in jobs),
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

    def _step(self, job: Job) -> None:
        with self._changed:
            # A control thread that failed leaves steps behind that are not to be taken any more.
            submission = job.submission if job.error is None else None
            before, error = job.state, job.error
        delay, note = 0.0, ""
        try:
            if submission is not None:
                delay, note = _perform(job, submission, self.clock)
            job.tries = 0
        except Unavailable as reason:
            job.tries += 1
            delay = retry_delay(job.tries, retry_after=reason.retry_after)
            note = f"{reason}; again in {delay:.0f} s"
            _log.warning("shard %s: %s", job.number, note)
            if job.tries >= _UNREACHED_TRIES and submission and not submission.provider.reached:
                error = ProviderError(
                    f"Nothing answers at {submission.provider.account.base_url}: {reason}. "
                    "Nothing was sent. Check base_url and the connection, and run the call again."
                )
        except BaseException as reason:  # noqa: BLE001 - raised again in the thread that waits
            error = reason
        with self._changed:
            job.busy = False
            try:
                self._learn(job, before)
            except BaseException as reason:  # noqa: BLE001 - as above
                error = error or reason
            job.error = error
            job.note = note
            job.due = self.clock.monotonic() + delay
            if type(job.state) is not type(before):
                job.since = None
            self._drop_if_idle(job)
            self._changed.notify_all()

    def _learn(self, job: Job, before: State) -> None:
        """What a step tells of the job's queue."""
        queue = self._queues.get(job.queue, Queue())
        match before, job.state:
            case Ended(batch=batch), Planned() | Dropped():
                n_live = sum(
                    other.load.n_tokens
                    for other in self._jobs.values()
                    if other.queue == job.queue and isinstance(other.state, Creating | Live)
                )
                messages = [error.message for error in batch.errors]
                queue = queue.refused(messages, n_live=n_live, n_shard=job.load.n_tokens)
                if isinstance(job.state, Dropped):
                    queue = queue.too_large(job.load.n_tokens)
            case Live(), Ended(batch=batch) if not was_turned_away(batch):
                queue = queue.accepted()
            case Ended(), Collected():
                queue = queue.used(*job.usage)
            case _:
                return
        self._queues[job.queue] = queue


_default = Engine()


def default_engine() -> Engine:
    """The engine that all calls of this process share."""
    return _default


def _begin_anew() -> None:
    # The threads of the parent's engine do not exist in a forked child, and locks may be held.
    global _default, _one_at_a_time
    _default, _one_at_a_time = Engine(), threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_anew)


def _queue_of(account: Account, model: str) -> tuple[str, ...]:
    return (account.base_url, account.organization or "", account.project or "", model)


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


def _startable(jobs: list[Job], now: float, queues: Mapping[tuple[str, ...], Queue]) -> list[Job]:
    """The jobs whose next step is due and whose queue has room."""
    under_way = [job for job in jobs if job.busy or not isinstance(job.state, Planned)]
    too_large = [job for job in jobs if not job.busy and job.is_too_large]
    waiting = [
        job
        for job in jobs
        if not job.busy and isinstance(job.state, Planned) and not job.is_too_large
    ]
    admitted = admit(
        [job.load for job in waiting],
        [job.load for job in under_way if not isinstance(job.state, Ended)],
        queues,
    )
    candidates = [*under_way, *too_large, *(waiting[index] for index in admitted)]
    return [job for job in candidates if not job.busy and job.due <= now]


# The steps: each performs one action and records what happened. They return the seconds until the
# shard's next step, and what it waits for, in words, where that is worth telling.

_Next = tuple[float, str]
_AT_ONCE: _Next = (0.0, "")


def _perform(job: Job, submission: Submission, clock: Clock) -> _Next:
    if job.is_too_large:
        _cut_anew(job)
        return _AT_ONCE
    match next_action(job.state):
        case Upload(again=again):
            return _upload(job, submission, again=again)
        case Create(file_id=file_id):
            return _create(job, submission, file_id, clock)
        case Reconcile() as search:
            return _reconcile(job, submission, search, clock)
        case Poll(batch_id=batch_id):
            return _poll(job, submission, batch_id, clock)
        case Collect(batch=batch):
            if was_turned_away(batch):
                is_too_small = job.alone and _is_too_small(job)
                if job.fits or not is_too_small or _n_requests(job) > 1:
                    cut_anew = is_too_small and not job.fits
                    return _turned_away(job, submission, batch, cut_anew=cut_anew)
            return _collect(job, submission, batch, clock)
        case Nothing():
            return _AT_ONCE


def _upload(job: Job, submission: Submission, *, again: bool) -> _Next:
    frozen = job.checkpoint.shards[job.number].frozen
    if not again:
        job.checkpoint.commit(job.number, UploadStarted())
    fingerprint = job.checkpoint.spec.fingerprint
    name = f"bf1-{fingerprint[:8]}-{job.number:05d}-{frozen.sha256[:16]}.jsonl"
    with job.checkpoint.input_file(job.number) as file:
        file_id = submission.provider.upload(file, name, frozen.n_bytes)
    job.checkpoint.commit(job.number, FileUploaded(file_id=file_id))
    return _AT_ONCE


def _create(job: Job, submission: Submission, file_id: str, clock: Clock) -> _Next:
    checkpoint = job.checkpoint
    token = secrets.token_hex(16)
    checkpoint.commit(job.number, CreateStarted(token=token, at=clock.now()))
    outcome = submission.provider.create(
        file_id,
        endpoint=checkpoint.spec.endpoint,
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
            return _refused(job, submission, outcome, clock)
        case None:
            _log.warning("shard %s: the create got no answer; looking for its batch", job.number)
            job.searches, job.searched_since = 0, None
            return _AT_ONCE


def _refused(job: Job, submission: Submission, refusal: CreateRefused, clock: Clock) -> _Next:
    if not refusal.is_file_unknown:
        raise _refusal(refusal)
    # A file that was just uploaded may not be visible yet (bespokelabs curator issue 116, 2024);
    # one that stays unknown is gone, and no create for it is under way.
    now = clock.monotonic()
    if job.since is None:
        job.since = now
    if now - job.since <= submission.limits.reconcile_seconds:
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
    job.checkpoint.drop(job.number)


def _turned_away(job: Job, submission: Submission, batch: BatchSeen, *, cut_anew: bool) -> _Next:
    """The queue was full, and nothing ran: not yet is not no, so it costs no attempt."""
    job.checkpoint.commit(job.number, TurnedAway())
    delete_quietly(submission.provider, batch.input_file_id)
    if cut_anew:
        _cut_anew(job)
        return _AT_ONCE
    job.turned_away += 1
    delay = queue_delay(job.turned_away)
    note = f"the provider's queue is full; again in {delay:.0f} s"
    _log.warning("shard %s: %s (%s)", job.number, note, batch.errors[0].message)
    return delay, note


def delete_quietly(provider: Provider, file_id: str | None) -> None:
    """Delete a file of ours, where that is only a matter of tidiness."""
    if file_id:
        with suppress(Unavailable, ProviderError):
            provider.delete_file(file_id)


def _poll(job: Job, submission: Submission, batch_id: str, clock: Clock) -> _Next:
    now = clock.monotonic()
    if job.since is None:
        job.since = now
    try:
        seen = submission.provider.retrieve(batch_id)
    except AccountMismatchError as error:
        # A batch that was just made may not be visible yet; an older one is another's.
        made = job.state.batch.created_at if isinstance(job.state, Live) else 0.0
        if clock.now() - made < submission.limits.reconcile_seconds:
            raise Unavailable(f"the provider does not know the batch {batch_id} yet") from error
        raise
    if seen.status.is_final:
        job.checkpoint.commit(job.number, seen)
        return _AT_ONCE
    job.checkpoint.observe(job.number, seen)
    return poll_delay(now - job.since, submission.poll_interval), ""


def _collect(job: Job, submission: Submission, batch: BatchSeen, clock: Clock) -> _Next:
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
    with _one_at_a_time:
        table, committed = _read_downloads(
            checkpoint, job.number, batch, digests, at, submission.prices
        )
        checkpoint.store_results(job.number, table, committed)
    job.usage = _guessed_and_used(checkpoint, job.number, table)
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
    now = clock.monotonic()
    if job.since is None:
        job.since = now
    if now - job.since < submission.limits.reconcile_seconds:
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
    prices: Prices | None = None,
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


def repair(checkpoint: Checkpoint, clock: Clock) -> None:
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
        except CheckpointCorruptError as damage:
            digests = state.results.downloads
            try:
                for kind in ("output", "error"):
                    if kind in digests:
                        _check_download(checkpoint, number, kind, digests[kind])
                at = state.batch.created_at or clock.now()
                table, _ = _read_downloads(checkpoint, number, state.batch, digests, at)
                checkpoint.write_results(number, table)
                _log.warning("%s They were made anew from the downloads.", damage)
            except CheckpointCorruptError as worse:
                checkpoint.commit(number, ResultsLost())
                _log.warning("%s %s They are fetched again.", damage, worse)


def _check_download(checkpoint: Checkpoint, number: int, kind: DownloadKind, expected: str) -> None:
    digest = sha256()
    for piece in checkpoint.downloaded(number, kind):
        digest.update(piece)
    if digest.hexdigest() != expected:
        raise CheckpointCorruptError(f"The {kind} file of shard {number} was changed.")
