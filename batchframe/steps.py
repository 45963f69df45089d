"""The steps: each performs one action on a shard and records what happened.

They return the seconds until the shard's next step, and what it waits for, in words, where that is
worth telling. `Unavailable` says that the provider gave no answer: the engine takes the step again.
"""

import logging
import secrets
from collections.abc import Collection, Mapping
from concurrent.futures import Executor
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import cast

from batchframe.client import Unavailable, delete_quietly
from batchframe.clock import Clock
from batchframe.collecting import collect
from batchframe.core.batches import (
    BatchSeen,
    BatchStatus,
    Collect,
    Create,
    CreateRefused,
    CreateStarted,
    FileLost,
    FileUploaded,
    Live,
    NotFound,
    Nothing,
    Poll,
    Reconcile,
    TurnedAway,
    Upload,
    Uploaded,
    UploadStarted,
    next_action,
)
from batchframe.core.retries import PASSING_REFUSALS, queue_delay, was_turned_away
from batchframe.errors import (
    AccountMismatchError,
    AuthenticationError,
    ProviderError,
    UnknownOutcomeError,
)
from batchframe.jobs import Job, Submission
from batchframe.ledger import Ledger

__all__ = ["AT_ONCE", "CROWDED", "Around", "Next", "attempt", "glance"]

_log = logging.getLogger(__name__)

#: Files of a shard that the provider may lose before a person has to look.
_LOST_FILES = 3
#: Ends after which a batch that has done rows has a file of them (OpenAI, Batch guide, 2026-08).
_WITH_FILES = frozenset({BatchStatus.COMPLETED, BatchStatus.EXPIRED, BatchStatus.CANCELLED})
#: Delays between searches for a batch whose create got no answer, in seconds; the last repeats.
_SEARCH_DELAYS = (0.0, 15.0, 30.0)
#: How often a batch is turned away, while no other of ours is live, before its rows fail: then the
#: queue is probably too small for it.
_LONELY_TRIES = 3

#: Seconds until the next step, and what it waits for.
Next = tuple[float, str]
AT_ONCE: Next = (0.0, "")
CROWDED: Next = (15.0, "batches of other processes fill the provider's queue")


@dataclass(frozen=True, slots=True, kw_only=True)
class Around:
    """What a step must know beside its shard: of its queue, and who reads results."""

    #: The shard has more tokens than the queue takes at all, and is to be cut anew.
    is_too_large: bool
    #: It has no more tokens than the provider says that the queue takes: others fill it.
    fits: bool
    #: No other shard of ours is in it.
    alone: bool
    #: Tokens that it takes beside our other shards; None where no limit is known.
    room: float | None
    #: The checkpoints that this process works on: for each path, the numbers of those shards that
    #: are in it or on their way.
    ours: Mapping[Path, Collection[int]]
    #: What others have in it.
    ledger: Ledger
    #: Reads results, those of one shard at a time.
    reader: Executor


def attempt(
    job: Job, submission: Submission, around: Around, clock: Clock
) -> "Next | BaseException":
    try:
        return _perform(job, submission, around, clock)
    except BaseException as error:  # noqa: BLE001 - raised again in the thread that waits
        return error


def _perform(job: Job, submission: Submission, around: Around, clock: Clock) -> Next:
    if around.is_too_large:
        _cut_anew(job)
        return AT_ONCE
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
            collect(job, submission, batch, around.reader, clock)
            return AT_ONCE
        case Nothing():
            return AT_ONCE


def _upload(job: Job, submission: Submission, around: Around, *, again: bool) -> Next:
    frozen = job.checkpoint.shards[job.number].frozen
    if not again and not _enter(job, submission, around):
        return CROWDED
    fingerprint = job.checkpoint.spec.fingerprint
    name = f"bf1-{fingerprint[:8]}-{job.number:05d}-{frozen.sha256[:16]}.jsonl"
    with job.checkpoint.input_file(job.number) as file:
        file_id = submission.provider.upload(file, name, frozen.n_bytes)
    job.checkpoint.commit(job.number, FileUploaded(file_id=file_id))
    return AT_ONCE


def _enter(job: Job, submission: Submission, around: Around) -> bool:
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


def _create(job: Job, submission: Submission, around: Around, file_id: str, clock: Clock) -> Next:
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
            return job.poll_delay(0.0), ""
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
        case Unavailable():
            job.create_due = clock.monotonic() + (outcome.retry_after or 0.0)
            _log.warning(
                "shard %s: the create got no answer (%s); looking for its batch",
                job.number,
                outcome,
            )
            job.searches, job.searched_since = 0, None
            return AT_ONCE


def _refused(job: Job, submission: Submission, refusal: CreateRefused, clock: Clock) -> Next:
    if not refusal.is_file_unknown:
        raise _refusal(refusal)
    # A file that was just uploaded may not be visible yet (bespokelabs curator issue 116, 2024);
    # one that stays unknown is gone, and no create for it is under way.
    if job.age(clock) <= submission.limits.reconcile_seconds:
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
    return AT_ONCE


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


def _reconcile(job: Job, submission: Submission, search: Reconcile, clock: Clock) -> Next:
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
        return AT_ONCE
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
            f"seconds of listing no batch was found. Its {job.n_requests} rows were not sent "
            "again. Look at the batches on the provider's page; the same call with "
            'on_unknown="resend" sends them again if it finds none.'
        )
    # Deleting the file is the fence: a create that is still on its way then finds no input.
    provider.delete_file(search.file_id)
    job.checkpoint.commit(job.number, NotFound())
    return AT_ONCE


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
        job.n_requests,
    )
    job.checkpoint.drop(job.number, is_unwanted=False)


def _turned_away(
    job: Job, submission: Submission, around: Around, file_id: str, messages: list[str]
) -> Next | None:
    """The queue was full, and nothing ran: not yet is not no, so it costs no attempt.

    None, and nothing done, for one request that a queue never takes that holds nothing of ours.
    """
    is_too_small = around.alone and _is_too_small(job) and not around.fits
    if is_too_small and job.n_requests == 1:
        return None
    job.refusals = messages
    job.checkpoint.commit(job.number, TurnedAway())
    delete_quietly(submission.provider, file_id)
    if is_too_small:
        _cut_anew(job)
        return AT_ONCE
    job.turned_away += 1
    delay = queue_delay(job.turned_away)
    note = f"the provider's queue is full; again in {delay:.0f} s"
    _log.info("shard %s: %s (%s)", job.number, note, messages[0])
    return delay, note


def glance(
    watched: list[tuple[Job, Submission]], clock: Clock
) -> "Mapping[int, Next | BaseException]":
    """Look at live batches of one client by a listing. Returns the outcomes by the jobs' ids."""
    _, submission = watched[0]
    try:
        seen = submission.provider.glance({_batch_of(job).batch_id for job, _ in watched})
        return {
            id(job): _glanced_at(job, seen.get(_batch_of(job).batch_id), clock)
            for job, _ in watched
        }
    except BaseException as error:  # noqa: BLE001 - raised again in the threads that wait
        return dict.fromkeys((id(job) for job, _ in watched), error)


def _glanced_at(job: Job, seen: BatchSeen | None, clock: Clock) -> Next:
    if seen is None:
        job.is_unlisted = True
        return max(0.0, job.due - clock.monotonic()), ""
    if seen.status.is_final:
        job.is_doubtful = True
        return AT_ONCE
    job.checkpoint.observe(job.number, seen)
    return job.poll_delay(job.age(clock), is_listed=True), ""


def _batch_of(job: Job) -> BatchSeen:
    return cast("Live", job.state).batch


def _poll(job: Job, submission: Submission, batch_id: str, clock: Clock) -> Next:
    age = job.age(clock)
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
        return AT_ONCE
    job.checkpoint.observe(job.number, seen)
    return job.poll_delay(age), ""


def _check_named(job: Job, submission: Submission, seen: BatchSeen, clock: Clock) -> None:
    """Raise Unavailable for a batch that has done rows, has ended, and names no file of theirs yet.

    To believe it would take what is paid for as missing. Answers are in the output file alone; what
    failed may be in either.
    """
    has_failures_only = seen.error_file_id is not None and not seen.n_answered
    is_named = seen.output_file_id is not None or has_failures_only
    if is_named or not seen.n_done or seen.status not in _WITH_FILES:
        return
    now = clock.monotonic()
    if job.nameless_since is None:
        job.nameless_since = now
    if now - job.nameless_since < submission.limits.reconcile_seconds:
        raise Unavailable(f"the batch {seen.batch_id} has ended and names no result file yet")
