"""A checkpoint -> what people ask of a run: where it stands now, and what became of all of it.

Nothing is sent, locked or written. The invariant: each row is counted once, where its last shard
stands; what was billed is counted as often as it was billed.

Whoever looks every second passes the same `Sums` each time. What a shard asks never changes, nor do
the results of one that is collected: so their parquet is read once, in the columns that are needed,
and only the sums are kept. A look that finds nothing new reads no file.
"""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

import msgspec
import pyarrow as pa
import pyarrow.compute as pc

from batchframe.checkpoint import Checkpoint
from batchframe.commits import Shard
from batchframe.core.batches import (
    KEPT_DAYS,
    BatchSeen,
    Collected,
    CreateStarted,
    Creating,
    Dropped,
    Ended,
    Event,
    FileLost,
    FileUploaded,
    Live,
    NotFound,
    Planned,
    ResultsCommitted,
    ResultsLost,
    ShardFrozen,
    State,
    TurnedAway,
    Uploaded,
    Uploading,
)
from batchframe.core.prices import Prices, repriced
from batchframe.core.results import ANSWERED, Status
from batchframe.core.retries import latest, was_turned_away
from batchframe.core.spec import Spec
from batchframe.core.texts import dollars, duration, printable
from batchframe.core.usage import TOTAL, Difference
from batchframe.plans import FOR_USAGE, keys_of, usage_in
from batchframe.progress import TELLING_PART

__all__ = [
    "BATCH_WORDS",
    "IN_PROGRESS",
    "ROW_WORDS",
    "WAITING",
    "Failure",
    "Overview",
    "RunStatus",
    "ShardHistory",
    "Sums",
    "batches_of",
    "overview_of",
    "status_of",
    "time_left",
]

#: Rows whose batch the provider has.
IN_PROGRESS = "in progress"
#: Rows, or shards, that are prepared and not sent.
WAITING = "waiting"
#: Where rows stand, in the order in which they are shown.
ROW_WORDS = (*(str(status) for status in Status), IN_PROGRESS, WAITING)
#: Where shards stand, likewise.
BATCH_WORDS = (
    *(WAITING, "uploading", "creating"),
    *("validating", "in_progress", "finalizing", "cancelling", "unknown"),
    *("ended", "collected"),
)
#: Results that are never asked for again, so that no later shard can hold their rows.
_SETTLED = pa.array([Status.OK, Status.TRUNCATED], pa.string())
#: Row keys with the status of their result.
_OPEN = pa.schema([("row_key", pa.binary(16)), ("status", pa.string())])
_TIME = pa.timestamp("us", "UTC")
#: What a table of batches says of each, in the words of `ShardHistory`.
_BATCHES = pa.schema(
    [
        ("number", pa.int64()),
        ("round", pa.int64()),
        ("batch_id", pa.string()),
        ("model", pa.string()),
        ("n_requests", pa.int64()),
        ("state", pa.string()),
        ("ended_as", pa.string()),
        ("frozen_at", _TIME),
        ("uploaded_at", _TIME),
        ("created_at", _TIME),
        ("started_at", _TIME),
        ("ended_at", _TIME),
        ("collected_at", _TIME),
        ("input_tokens", pa.int64()),
        ("output_tokens", pa.int64()),
        ("cost_usd", pa.float64()),
    ]
)
#: Reasons that a report shows, and ids of each.
_SHOWN_REASONS, _SHOWN_IDS = 20, 3
#: Characters of a message, of an id, and of a setting that a report shows.
_MESSAGE_CHARS, _ID_CHARS, _SETTING_CHARS = 300, 60, 200
#: What differs between messages that mean the same: words with a digit, such as request ids.
_NUMBERED = r"[\w-]*\d[\w.-]*"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStatus:
    """Where a run stands; `print` it.

    It tells of the checkpoint as it is known: one that was read from the disk knows of live
    batches as they were created, until somebody asks the provider and lets it `observe` them.
    """

    #: The checkpoint's directory.
    path: Path
    #: The model, or None where rows name their own.
    model: str | None
    #: Path of the API that the rows call.
    endpoint: str
    #: Rows that were prepared or sent, each counted once however often it was tried.
    n_rows: int
    #: Rows by where they stand: the words of results, "in progress" where the provider has the
    #: batch, "waiting" where nothing was sent; without zeros. Whether structured answers fit their
    #: schema is told where they are read: here they are "ok".
    rows: Mapping[str, int]
    #: Shards by where they stand: "waiting", "uploading" (also uploaded, and not created yet),
    #: "creating", the provider's word for a live batch, "ended" (not collected yet), "collected".
    batches: Mapping[str, int]
    #: Rows with a result, and those that the provider has done in batches that run or have ended.
    n_done: int
    #: What all rows that came back have cost, every try of them, in US dollars; None where a price
    #: is unknown.
    cost_usd: float | None
    #: Tokens of their prompts.
    input_tokens: int
    #: Tokens of their answers.
    output_tokens: int
    #: Seconds until the rows are done that are not, or None where nothing tells. The pace is that
    #: of the time since the oldest live batch was created: rows that were done in batches created
    #: since then, by seconds. It tells once a tenth of the work is done: those rows, and all that
    #: are not done; and nothing more is told once only the provider's own last steps are left. Rows
    #: that will fail and be tried again are not foreseen.
    eta_seconds: float | None
    #: Until when the provider keeps the results that are still there, UTC: 30 days after the oldest
    #: batch that is not collected was created. None where there is none.
    kept_until: datetime | None
    #: True when nothing waits and nothing is at the provider. Of rows that failed, some may be sent
    #: again by a call or a handle that is still at work.
    is_done: bool

    def __repr__(self) -> str:
        """A table for a terminal."""
        lines = self._lines()
        name, value = (max(len(line[place]) for line in lines) for place in (0, 1))
        rows = (f"{n:<{name}}  {v:>{value}}  {note}".rstrip() for n, v, note in lines)
        return "\n".join([f"Run in {printable(str(self.path))}", *rows])

    @property
    def n_failures(self) -> int:
        """Rows that ended without an answer; one that was cut off has one."""
        others = {*ANSWERED, IN_PROGRESS, WAITING}
        return sum(n for word, n in self.rows.items() if word not in others)

    def _lines(self) -> list[tuple[str, str, str]]:
        part = f"{math.floor(100 * self.n_done / self.n_rows)} %" if self.n_rows else ""
        lines = [
            ("model", printable(self.model or "of each row"), self.endpoint),
            ("rows", f"{self.n_rows:,}", ""),
            *((f"  {word}", f"{n:,}", "") for word, n in self.rows.items()),
            ("batches", f"{sum(self.batches.values()):,}", ""),
            *((f"  {word}", f"{n:,}", "") for word, n in self.batches.items()),
            ("done", f"{self.n_done:,}", part),
            ("cost", "unknown" if self.cost_usd is None else dollars(self.cost_usd), "so far"),
            ("input tokens", f"{self.input_tokens:,}", ""),
            ("output tokens", f"{self.output_tokens:,}", ""),
        ]
        lines.append(("time left", *time_left(self)))
        if self.kept_until is not None:
            lines.append(
                ("results", f"{self.kept_until:%Y-%m-%d}", "the provider keeps them until then")
            )
        return lines


def time_left(status: RunStatus) -> tuple[str, str]:
    """The time that is left, in words, and how that is known or why it is not."""
    if status.is_done:
        return "none", "nothing waits, nothing is at the provider"
    if status.eta_seconds is not None:
        return duration(status.eta_seconds), "at the pace so far"
    if IN_PROGRESS not in status.rows:
        return "unknown", "nothing is at the provider"
    if status.n_done == status.n_rows:
        return "unknown", "all rows are done, the provider finishes the batch"
    return "unknown", "not enough is done to tell"


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardHistory:
    """One shard, and the one batch that it became."""

    #: Its number in the checkpoint, from 0.
    number: int
    #: How often its rows may have been tried before: 0 in the first round.
    round: int
    #: The provider's id of the batch, or None where there is none yet.
    batch_id: str | None
    #: The model of its requests.
    model: str
    #: Requests in it.
    n_requests: int
    #: Where it stands, in the words of `RunStatus.batches`; "dropped" where it was given up unsent.
    state: str
    #: How its batch ended: "completed", "failed", "expired" or "cancelled"; None where it has not.
    ended_as: str | None
    #: How often the provider's queue turned a batch of it away, before this one.
    n_turned_away: int
    #: When its input file was written, UTC, as are all times.
    frozen_at: datetime | None
    #: When the provider had the file; None where it has not yet, as with all that follow.
    uploaded_at: datetime | None
    #: When the batch was created, by the provider's clock, or by ours where that is not known.
    created_at: datetime | None
    #: When its requests began to run, by the provider's clock, as far as we looked.
    started_at: datetime | None
    #: When we saw that it had ended; later than it did where nobody was looking.
    ended_at: datetime | None
    #: When its results were in the checkpoint.
    collected_at: datetime | None
    #: Its own rows by where they stand, in the words of `RunStatus.rows`.
    rows: Mapping[str, int]
    #: Tokens of its prompts; 0 before it is collected, as with all that follow.
    input_tokens: int
    #: Tokens of its answers.
    output_tokens: int
    #: What it cost, in US dollars; None where a price is unknown.
    cost_usd: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """Rows whose last result is not ok, for one reason."""

    #: The word of their results.
    status: str
    #: The provider's code, or ours where it gave none.
    code: str
    #: The words of one of them, shortened; others may name other numbers.
    message: str
    #: How many rows.
    n_rows: int
    #: Ids of some of them, as text, shortened.
    ids: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Overview:
    """All of a run, for a report. No prompt and no answer is in it."""

    #: Where it stands.
    status: RunStatus
    #: When this was put together, UTC.
    at: datetime
    #: The shards, in the order in which they were made.
    shards: tuple[ShardHistory, ...]
    #: Why rows are not ok, the most frequent reasons first.
    failures: tuple[Failure, ...]
    #: Rows that are not ok for further reasons.
    n_more_failures: int
    #: Tokens and dollars by model and category: a table as `bf.usage` has it.
    usage: pa.Table
    #: Batches that the provider counts otherwise.
    differences: tuple[Difference, ...]
    #: What all requests share, by name: texts, long ones shortened.
    settings: Mapping[str, str]

    @property
    def saved_usd(self) -> float | None:
        """What the same would cost more outside of batches, or None where a price is unknown."""
        totals = self.usage.filter(pc.equal(self.usage["category"], TOTAL))
        saved = pc.subtract(totals["standard_usd"], totals["cost_usd"])
        return None if saved.null_count else float(pc.sum(saved).as_py() or 0.0)


# --- What is read once ----------------------------------------------------------------------------


class _Results(NamedTuple):
    """The results of one collected shard, added up."""

    prices: Prices | None
    rows: dict[str, int]
    cost_usd: float | None
    input_tokens: int
    output_tokens: int
    #: The results after which a row may be in a later shard, as _OPEN.
    open: pa.Table


class _Again(NamedTuple):
    """The rows of a shard that have a result of an earlier one."""

    #: How many of the earlier shards were looked at.
    n_before: int
    keys: pa.FixedSizeBinaryArray
    #: Their statuses there, which they have no more.
    rows: dict[str, int]


@dataclass(slots=True)
class Sums:
    """What was added up of the shards of checkpoints, kept from one look to the next.

    Threads may share it: at worst two of them add up the same shard.
    """

    _results: dict[tuple[Path, int, str], _Results] = field(default_factory=dict)
    _again: dict[tuple[Path, int, str], _Again] = field(default_factory=dict)

    def _of_results(self, checkpoint: Checkpoint, number: int, prices: Prices | None) -> _Results:
        key = _key(checkpoint, number)
        there = self._results.get(key)
        if there is None or there.prices != prices:
            there = self._results[key] = _added_up(checkpoint, number, prices)
        return there

    def _of_again(self, checkpoint: Checkpoint, number: int, before: list[pa.Table]) -> _Again:
        key = _key(checkpoint, number)
        there = self._again.get(key)
        if there is None or there.n_before != len(before):
            there = self._again[key] = _tried_before(checkpoint, number, before)
        return there


def _key(checkpoint: Checkpoint, number: int) -> tuple[Path, int, str]:
    return checkpoint.path, number, checkpoint.shards[number].frozen.sha256


def _added_up(checkpoint: Checkpoint, number: int, prices: Prices | None) -> _Results:
    table = checkpoint.results_of(number, ("row_key", *FOR_USAGE))
    if prices:
        table = repriced(table, model=checkpoint.model_of(number), prices=prices)
    cost = pc.sum(table["cost_usd"], skip_nulls=False, min_count=0).as_py()
    is_open = pc.invert(pc.is_in(table["status"], value_set=_SETTLED))
    return _Results(
        prices=prices,
        rows=_counted(table["status"]),
        cost_usd=cost,
        input_tokens=pc.sum(table["input_tokens"]).as_py() or 0,
        output_tokens=pc.sum(table["output_tokens"]).as_py() or 0,
        open=table.select(_OPEN.names).filter(is_open),
    )


def _tried_before(checkpoint: Checkpoint, number: int, before: Sequence[pa.Table]) -> _Again:
    earlier = pa.concat_tables(before) if before else _OPEN.empty_table()
    if not earlier.num_rows:
        return _Again(len(before), pa.array([], pa.binary(16)), {})
    keys = checkpoint.row_keys(number)
    # The last of them counts: what came before it was superseded already.
    ours = latest(earlier.filter(pc.is_in(earlier["row_key"], value_set=keys)))
    return _Again(len(before), keys_of(ours), _counted(ours["status"]))


def _counted(words: pa.ChunkedArray) -> dict[str, int]:
    return {one["values"]: one["counts"] for one in pc.value_counts(words).to_pylist()}


class _Known(NamedTuple):
    """One shard that was not dropped, as it stood at one moment."""

    number: int
    shard: Shard
    state: State
    results: _Results | None
    again: _Again


def _look(checkpoint: Checkpoint, prices: Prices | None, sums: Sums) -> list[_Known]:
    """The shards in order. Others may be moving them: each state is read once."""
    known: list[_Known] = []
    before: list[pa.Table] = []
    for number, shard in sorted(list(checkpoint.shards.items())):  # noqa: C414 - a copy, first
        state = shard.state
        if isinstance(state, Dropped):
            continue
        again = sums._of_again(checkpoint, number, before)  # noqa: SLF001 - of this module
        results = None
        if isinstance(state, Collected):
            results = sums._of_results(checkpoint, number, prices)  # noqa: SLF001 - likewise
            if results.open.num_rows:
                before.append(results.open)
        known.append(_Known(number, shard, state, results, again))
    return known


# --- Where it stands ------------------------------------------------------------------------------


def status_of(
    checkpoint: Checkpoint,
    *,
    now: float,
    prices: Prices | None = None,
    sums: Sums | None = None,
) -> RunStatus:
    """Where a run stands.

    Args:
        checkpoint: Opened for work or for reading; other threads may be at work on it.
        now: The present, in seconds since the epoch.
        prices: What the user pays, instead of the prices that the results have.
        sums: What earlier looks added up; whoever looks again and again passes the same.

    Raises:
        CheckpointCorruptError: a shard's parquet is damaged.
    """
    return _status(checkpoint, _look(checkpoint, prices, sums or Sums()), now)


def _status(checkpoint: Checkpoint, known: Sequence[_Known], now: float) -> RunStatus:
    rows: Counter[str] = Counter()
    for one in known:
        rows.update(_rows(one))
        rows.subtract(one.again.rows)
    batches = Counter(_word(one.state) for one in known)
    collected = [one.results for one in known if one.results is not None]
    costs = [results.cost_usd for results in collected]
    there = [one.state.batch for one in known if isinstance(one.state, Live | Ended)]
    dates = [batch.created_at for batch in there if batch.created_at]
    return RunStatus(
        path=checkpoint.path,
        model=checkpoint.spec.model,
        endpoint=checkpoint.spec.endpoint,
        n_rows=rows.total(),
        rows={word: rows[word] for word in ROW_WORDS if rows[word]},
        batches={word: batches[word] for word in BATCH_WORDS if batches[word]},
        n_done=sum(map(_n_done, known)) - sum(sum(one.again.rows.values()) for one in known),
        cost_usd=None if None in costs else sum(filter(None, costs), 0.0),
        input_tokens=sum(results.input_tokens for results in collected),
        output_tokens=sum(results.output_tokens for results in collected),
        eta_seconds=_eta(known, now),
        kept_until=(
            datetime.fromtimestamp(min(dates), UTC) + timedelta(days=KEPT_DAYS) if dates else None
        ),
        is_done=all(isinstance(one.state, Collected) for one in known),
    )


def _rows(one: _Known) -> Mapping[str, int]:
    """The rows of a shard by where they stand."""
    if one.results is not None:
        return one.results.rows
    has_batch = isinstance(one.state, Creating | Live | Ended)
    return {IN_PROGRESS if has_batch else WAITING: one.shard.frozen.n_requests}


def _word(state: State) -> str:
    match state:
        case Planned():
            return WAITING
        case Uploading() | Uploaded():
            return "uploading"
        case Creating():
            return "creating"
        case Live(batch=batch):
            return str(batch.status)
        case Ended():
            return "ended"
        case Collected():
            return "collected"
        case Dropped():
            return "dropped"


def _n_done(one: _Known) -> int:
    match one.state:
        case Live(batch=batch):
            return min(batch.n_done, one.shard.frozen.n_requests)
        case Ended(batch=batch):
            return 0 if was_turned_away(batch) else one.shard.frozen.n_requests
        case Collected():
            return one.shard.frozen.n_requests
        case _:
            return 0


def _eta(known: Sequence[_Known], now: float) -> float | None:
    live = [one.state.batch.created_at for one in known if isinstance(one.state, Live)]
    since = min(filter(None, live), default=None)
    if since is None or now <= since:
        return None
    n_left = sum(one.shard.frozen.n_requests - _n_done(one) for one in known)
    n_done = sum(
        _n_done(one)
        for one in known
        if isinstance(one.state, Live | Ended | Collected) and one.state.batch.created_at >= since
    )
    if not n_left or n_done < max(1, TELLING_PART * (n_done + n_left)):
        return None
    return (now - since) * n_left / n_done


# --- All of it ------------------------------------------------------------------------------------


def overview_of(
    checkpoint: Checkpoint,
    *,
    now: float,
    prices: Prices | None = None,
    sums: Sums | None = None,
) -> Overview:
    """All of a run, for a report.

    Args:
        checkpoint: As for `status_of`.
        now: The present, in seconds since the epoch.
        prices: As for `status_of`.
        sums: As for `status_of`.

    Raises:
        CheckpointCorruptError: the log or a shard's parquet is damaged.
    """
    known = _look(checkpoint, prices, sums or Sums())
    usage, differences = usage_in(checkpoint, prices)
    failures = _failures(checkpoint, known)
    return Overview(
        status=_status(checkpoint, known, now),
        at=datetime.fromtimestamp(now, UTC),
        shards=_histories(checkpoint, known),
        failures=failures[:_SHOWN_REASONS],
        n_more_failures=sum(failure.n_rows for failure in failures[_SHOWN_REASONS:]),
        usage=usage,
        differences=differences,
        settings=_settings(checkpoint.spec),
    )


def batches_of(
    checkpoint: Checkpoint, *, prices: Prices | None = None, sums: Sums | None = None
) -> pa.Table:
    """The batches of a run and their times: one row for each shard, in the order they were made.

    Args:
        checkpoint: As for `status_of`.
        prices: As for `status_of`.
        sums: As for `status_of`.

    Raises:
        CheckpointCorruptError: the log or a shard's parquet is damaged.
    """
    histories = _histories(checkpoint, _look(checkpoint, prices, sums or Sums()))
    rows = [{name: getattr(one, name) for name in _BATCHES.names} for one in histories]
    return pa.Table.from_pylist(rows, _BATCHES)


class _Times(msgspec.Struct, frozen=True, kw_only=True):
    """When what happened to a shard; what a batch that came to nothing had is forgotten."""

    frozen_at: datetime | None = None
    uploaded_at: datetime | None = None
    created_at: datetime | None = None
    started_at: datetime | None = None
    ended_at: datetime | None = None
    collected_at: datetime | None = None
    n_turned_away: int = 0


def _after(times: _Times, at: datetime, event: Event) -> _Times:
    """The times after one commit of the log."""
    match event:
        case ShardFrozen():
            return _Times(frozen_at=at)
        case FileUploaded():
            return msgspec.structs.replace(times, uploaded_at=at)
        case CreateStarted():
            return msgspec.structs.replace(times, created_at=None)
        case BatchSeen():
            return _after_look(times, at, event)
        case ResultsCommitted():
            return msgspec.structs.replace(times, collected_at=at)
        case ResultsLost():
            return msgspec.structs.replace(times, collected_at=None)
        case FileLost() | NotFound() | TurnedAway():
            return _Times(
                frozen_at=times.frozen_at,
                n_turned_away=times.n_turned_away + isinstance(event, TurnedAway),
            )
        case _:
            return times


def _after_look(times: _Times, at: datetime, batch: BatchSeen) -> _Times:
    created = _time(batch.created_at) or times.created_at or at
    return msgspec.structs.replace(
        times,
        created_at=created,
        started_at=_time(batch.in_progress_at) or times.started_at,
        ended_at=at if batch.status.is_final else None,
    )


def _time(seconds: float) -> datetime | None:
    return datetime.fromtimestamp(seconds, UTC) if seconds else None


def _histories(checkpoint: Checkpoint, known: Sequence[_Known]) -> tuple[ShardHistory, ...]:
    times: dict[int, _Times] = {}
    for at, number, event in checkpoint.history():
        times[number] = _after(times.get(number, _Times()), at, event)
    there = {one.number: one for one in known}
    return tuple(
        _history(checkpoint, number, shard, there.get(number), times.get(number, _Times()))
        for number, shard in sorted(list(checkpoint.shards.items()))  # noqa: C414 - as above
        if number in there or isinstance(shard.state, Dropped)
    )


def _history(
    checkpoint: Checkpoint, number: int, shard: Shard, one: _Known | None, times: _Times
) -> ShardHistory:
    """One shard; `one` is None where it was dropped."""
    state = one.state if one else Dropped()
    batch = state.batch if isinstance(state, Live | Ended | Collected) else None
    if batch is not None and batch.in_progress_at:
        # Somebody may have asked the provider since, which the log does not keep.
        times = msgspec.structs.replace(times, started_at=_time(batch.in_progress_at))
    results = one.results if one else None
    rows = _rows(one) if one else {}
    return ShardHistory(
        number=number,
        round=shard.frozen.round,
        batch_id=batch.batch_id if batch else None,
        model=checkpoint.model_of(number),
        n_requests=shard.frozen.n_requests,
        state=_word(state),
        ended_as=str(batch.status) if batch and batch.status.is_final else None,
        rows={word: rows[word] for word in ROW_WORDS if rows.get(word)},
        input_tokens=results.input_tokens if results else 0,
        output_tokens=results.output_tokens if results else 0,
        cost_usd=results.cost_usd if results else 0.0,
        **msgspec.structs.asdict(times),
    )


def _failures(checkpoint: Checkpoint, known: Sequence[_Known]) -> tuple[Failure, ...]:
    """Why rows are not ok, each where its last result is; those that are tried again are not."""
    names = ("row_key", "id", "status", "error_code", "error_message")
    parts = []
    later: list[pa.FixedSizeBinaryArray] = []
    for one in reversed(known):
        if one.results is not None and set(one.results.rows) != {str(Status.OK)}:
            table = checkpoint.results_of(one.number, names)
            table = table.filter(pc.not_equal(table["status"], Status.OK))
            if later:
                gone = pc.is_in(table["row_key"], value_set=pa.concat_arrays(later))
                table = table.filter(pc.invert(gone))
            parts.append(table.select(names[1:]))
        if len(one.again.keys):
            later.append(one.again.keys)
    if not parts:
        return ()
    # In the order of the shards: the ids that are shown are the first ones.
    return tuple(_by_reason(pa.concat_tables(reversed(parts))))


def _by_reason(table: pa.Table) -> Iterator[Failure]:
    columns = {
        name: pc.fill_null(table[name].combine_chunks(), "")
        for name in ("status", "error_code", "error_message")
    }
    # Messages that differ in ids and numbers only are one reason, or a million of them would be.
    message = pc.utf8_slice_codeunits(columns["error_message"], 0, 2 * _MESSAGE_CHARS)
    shape = pc.replace_substring_regex(message, _NUMBERED, "#")
    row = pa.array(range(table.num_rows), pa.int64())
    groups = (
        pa.table(
            [columns["status"], columns["error_code"], shape, row],
            names=["status", "code", "shape", "row"],
        )
        .group_by(["status", "code", "shape"], use_threads=False)
        .aggregate([("row", "count"), ("row", "min"), ("row", "list")])
        .sort_by([("row_count", "descending"), ("row_min", "ascending")])
    )
    shown = pc.list_slice(groups["row_list"], 0, _SHOWN_IDS)
    groups = groups.drop_columns("row_list").append_column("rows", shown)
    for group in groups.to_pylist():
        ids = table["id"].take(pa.array(group["rows"], pa.int64())).to_pylist()
        yield Failure(
            status=group["status"],
            code=printable(group["code"], _ID_CHARS),
            message=printable(message[group["row_min"]].as_py(), _MESSAGE_CHARS),
            n_rows=group["row_count"],
            ids=tuple(printable(id_ or "", _ID_CHARS) for id_ in ids),
        )


def _settings(spec: Spec) -> dict[str, str]:
    """What all requests share, as a person reads it."""
    values = {
        "model": spec.model or "of each row",
        "endpoint": spec.endpoint,
        **({} if spec.system is None else {"system": spec.system}),
        **spec.params,
    }
    return {
        printable(name, _ID_CHARS): printable(
            value if isinstance(value, str) else msgspec.json.encode(value).decode(),
            _SETTING_CHARS,
        )
        for name, value in values.items()
    }
