"""One call at work on a checkpoint.

The rows themselves are the plan: what the checkpoint has is taken, what is under way is waited
for, and only the rest becomes new shards. So the same call again resumes, and a grown, re-ordered
or edited frame pays only for what is new.
"""

import logging
import sys
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from batchframe.checkpoint import Checkpoint
from batchframe.core.batches import (
    Collected,
    Creating,
    Dropped,
    Ended,
    Live,
    Planned,
    State,
    Uploaded,
    Uploading,
)
from batchframe.core.prices import unpriced_models
from batchframe.core.requests import RowKeys, Rows, render_requests, row_keys
from batchframe.core.results import Status
from batchframe.core.retries import hopeless, latest, unfinished
from batchframe.core.shards import cut_shards
from batchframe.core.spec import Spec
from batchframe.engine import (
    Engine,
    Job,
    Submission,
    default_engine,
    delete_quietly,
    repair,
)
from batchframe.errors import CheckpointCorruptError, ProviderError, RowError, RunTimeoutError
from batchframe.progress import Bars, Progress, Silence, Tally
from batchframe.storage import Storage

__all__ = ["Answers", "Options", "find_rows", "run_rows", "warn_of_unknown_prices"]

_log = logging.getLogger(__name__)

#: How long the provider keeps a batch's files (OpenAI, Batch guide, 2026-08).
_KEPT_DAYS = 30
#: So many days before that, a run that finds such a batch says so.
_WARN_DAYS = 5
#: Rows that a message names before it says "and more".
_SHOWN = 5
#: The columns of results that a plan is made from.
_FOR_PLANS = ("row_key", "status", "error_code", "http_status")


class Answers(NamedTuple):
    """What the checkpoint holds for a call's rows."""

    #: One row of RESULT_SCHEMA for each row key known to the checkpoint.
    results: pa.Table
    #: int64, one per input row, in the frame's order: its row of `results`, or null.
    positions: pa.Int64Array
    #: binary(16), one per input row: its row key, or null where nothing was sent.
    keys: pa.FixedSizeBinaryArray
    #: Where all of it is kept; closed, so only to be read.
    checkpoint: Checkpoint


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How a run works, beside what it sends."""

    #: Further rounds for rows that failed with an error that another try can help.
    max_retries: int = 3
    #: Try again also rows of earlier calls that failed for good, were cancelled or are missing.
    retry_failed: bool = False
    #: Seconds to wait, or None for as long as it takes.
    timeout: float | None = None
    #: Show progress bars.
    progress: bool = True


def run_rows(
    rows: Rows,
    spec: Spec,
    submission: Submission,
    path: Path,
    *,
    options: Options,
    engine: Engine | None = None,
    storage: Storage | None = None,
) -> Answers:
    """Send what the checkpoint lacks, wait for it, and give back what it then holds.

    Args:
        rows: What each row asks; ids without duplicates.
        spec: What all requests share.
        submission: Provider, limits, window, polling.
        path: The checkpoint's directory.
        options: Retries, waiting, progress.
        engine: Another engine than the process's own.
        storage: Other file operations than the disk's.

    Raises:
        RowError: a row's request alone exceeds the size of a file, or its id had another type
            when it was sent before.
        RunTimeoutError: `timeout` passed; the batches go on.
        CheckpointError: the directory cannot be used, or belongs to other work.
        ProviderError: the service refused for good.
    """
    engine = engine or default_engine()
    keys = row_keys(rows, spec)
    _check_sizes(rows.ids, keys, submission.limits.max_bytes)
    checkpoint = Checkpoint.open(path, spec, storage or Storage(), engine.clock)
    progress: Progress = Bars() if options.progress else Silence()
    run = _Run(rows, keys.keys, checkpoint, submission, options, engine, progress)
    try:
        try:
            with progress:
                return run.drive()
        finally:
            # First of all, and also where a second Ctrl-C interrupts it: nothing more is sent.
            engine.release(run)
    except RunTimeoutError:
        raise
    except BaseException as error:
        # After the release, when it is known what goes on.
        run.explain(error)
        raise
    finally:
        checkpoint.close()


def find_rows(rows: Rows, checkpoint: Checkpoint) -> Answers:
    """What a checkpoint holds for rows, wherever they were sent from; nothing is sent.

    Args:
        rows: What each row asks, as for `run_rows`.
        checkpoint: Opened by `Checkpoint.read`.
    """
    keys = row_keys(rows, checkpoint.spec).keys
    return _answers(keys, checkpoint)


def _answers(keys: pa.FixedSizeBinaryArray, checkpoint: Checkpoint) -> Answers:
    results = latest(checkpoint.results())
    positions = pc.index_in(keys, value_set=_keys_of(results), skip_nulls=True)
    return Answers(results, positions.cast(pa.int64()), keys, checkpoint)


@dataclass(slots=True, eq=False)
class _Run:
    rows: Rows
    keys: pa.FixedSizeBinaryArray
    checkpoint: Checkpoint
    submission: Submission
    options: Options
    engine: Engine
    progress: Progress
    jobs: list[Job] = field(default_factory=list)
    #: Rows that this round sends or waits for, prepared or not.
    n_planned: int = 0
    #: Which round this is, from 0.
    round: int = 0
    #: A row of this checkpoint was answered: the spec is one that the service takes.
    _is_proven: bool = False
    #: The shards of this round whose results were looked at.
    _looked_at: set[int] = field(default_factory=set)

    def drive(self) -> Answers:
        """Round after round until nothing is left to send."""
        started = self.engine.clock.monotonic()
        for round_ in range(self.options.max_retries + 1):
            self.round = round_
            self._plan()
            if not self.jobs:
                break
            timeout = self.options.timeout
            seconds = (
                float("inf")
                if timeout is None
                else max(0.0, started + timeout - self.engine.clock.monotonic())
            )
            if not self.engine.wait(self.jobs, seconds=seconds, look=self._look):
                self.engine.release(self)
                raise RunTimeoutError(
                    f"The batches were not done after {timeout} seconds. {self.how_to_resume()}"
                )
            self.engine.release(self)
            self.jobs.clear()
            self._looked_at.clear()
        return _answers(self.keys, self.checkpoint)

    def explain(self, error: BaseException) -> None:
        """Tell with an error what goes on without this call, and how to come back."""
        if isinstance(error, ProviderError):  # its own message says what to do
            note = f"{self._what_goes_on()} The checkpoint is {self.checkpoint.path}"
        else:
            note = self.how_to_resume()
        if note not in getattr(error, "__notes__", ()):  # one error may end several runs
            error.add_note(note)

    def how_to_resume(self) -> str:
        """What goes on without this call, and what to do next."""
        return (
            f"{self._what_goes_on()} Nothing is lost, and nothing is paid again: run the same call "
            f"again to resume. The checkpoint is {self.checkpoint.path}"
        )

    def _what_goes_on(self) -> str:
        live = [job.state.batch for job in self.jobs if isinstance(job.state, Live | Ended)]
        creating = sum(isinstance(job.state, Creating) for job in self.jobs)
        goes_on = "1 batch goes on" if len(live) == 1 else f"{len(live)} batches go on"
        said = f"{goes_on} at the provider" if live else "No batch goes on at the provider"
        if creating:
            said += f", and {creating} more may: the answer to the create did not come"
        dates = [batch.created_at for batch in live if batch.created_at]
        if dates:
            until = datetime.fromtimestamp(min(dates), UTC) + timedelta(days=_KEPT_DAYS)
            said += f", which keeps the results until {until:%Y-%m-%d}"
        return f"{said}. Nothing else is sent."

    def _settled(self) -> pa.Table:
        """What is known of each row that has a result, as far as plans need it."""
        try:
            return latest(self.checkpoint.results(_FOR_PLANS))
        except CheckpointCorruptError:
            repair(self.checkpoint, self.engine.clock)
            return latest(self.checkpoint.results(_FOR_PLANS))

    def _plan(self) -> None:
        """Watch the shards under way that hold our rows, and make shards of what is missing."""
        checkpoint = self.checkpoint
        with checkpoint.planning:
            results = self._settled()
            self._is_proven = pc.any(pc.equal(results["status"], Status.OK)).as_py() or False
            retry_failed = self.options.retry_failed and self.round == 0
            again = unfinished(results, retry_failed=retry_failed)
            settled = _keys_of(results.filter(pc.invert(again)))
            wanted = pc.and_(
                pc.is_valid(self.keys), pc.invert(pc.is_in(self.keys, value_set=settled))
            )
            for number, shard in list(checkpoint.shards.items()):
                if isinstance(shard.state, Collected | Dropped):
                    continue
                ours = pc.is_in(self.keys, value_set=_keys_of(checkpoint.requests(number)))
                n_wanted = pc.sum(pc.and_(ours, wanted)).as_py() or 0
                if n_wanted and self._is_worth_it(number, n_wanted):
                    self._watch(number)
                    wanted = pc.and_not(wanted, ours)
            self._warn_of_deletion(job.number for job in self.jobs)
            positions = _by_model(self.rows, pc.indices_nonzero(wanted))
            if checkpoint.shards and self.round == 0:
                self._check_types_of_ids(positions)
            self.n_planned = len(positions) + sum(_n_requests(job) for job in self.jobs)
            self._show()
            requests = render_requests(self.rows, positions, checkpoint.spec)
            for shard_requests in cut_shards(requests, self.submission.limits):
                self._watch(checkpoint.freeze(shard_requests, round_=self.round))
                self._look()

    def _check_types_of_ids(self, positions: pa.Array) -> None:
        """Raise RowError if rows to be sent were sent before under ids of the other type."""
        new = self.rows.take(positions)
        other, has_other = _as_other_type(new.ids)
        ids = new.ids.filter(has_other)
        others = replace(new.take(pc.indices_nonzero(has_other)), ids=other.filter(has_other))
        keys = row_keys(others, self.checkpoint.spec).keys
        sent = [
            self.checkpoint.requests(number)["row_key"]
            for number, shard in self.checkpoint.shards.items()
            if not isinstance(shard.state, Dropped)
        ]
        known = pa.chunked_array([chunk for keys in sent for chunk in keys.chunks], keys.type)
        found = pc.indices_nonzero(pc.is_in(keys, value_set=known))
        if len(found):
            shown = ", ".join(repr(ids[row].as_py()) for row in found[:_SHOWN].to_pylist())
            more = " and more" if len(found) > _SHOWN else ""
            raise RowError(
                f"{len(found)} {'row was' if len(found) == 1 else 'rows were'} sent before with "
                f"ids that were {_kind_of(other)}; now the ids are {_kind_of(ids)}: {shown}{more}. "
                "Nothing was sent, because they would be paid for again. Cast the ids back, or "
                "name another checkpoint=."
            )

    def _is_worth_it(self, number: int, n_wanted: int) -> bool:
        """False for a shard that was never sent and holds rows that nobody wants: it is dropped."""
        shard = self.checkpoint.shards[number]
        state = shard.state
        if (
            not isinstance(state, Planned | Uploading | Uploaded)
            or n_wanted == shard.frozen.n_requests
            or self.engine.is_watched(self.checkpoint, number)
        ):
            return True
        self.checkpoint.drop(number)
        if isinstance(state, Uploaded):
            delete_quietly(self.submission.provider, state.file_id)
        return False

    def _warn_of_deletion(self, numbers: Iterable[int]) -> None:
        """Tell of batches whose results the provider deletes soon, or has deleted."""
        states = [self.checkpoint.shards[number].state for number in numbers]
        dates = [
            state.batch.created_at
            for state in states
            if isinstance(state, Live | Ended) and state.batch.created_at
        ]
        if dates and self.engine.clock.now() > min(dates) + (_KEPT_DAYS - _WARN_DAYS) * 86_400:
            _log.warning(
                "the oldest batch without results is of %s: the provider deletes results after "
                "%s days, and this call fetches what is there",
                datetime.fromtimestamp(min(dates), UTC).date(),
                _KEPT_DAYS,
            )

    def _watch(self, number: int) -> None:
        if isinstance(self.checkpoint.shards[number].state, Creating | Live | Ended):
            # Sent by an earlier call: what it met then says nothing of what this one would meet.
            self._looked_at.add(number)
        self.jobs.append(self.engine.watch(self, self.checkpoint, number, self.submission))

    def _look(self) -> None:
        """Show where the run stands, and stop it where sending more would be in vain."""
        self._show()
        for job in self.jobs:
            if job.number not in self._looked_at and isinstance(job.state, Collected):
                self._looked_at.add(job.number)
                self._stop_if_hopeless(self.checkpoint.results_of(job.number))

    def _stop_if_hopeless(self, results: pa.Table) -> None:
        reason = hopeless(results, proven=self._is_proven)
        if reason is None:
            self._is_proven = True
            return
        has_rounds = self.round < self.options.max_retries
        if self._n_unsent() or (has_rounds and pc.any(unfinished(results)).as_py()):
            self.engine.release(self)  # what a step under way still sends is not called unsent
            unsent = self._n_unsent()
            rows = "1 row was" if unsent == 1 else f"{unsent} rows were"
            left = f"{rows} not sent, and cost nothing. " if unsent else ""
            reason = reason.rstrip(".")
            raise ProviderError(
                f"Rows failed, and others would too: {reason}. {left}Mend the cause and run the "
                "call again, with retry_failed=True for the rows that failed for good."
            )

    def _n_unsent(self) -> int:
        known = Creating | Live | Ended | Collected
        return self.n_planned - sum(
            _n_requests(job) for job in self.jobs if isinstance(job.state, known)
        )

    def _show(self) -> None:
        prepared = sent = done = 0
        for job in self.jobs:
            n_requests, state = _n_requests(job), job.state
            prepared += n_requests
            sent += n_requests if isinstance(state, Live | Ended | Collected) else 0
            done += _n_done(state, n_requests)
        note = next((job.note for job in self.jobs if job.note), "")
        self.progress.show(
            Tally(total=self.n_planned, prepared=prepared, sent=sent, done=done, note=note)
        )


def _n_requests(job: Job) -> int:
    return job.checkpoint.shards[job.number].frozen.n_requests


def _n_done(state: State, n_requests: int) -> int:
    match state:
        case Live(batch=batch):
            return min(batch.n_done, n_requests)
        case Ended() | Collected():
            return n_requests
        case _:
            return 0


def _keys_of(table: pa.Table) -> pa.FixedSizeBinaryArray:
    return table["row_key"].combine_chunks()


def _by_model(rows: Rows, positions: pa.Array) -> pa.Array:
    """The positions, those of one model after those of another, else in their order."""
    if rows.models is None:
        return positions
    codes = rows.models.take(positions).dictionary_encode().indices
    return positions.take(pc.array_sort_indices(codes))


def _kind_of(ids: pa.Array) -> str:
    return "integers" if pa.types.is_integer(ids.type) else "text"


def _as_other_type(ids: pa.Array) -> tuple[pa.Array, pa.BooleanArray]:
    """Integers as text, or text as integers; and which of them are written so."""
    text = pc.cast(ids, pa.string())
    if pa.types.is_integer(ids.type):
        return text, pc.is_valid(text)
    # Few enough digits for 64 bits.
    is_number = pc.match_substring_regex(text, r"^(0|-?[1-9][0-9]{0,17})$")
    return pc.cast(pc.if_else(is_number, text, "0"), pa.int64()), is_number


def _check_sizes(ids: pa.Array, keys: RowKeys, max_bytes: int) -> None:
    over = pc.indices_nonzero(pc.fill_null(pc.greater(keys.line_bytes, max_bytes), False))
    if len(over):
        first = over[0].as_py()
        raise RowError(
            f"{len(over)} {'row is' if len(over) == 1 else 'rows are'} larger than a file may be "
            f"({max_bytes:,} bytes). The first is row {first}, id {ids[first].as_py()!r}, "
            f"with {keys.line_bytes[first].as_py():,} bytes. Nothing was sent. Shorten the prompt, "
            "or raise Limits(max_bytes=...)."
        )


def warn_of_unknown_prices(results: pa.Table, model: str | None) -> None:
    """Warn the caller of this package if a model answered whose price is not known."""
    models = unpriced_models(results, model)
    if models:
        warnings.warn(
            f"No price is known for {', '.join(models)}: their cost is null, not zero.",
            stacklevel=_stacklevel(),
        )


def _stacklevel() -> int:
    """How far up the caller of this package stands, seen from the function that calls this."""
    level, frame = 1, sys._getframe(1)  # noqa: SLF001 - the way of the standard library's own
    package = __name__.partition(".")[0] + "."
    while frame.f_back is not None and frame.f_globals["__name__"].startswith(package):
        level, frame = level + 1, frame.f_back
    return level
