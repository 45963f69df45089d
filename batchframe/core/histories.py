"""The log of a run, and where its shards stand -> what became of each of them, and when."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import msgspec
import pyarrow as pa

from batchframe.core.batches import (
    BatchSeen,
    Collected,
    CreateStarted,
    Ended,
    Event,
    FileLost,
    FileUploaded,
    Live,
    NotFound,
    ResultsCommitted,
    ResultsLost,
    ShardFrozen,
    TurnedAway,
)
from batchframe.core.standing import ROW_WORDS, Standing, rows_of, word_of

__all__ = ["ShardHistory", "histories", "table_of_batches"]

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


def histories(
    standings: Sequence[Standing], commits: Iterable[tuple[datetime, int, Event]]
) -> tuple[ShardHistory, ...]:
    """What became of each shard, in the order of `standings`.

    Args:
        standings: The shards.
        commits: The log, in its order: when, to which shard, and what happened.
    """
    times: dict[int, _Times] = {}
    for at, number, event in commits:
        times[number] = _after(times.get(number, _Times()), at, event)
    return tuple(_history(one, times.get(one.number, _Times())) for one in standings)


def table_of_batches(shards: Iterable[ShardHistory]) -> pa.Table:
    """One row for each shard, in their order, with the names that `ShardHistory` has for them."""
    rows = [{name: getattr(one, name) for name in _BATCHES.names} for one in shards]
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


def _history(one: Standing, times: _Times) -> ShardHistory:
    state, results = one.state, one.results
    batch = state.batch if isinstance(state, Live | Ended | Collected) else None
    if batch is not None and batch.in_progress_at:
        # Somebody may have asked the provider since, which the log does not keep.
        times = msgspec.structs.replace(times, started_at=_time(batch.in_progress_at))
    rows = rows_of(one)
    return ShardHistory(
        number=one.number,
        round=one.frozen.round,
        batch_id=batch.batch_id if batch else None,
        model=one.model,
        n_requests=one.frozen.n_requests,
        state=word_of(state),
        ended_as=str(batch.status) if batch and batch.status.is_final else None,
        rows={word: rows[word] for word in ROW_WORDS if rows.get(word)},
        input_tokens=results.input_tokens if results else 0,
        output_tokens=results.output_tokens if results else 0,
        cost_usd=results.cost_usd if results else 0.0,
        **msgspec.structs.asdict(times),
    )
