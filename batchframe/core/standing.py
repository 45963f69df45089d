"""The shards of a run as they stood at one moment -> where its rows and batches stand.

The invariant: each row is counted once, where its last shard stands; what was billed is counted as
often as it was billed.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from batchframe.core.batches import (
    Collected,
    Creating,
    Dropped,
    Ended,
    Live,
    Planned,
    ShardFrozen,
    State,
    Uploaded,
    Uploading,
)
from batchframe.core.retries import latest, was_turned_away
from batchframe.core.statuses import Status

__all__ = [
    "BATCH_WORDS",
    "IN_PROGRESS",
    "NOTHING_AGAIN",
    "ROW_WORDS",
    "TELLING_PART",
    "WAITING",
    "Again",
    "ShardSums",
    "Standing",
    "again_in",
    "n_done",
    "rows_of",
    "seconds_left",
    "sums_of",
    "word_of",
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
#: The part of the rows that must be done before their pace tells anything of the rest.
TELLING_PART = 0.1
#: Results that are never asked for again, so that no later shard can hold their rows.
_SETTLED = pa.array([Status.OK, Status.TRUNCATED], pa.string())
#: Row keys with the status of their result.
_OPEN = pa.schema([("row_key", pa.binary(16)), ("status", pa.string())])


class ShardSums(NamedTuple):
    """The results of one collected shard, added up."""

    #: Rows by the word of their result.
    rows: Mapping[str, int]
    #: What they cost, in US dollars; None where a price is unknown.
    cost_usd: float | None
    #: Tokens of their prompts.
    input_tokens: int
    #: Tokens of their answers.
    output_tokens: int
    #: The results after which a row may be in a later shard: `row_key` and `status`.
    open: pa.Table


class Again(NamedTuple):
    """The rows of a shard that have a result of an earlier one."""

    #: Their row keys.
    keys: pa.FixedSizeBinaryArray
    #: How many there are, by the word of the earlier result, which counts no more.
    rows: Mapping[str, int]


#: No row has one.
NOTHING_AGAIN = Again(pa.array([], pa.binary(16)), {})


class Standing(NamedTuple):
    """One shard as it stood."""

    #: Its number in the checkpoint, from 0.
    number: int
    #: The model of its requests.
    model: str
    #: What was frozen.
    frozen: ShardFrozen
    #: Where it stood.
    state: State
    #: Its results; None where it was not collected.
    results: ShardSums | None
    #: Its rows that were tried before.
    again: Again


def sums_of(results: pa.Table) -> ShardSums:
    """The results of one shard, added up: with their row keys, statuses, costs and tokens."""
    is_open = pc.invert(pc.is_in(results["status"], value_set=_SETTLED))
    return ShardSums(
        rows=_counted(results["status"]),
        cost_usd=pc.sum(results["cost_usd"], skip_nulls=False, min_count=0).as_py(),
        input_tokens=pc.sum(results["input_tokens"]).as_py() or 0,
        output_tokens=pc.sum(results["output_tokens"]).as_py() or 0,
        open=results.select(_OPEN.names).filter(is_open),
    )


def again_in(keys: pa.FixedSizeBinaryArray, before: Sequence[pa.Table]) -> Again:
    """The rows with these keys that stand in `before`: `ShardSums.open` of earlier shards."""
    earlier = pa.concat_tables(before)
    # The last of them counts: what came before it was superseded already.
    ours = latest(earlier.filter(pc.is_in(earlier["row_key"], value_set=keys)))
    return Again(ours["row_key"].combine_chunks(), _counted(ours["status"]))


def _counted(words: pa.ChunkedArray) -> dict[str, int]:
    return {one["values"]: one["counts"] for one in pc.value_counts(words).to_pylist()}


def rows_of(one: Standing) -> Mapping[str, int]:
    """The rows of a shard by where they stand; of one that was dropped, none."""
    match one.state:
        case Dropped():
            return {}
        case Creating() | Live() | Ended():
            return {IN_PROGRESS: one.frozen.n_requests}
        case _ if one.results is not None:
            return one.results.rows
        case _:
            return {WAITING: one.frozen.n_requests}


def word_of(state: State) -> str:
    """Where a shard stands, in a word."""
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


def n_done(one: Standing) -> int:
    """Rows of a shard that the provider has done, as far as it said."""
    match one.state:
        case Live(batch=batch):
            return min(batch.n_done, one.frozen.n_requests)
        case Ended(batch=batch):
            return 0 if was_turned_away(batch) else one.frozen.n_requests
        case Collected():
            return one.frozen.n_requests
        case _:
            return 0


def seconds_left(standings: Iterable[Standing], now: float) -> float | None:
    """Seconds until the rows are done that are not, or None where nothing tells.

    The pace is that of the time since the oldest live batch was created: rows that were done in
    batches created since then, by seconds. It tells once a tenth of the work is done: those rows,
    and all that are not done.
    """
    there = [one for one in standings if not isinstance(one.state, Dropped)]
    live = [one.state.batch.created_at for one in there if isinstance(one.state, Live)]
    since = min(filter(None, live), default=None)
    if since is None or now <= since:
        return None
    n_left = sum(one.frozen.n_requests - n_done(one) for one in there)
    done = sum(
        n_done(one)
        for one in there
        if isinstance(one.state, Live | Ended | Collected) and one.state.batch.created_at >= since
    )
    if not n_left or done < max(1, TELLING_PART * (done + n_left)):
        return None
    return (now - since) * n_left / done
