"""The submission engine: one for the process, shared by all frames, runs and threads.

decide -> perform -> record. A control thread decides, with pure functions, which shard may take
its next step; a small pool performs the steps, one at a time for each shard; each step records
what happened in the checkpoint's log, and only that moves the shard on. Runs watch shards and wait.
A shard that nobody watches any more is left alone: its batch goes on at the provider, and the next
call that needs its rows picks it up where the log has it.
"""

import functools
import logging
import secrets
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from hashlib import sha256
from itertools import chain

import pyarrow as pa

from batchframe.checkpoint import Checkpoint, DownloadKind
from batchframe.client import Provider, Unavailable
from batchframe.clock import Clock, SystemClock
from batchframe.core.batches import (
    BatchSeen,
    Collect,
    Collected,
    Create,
    CreateRefused,
    CreateStarted,
    Ended,
    FileUploaded,
    NotFound,
    Nothing,
    Planned,
    Poll,
    Reconcile,
    ResultsCommitted,
    ResultsLost,
    State,
    Upload,
    UploadStarted,
    Usage,
    next_action,
)
from batchframe.core.prices import cost_usd
from batchframe.core.results import collect_results, split_lines
from batchframe.core.retries import RETRYABLE_CODES, poll_delay, retry_delay
from batchframe.core.schedule import Load, admit
from batchframe.core.shards import Limits
from batchframe.errors import AuthenticationError, CheckpointCorruptError, ProviderError

__all__ = ["Engine", "Job", "Submission", "default_engine", "repair"]

_log = logging.getLogger(__name__)

#: Steps that may be performed at once: enough to keep uploads, downloads and parsing overlapping.
_THREADS = 4
#: Delays between searches for a batch whose create got no answer, in seconds; the last repeats.
_SEARCH_DELAYS = (0.0, 15.0, 30.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Submission:
    """How a run's shards are sent: what does not change their bytes."""

    provider: Provider
    limits: Limits
    #: The batch's completion window, in the provider's words.
    completion_window: str
    #: Seconds between looks at a batch, or None to adapt.
    poll_interval: float | None


@dataclass(slots=True, eq=False)
class Job:
    """One shard under way. Changed under the engine's lock only."""

    checkpoint: Checkpoint
    number: int
    submission: Submission
    #: How many runs wait for it.
    watchers: int = 0
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
    #: What ended the work on this shard for now.
    error: BaseException | None = None

    @property
    def state(self) -> State:
        """Where the shard stands."""
        return self.checkpoint.shards[self.number].state

    @property
    def is_settled(self) -> bool:
        """True when there is nothing more to wait for."""
        return self.error is not None or isinstance(self.state, Collected)

    @property
    def is_idle(self) -> bool:
        """True when no step is to be taken: it is settled, or nobody waits for it."""
        return self.is_settled or self.watchers == 0

    @property
    def load(self) -> Load:
        """What the shard weighs in its queue."""
        account, spec = self.submission.provider.account, self.checkpoint.spec
        return Load(
            queue=(account.base_url, account.organization or "", account.project or "", spec.model),
            n_tokens=self.checkpoint.shards[self.number].frozen.n_tokens,
            limits=self.submission.limits,
        )


@dataclass(slots=True)
class Engine:
    """Moves watched shards from frozen to collected."""

    clock: Clock = field(default_factory=SystemClock)
    _jobs: dict[tuple[int, int], Job] = field(default_factory=dict)
    _changed: threading.Condition = field(default_factory=threading.Condition)
    _thread: threading.Thread | None = None

    def watch(self, checkpoint: Checkpoint, number: int, submission: Submission) -> Job:
        """Work on a shard until it is collected. Pair each call with `release`."""
        with self._changed:
            job = self._jobs.get((id(checkpoint), number))
            if job is None or job.error is not None:
                job = Job(checkpoint, number, submission)
                self._jobs[id(checkpoint), number] = job
            job.watchers += 1
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._control, name="batchframe-engine", daemon=True
                )
                self._thread.start()
            self._changed.notify_all()
        return job

    def release(self, jobs: Iterable[Job]) -> None:
        """Stop watching; a step that is being performed ends first."""
        with self._changed:
            for job in jobs:
                job.watchers -= 1
                while job.watchers == 0 and job.busy:
                    self._changed.wait()
                key = (id(job.checkpoint), job.number)
                if job.watchers == 0 and self._jobs.get(key) is job:
                    del self._jobs[key]
            self._changed.notify_all()

    def wait(self, jobs: Iterable[Job], *, seconds: float, look: Callable[[], None]) -> bool:
        """Wait until all jobs are settled, at most `seconds`; call `look` at each change.

        Returns True when they are settled, and raises the first error among them at once.
        """
        watched = list(jobs)
        deadline = self.clock.monotonic() + seconds
        while True:
            with self._changed:
                for job in watched:
                    if job.error is not None:
                        raise job.error
                settled = all(job.is_settled for job in watched)
                left = deadline - self.clock.monotonic()
                if not settled and left > 0:
                    # Woken at each step's end, and now and then for a signal such as Ctrl-C.
                    self._changed.wait(min(left, 0.2))
            look()
            if settled or left <= 0:
                return settled

    # The control thread

    def _control(self) -> None:
        with self._changed, ThreadPoolExecutor(_THREADS, thread_name_prefix="batchframe") as pool:
            while jobs := [job for job in self._jobs.values() if job.busy or not job.is_idle]:
                now = self.clock.monotonic()
                for job in _startable(jobs, now):
                    job.busy = True
                    pool.submit(self._step, job)
                waiting = [job.due for job in jobs if not job.busy and job.due > now]
                self.clock.wait(
                    self._changed,
                    min(waiting) - now if waiting else None,
                    idle=bool(waiting) and not any(job.busy for job in jobs),
                )
            self._thread = None

    def _step(self, job: Job) -> None:
        before = job.state
        delay, error = 0.0, None
        try:
            delay = _perform(job, self.clock)
            job.tries = 0
        except Unavailable as reason:
            job.tries += 1
            delay = retry_delay(job.tries, retry_after=reason.retry_after)
            _log.warning("shard %s: %s; again in %.0f s", job.number, reason, delay)
        except BaseException as reason:  # noqa: BLE001 - raised again in the thread that waits
            error = reason
        with self._changed:
            job.busy = False
            job.error = error
            job.due = self.clock.monotonic() + delay
            if type(job.state) is not type(before):
                job.since = None
            self._changed.notify_all()


@functools.cache
def default_engine() -> Engine:
    """The engine that all calls of this process share."""
    return Engine()


def _startable(jobs: list[Job], now: float) -> list[Job]:
    """The jobs whose next step is due and whose queue has room."""
    under_way = [job for job in jobs if job.busy or not isinstance(job.state, Planned)]
    waiting = [job for job in jobs if not job.busy and isinstance(job.state, Planned)]
    admitted = admit(
        [job.load for job in waiting],
        [job.load for job in under_way if not isinstance(job.state, Ended)],
    )
    candidates = [*under_way, *(waiting[index] for index in admitted)]
    return [job for job in candidates if not job.busy and job.due <= now]


# The steps: each performs one action and records what happened. They return the seconds until the
# shard's next step.


def _perform(job: Job, clock: Clock) -> float:
    state = job.state
    match next_action(state):
        case Upload(again=again):
            return _upload(job, again=again)
        case Create(file_id=file_id):
            return _create(job, file_id, clock)
        case Reconcile() as search:
            return _reconcile(job, search, clock)
        case Poll(batch_id=batch_id):
            return _poll(job, batch_id, clock)
        case Collect(batch=batch):
            return _collect(job, batch)
        case Nothing():
            return 0.0


def _upload(job: Job, *, again: bool) -> float:
    frozen = job.checkpoint.shards[job.number].frozen
    if not again:
        job.checkpoint.commit(job.number, UploadStarted())
    fingerprint = job.checkpoint.spec.fingerprint
    name = f"bf1-{fingerprint[:8]}-{job.number:05d}-{frozen.sha256[:16]}.jsonl"
    with job.checkpoint.input_file(job.number) as file:
        file_id = job.submission.provider.upload(file, name, frozen.n_bytes)
    job.checkpoint.commit(job.number, FileUploaded(file_id=file_id))
    return 0.0


def _create(job: Job, file_id: str, clock: Clock) -> float:
    checkpoint, submission = job.checkpoint, job.submission
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
            return poll_delay(0.0, submission.poll_interval)
        case CreateRefused():
            checkpoint.commit(job.number, outcome)
            raise _refusal(outcome)
        case None:
            _log.warning("shard %s: the create got no answer; looking for its batch", job.number)
            job.searches, job.searched_since = 0, None
            return 0.0


def _refusal(outcome: CreateRefused) -> Exception:
    message = f"The batch was refused: {outcome.code}, {outcome.message!r}. Nothing was billed."
    if outcome.code in {"http_401", "http_403", "invalid_api_key"}:
        return AuthenticationError(f"{message} Set a valid key and run the same call again.")
    # A file that was just uploaded may not be visible yet, and a full queue empties (openai's
    # guide and field reports, 2026-08); anything else will not change.
    not_visible = "cannot find file" in outcome.message.lower()
    if not_visible or outcome.code in RETRYABLE_CODES:
        return Unavailable(message)
    return ProviderError(f"{message} Change the call and run it again.")


def _reconcile(job: Job, search: Reconcile, clock: Clock) -> float:
    provider = job.submission.provider
    found = provider.find(file_id=search.file_id, token=search.token, since=search.since)
    if found:
        for extra in found[1:]:
            _log.warning(
                "shard %s: batch %s reads the same file as %s; it is cancelled, and the %s "
                "requests that it has done are billed twice",
                job.number,
                extra.batch_id,
                found[0].batch_id,
                extra.n_done,
            )
            provider.cancel(extra.batch_id)
        job.checkpoint.commit(job.number, found[0])
        return 0.0
    now = clock.monotonic()
    if job.searched_since is None:
        job.searched_since = now
    job.searches += 1
    left = job.searched_since + job.submission.limits.reconcile_seconds - now
    if left > 0:
        return min(left, _SEARCH_DELAYS[min(job.searches, len(_SEARCH_DELAYS) - 1)])
    # Deleting the file is the fence: a create that is still on its way then finds no input.
    provider.delete_file(search.file_id)
    job.checkpoint.commit(job.number, NotFound())
    job.searches, job.searched_since = 0, None
    return 0.0


def _poll(job: Job, batch_id: str, clock: Clock) -> float:
    seen = job.submission.provider.retrieve(batch_id)
    if seen.status.is_final:
        job.checkpoint.commit(job.number, seen)
        return 0.0
    job.checkpoint.observe(job.number, seen)
    now = clock.monotonic()
    if job.since is None:
        job.since = now
    return poll_delay(now - job.since, job.submission.poll_interval)


def _collect(job: Job, batch: BatchSeen) -> float:
    checkpoint, provider = job.checkpoint, job.submission.provider
    files: dict[DownloadKind, str | None] = {
        "output": batch.output_file_id,
        "error": batch.error_file_id,
    }
    digests: dict[str, str] = {}
    for kind, file_id in files.items():
        if file_id is not None:
            with checkpoint.download(job.number, kind) as target:
                digests[kind] = provider.download(file_id, target)
    table, committed = _read_downloads(checkpoint, job.number, batch, digests)
    checkpoint.store_results(job.number, table, committed)
    if batch.usage is not None and batch.usage != committed.usage:
        _log.warning(
            "shard %s: the rows of %s add up to %s, the batch says %s",
            job.number,
            batch.batch_id,
            committed.usage,
            batch.usage,
        )
    return 0.0


def _read_downloads(
    checkpoint: Checkpoint, number: int, batch: BatchSeen, digests: dict[str, str]
) -> tuple[pa.Table, ResultsCommitted]:
    """A shard's downloads, as they are on disk -> one result per request, with its cost."""
    kinds: tuple[DownloadKind, ...] = ("output", "error")
    requests = checkpoint.requests(number)
    collected = collect_results(
        requests["row_key"].to_pylist(),
        requests["id"].combine_chunks(),
        chain.from_iterable(
            split_lines(checkpoint.downloaded(number, kind)) for kind in kinds if kind in digests
        ),
        batch_id=batch.batch_id,
        ended=batch.status.value,
        batch_errors=batch.errors,
    )
    table = collected.table
    costs = cost_usd(
        table, model=checkpoint.spec.model, at=datetime.fromtimestamp(batch.created_at, UTC)
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
    column = table.schema.get_field_index("cost_usd")
    return table.set_column(column, "cost_usd", costs), committed


def repair(checkpoint: Checkpoint) -> None:
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
                table, _ = _read_downloads(checkpoint, number, state.batch, digests)
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
