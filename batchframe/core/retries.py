"""Which rows go into the next round, and how long to wait before asking again.

Rows are tried again only when nothing was paid for them and another try can help: an overloaded
or broken service, an expired window. What the service refused for good (4xx, refusals, filtered
text), what a person cancelled, and what may have been paid for and got lost (`missing`) is never
sent again silently.
"""

from fractions import Fraction

import pyarrow as pa
import pyarrow.compute as pc

from batchframe.core.batches import BatchSeen, BatchStatus
from batchframe.core.results import COUNTS
from batchframe.core.statuses import Status

__all__ = [
    "PASSING_REFUSALS",
    "hopeless",
    "is_proof",
    "latest",
    "poll_delay",
    "queue_delay",
    "retry_delay",
    "too_many",
    "unfinished",
    "was_turned_away",
]

#: Codes of a refused create that pass by themselves (OpenAI, error codes guide, 2026-08).
PASSING_REFUSALS = frozenset(
    {"rate_limit_exceeded", "request_timeout", "server_error", "token_limit_exceeded"}
)

#: Codes of failed rows that another try can help. Those with a number are HTTP statuses of rows
#: whose answer named no code (OpenAI, error codes guide, 2026-08).
_RETRYABLE_CODES = (
    "batch_not_run",
    "input_file_not_found",
    "insufficient_quota",
    "rate_limit_exceeded",
    "request_timeout",
    "server_error",
    "token_limit_exceeded",
)
_RETRYABLE_HTTP = (0, 408, 409, 429)
#: An account without money refuses everything until a person pays: a run stops at it, and a later
#: call tries again (OpenAI, error codes guide, 2026-08).
_NO_MONEY = "insufficient_quota"
_SETTLED = (Status.OK, Status.TRUNCATED)
#: The model was asked and said something, if only that it declines.
_SAID = (*_SETTLED, Status.FILTERED, Status.REFUSED)
#: Rows that must have ended before their part of failures speaks for those to come: so many has S3
#: Batch Operations, which ends a job when more than half of them failed (AWS, S3 user guide, 2026).
_FEWEST_ENDED = 1_000


def unfinished(results: pa.Table, *, retry_failed: bool = False) -> pa.BooleanArray:
    """True for each result that may be tried again.

    Args:
        results: Rows of RESULT_SCHEMA.
        retry_failed: Also those whose failure was permanent, cancelled or missing.

    Returns:
        One entry per result, in order.
    """
    status = results["status"].combine_chunks()
    if retry_failed:
        return pc.invert(pc.is_in(status, pa.array(_SETTLED, pa.string())))
    code = pc.fill_null(results["error_code"].combine_chunks(), "")
    http = pc.fill_null(results["http_status"].combine_chunks(), -1)
    transient = pc.or_(
        pc.is_in(code, pa.array(_RETRYABLE_CODES)),
        pc.or_(pc.is_in(http, pa.array(_RETRYABLE_HTTP, pa.int64())), pc.greater_equal(http, 500)),
    )
    return pc.or_(
        pc.equal(status, Status.EXPIRED), pc.and_(pc.equal(status, Status.FAILED), transient)
    )


def hopeless(results: pa.Table, *, proven: bool) -> str | None:
    """Why sending more of the same would be in vain, as "code: message", or None.

    So it is when the account has no money; and, unless the spec is `proven` by an answer, when
    every request of a shard failed for the same reason that another try does not help.
    """
    status, code = results["status"].combine_chunks(), results["error_code"].combine_chunks()
    broke = pc.indices_nonzero(pc.equal(code, _NO_MONEY))
    same = (
        not proven
        and pc.all(pc.equal(status, Status.FAILED)).as_py()
        and pc.count_distinct(code, mode="all").as_py() == 1
        and not pc.any(unfinished(results)).as_py()
    )
    if not len(broke) and not (same and results.num_rows):
        return None
    first = broke[0].as_py() if len(broke) else 0
    return f"{code[first].as_py()}: {results['error_message'][first].as_py()}"


def is_proof(results: pa.Table) -> bool:
    """True if the model answered one of these, in whatever words: the service takes the spec."""
    return bool(pc.any(pc.is_in(results["status"], pa.array(_SAID, pa.string()))).as_py())


def too_many(n_failed: int, n_ended: int, n_rows: int, ratio: float) -> bool:
    """True if more than `ratio` of a call's rows will have no answer, or it looks so.

    It is certain when more rows failed than `ratio` allows of all; and it looks so when they are
    more than `ratio` of at least 1,000 that ended.

    Args:
        n_failed: Rows that ended without an answer, and are not tried again.
        n_ended: Rows that are not tried again, answered or not.
        n_rows: All rows.
        ratio: From 0 to 1, as it is written: 0.29 of 100 rows are 29.
    """
    exact = Fraction(repr(float(ratio)))
    looks_so = n_ended >= _FEWEST_ENDED and n_failed > exact * n_ended
    return n_failed > exact * n_rows or looks_so


def retry_delay(attempt: int, *, retry_after: float | None = None) -> float:
    """Seconds to wait after failed try number `attempt` (from 1): 1, 2, 4, ... at most 120.

    The service's own `Retry-After`, in seconds, is never undercut.
    """
    doubled = 2.0 ** min(attempt - 1, 7)  # beyond the limit already, and floats overflow later
    return max(min(doubled, 120.0), retry_after or 0.0)


def was_turned_away(batch: BatchSeen) -> bool:
    """True for a batch that failed because the queue was full, before anything of it ran."""
    return (
        batch.status is BatchStatus.FAILED
        and batch.output_file_id is None
        and any(error.code == "token_limit_exceeded" for error in batch.errors)
    )


def queue_delay(attempt: int) -> float:
    """Seconds until a batch that was turned away is sent again: 5, 60, 120, ... at most 1,800.

    The first time teaches the limit, and then the batch waits for room among our own; from the
    second on, others fill the queue. Each attempt uploads its file anew, and a full queue empties
    over hours.
    """
    return 5.0 if attempt == 1 else min(60.0 * 2.0 ** min(attempt - 2, 5), 1800.0)


def poll_delay(age: float, interval: float | None, *, is_listed: bool = False) -> float:
    """Seconds until the next look at a batch that has been live for `age` seconds.

    A tenth of the age, between 0.25 and 60 seconds: a batch of minutes is noticed in seconds, one
    of a day costs one call a minute. At most 15 seconds where one call lists it with others: the
    place that one of many leaves in a queue is filled the sooner. `interval` is the user's own
    choice and is taken as it is.
    """
    longest = 15.0 if is_listed else 60.0
    return interval if interval is not None else min(max(age / 10, 0.25), longest)


def latest(results: pa.Table) -> pa.Table:
    """One result for each row key: of a row tried again, the last, in the order given.

    Where `results` has columns of cost and tokens, they are summed over all tries, so that those
    of a frame are its bill. A sum of costs is null if one of them is unknown.
    """
    keys = results["row_key"].combine_chunks()
    encoded = keys.dictionary_encode()
    if len(encoded.dictionary) == len(keys):
        return results
    row = pa.array(range(len(keys)), pa.int64())
    summed = [name for name in _SUMMED if name in results.column_names]
    tries = pa.table({"key": encoded.indices, "row": row, **{n: results[n] for n in summed}})
    grouped = (
        tries.group_by("key")
        .aggregate([("row", "max"), *((name, "sum", _SUMMED[name]) for name in summed)])
        .sort_by("row_max")
    )
    # By a filter: to take rows of more than 2 GiB of text fails (pyarrow 26).
    last = results.filter(pc.is_in(row, value_set=grouped["row_max"].combine_chunks()))
    for name in summed:
        place = last.schema.get_field_index(name)
        last = last.set_column(place, last.schema.field(place), grouped[f"{name}_sum"])
    return last


# An unknown cost makes the sum unknown; a try without usage reported none.
_SUMMED = {
    "cost_usd": pc.ScalarAggregateOptions(skip_nulls=False),
    **dict.fromkeys(COUNTS, pc.ScalarAggregateOptions(skip_nulls=True, min_count=1)),
}
