"""A batch that has ended -> its results in the checkpoint.

Both files are downloaded as they are, read from the disk, and committed. What is damaged later is
made anew from the downloads, or fetched again.
"""

import logging
from collections.abc import Iterator, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256

import pyarrow as pa
import pyarrow.compute as pc

from batchframe.checkpoint import Checkpoint
from batchframe.client import Unavailable, delete_quietly
from batchframe.clock import Clock
from batchframe.core.batches import (
    BatchSeen,
    BatchStatus,
    Collected,
    ResultsCommitted,
    ResultsLost,
    Usage,
)
from batchframe.core.lines import whole_lines
from batchframe.core.prices import priced
from batchframe.core.rates import Prices
from batchframe.core.results import Collected as Results
from batchframe.core.results import collect_results
from batchframe.core.statuses import Status
from batchframe.errors import AccountMismatchError, CheckpointCorruptError
from batchframe.jobs import Job, Submission
from batchframe.layout import DownloadKind

__all__ = ["collect", "damaged", "repair"]

_log = logging.getLogger(__name__)

#: Ends at which requests without a line did not run, as far as the batch has told of all that did.
_CUT_SHORT = frozenset({BatchStatus.EXPIRED, BatchStatus.CANCELLED})


def collect(
    job: Job, submission: Submission, batch: BatchSeen, reader: Executor, clock: Clock
) -> None:
    """Take the results of a batch that has ended; Unavailable where they are not there yet."""
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
            checkpoint,
            job.number,
            batch,
            digests,
            at,
            provider.dialect.price_list,
            submission.prices,
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
    if job.age(clock) < submission.limits.reconcile_seconds:
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
    price_list: str | None,
    prices: Prices | None,
) -> tuple[pa.Table, ResultsCommitted]:
    """A shard's downloads, as they are on disk -> one result per request, with its cost."""
    collected = _collected(checkpoint, number, batch, digests, ended=batch.status)
    if batch.status in _CUT_SHORT and _n_told(collected) < batch.n_done:
        # Rows without a line may be those that it did: not billed is what nobody can say of them.
        collected = _collected(checkpoint, number, batch, digests, ended=BatchStatus.COMPLETED)
    table = priced(
        collected.table,
        model=checkpoint.model_of(number),
        at=datetime.fromtimestamp(at, UTC),
        prices=prices,
        price_list=price_list,
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


@dataclass(frozen=True, slots=True)
class _Downloads:
    """The lines of a shard's downloads, in blocks, as often as they are asked for."""

    checkpoint: Checkpoint
    number: int
    #: By kind; what was not downloaded is not there.
    digests: Mapping[str, str]

    def __iter__(self) -> Iterator[bytes]:
        kinds: tuple[DownloadKind, ...] = ("output", "error")
        for kind in kinds:
            if kind in self.digests:
                yield from whole_lines(self.checkpoint.downloaded(self.number, kind))


def _collected(
    checkpoint: Checkpoint,
    number: int,
    batch: BatchSeen,
    digests: dict[str, str],
    *,
    ended: BatchStatus,
) -> Results:
    """The lines of a shard's downloads -> one result per request; `ended` is for those without."""
    requests = checkpoint.requests(number, ("row_key", "id"))
    return collect_results(
        requests["row_key"].combine_chunks(),
        requests["id"].combine_chunks(),
        _Downloads(checkpoint, number, digests),
        batch_id=batch.batch_id,
        ended=ended.value,
        files_gone=any(
            file_id is not None and kind not in digests
            for kind, file_id in (
                ("output", batch.output_file_id),
                ("error", batch.error_file_id),
            )
        ),
        batch_errors=batch.errors,
    )


def _n_told(collected: Results) -> int:
    """How many requests ran, by the lines."""
    not_run = pa.array([Status.EXPIRED, Status.CANCELLED], pa.string())
    ran = pc.invert(pc.is_in(collected.table["status"], value_set=not_run))
    return pc.sum(ran).as_py() or 0


def damaged(checkpoint: Checkpoint) -> dict[int, Collected]:
    """The collected shards whose results on the disk are damaged: all of them are read."""
    found = {}
    for number, shard in list(checkpoint.shards.items()):
        if isinstance(shard.state, Collected):
            try:
                checkpoint.results_of(number)
            except CheckpointCorruptError:
                found[number] = shard.state
    return found


def repair(
    checkpoint: Checkpoint, clock: Clock, price_list: str | None, prices: Prices | None
) -> None:
    """Make damaged results anew from their downloads, or have them fetched again.

    Where the downloads are damaged too, the shard goes back to Ended: the provider keeps its files
    for 30 days, and nothing is sent again.
    """
    for number, state in damaged(checkpoint).items():
        digests = state.results.downloads
        try:
            for kind in ("output", "error"):
                if kind in digests:
                    _check_download(checkpoint, number, kind, digests[kind])
            at = state.batch.created_at or clock.now()
            table, _ = _read_downloads(
                checkpoint, number, state.batch, digests, at, price_list, prices
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
