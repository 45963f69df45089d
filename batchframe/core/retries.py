"""Which rows go into the next round, and how long to wait before asking again.

Rows are tried again only when nothing was paid for them and another try can help: an overloaded
or broken service, an expired window. What the service refused for good (4xx, refusals, filtered
text), what a person cancelled, and what may have been paid for and got lost (`missing`) is never
sent again silently.
"""

import pyarrow as pa
import pyarrow.compute as pc

from batchframe.core.results import Status

__all__ = ["RETRYABLE_CODES", "hopeless", "latest", "poll_delay", "retry_delay", "unfinished"]

#: Codes of failed rows that another try can help. Those with a number are HTTP statuses of rows
#: whose answer named no code (OpenAI, error codes guide, 2026-08).
RETRYABLE_CODES = (
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
        pc.is_in(code, pa.array(RETRYABLE_CODES)),
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


def retry_delay(attempt: int, *, retry_after: float | None = None) -> float:
    """Seconds to wait after failed try number `attempt` (from 1): 1, 2, 4, ... at most 120.

    The service's own `Retry-After`, in seconds, is never undercut.
    """
    doubled = 2.0 ** min(attempt - 1, 7)  # beyond the limit already, and floats overflow later
    return max(min(doubled, 120.0), retry_after or 0.0)


def poll_delay(age: float, interval: float | None) -> float:
    """Seconds until the next look at a batch that has been live for `age` seconds.

    A tenth of the age, between 0.25 and 60 seconds: a batch of minutes is noticed in seconds, one
    of a day costs one call a minute. `interval` is the user's own choice and is taken as it is.
    """
    return interval if interval is not None else min(max(age / 10, 0.25), 60.0)


def latest(results: pa.Table) -> pa.Table:
    """One result for each row key: of a row tried again, the last, in the order given.

    Its cost is the sum over all tries, so that the costs of a frame are its bill; null if one of
    them is unknown.
    """
    keys = results["row_key"].combine_chunks()
    if len(keys) == 0:
        return results
    encoded = keys.dictionary_encode()
    if len(encoded.dictionary) == len(keys):
        return results
    tries = pa.table(
        {
            "key": encoded.indices,
            "row": pa.array(range(len(keys)), pa.int64()),
            "cost_usd": results["cost_usd"],
        }
    )
    grouped = (
        tries.group_by("key")
        .aggregate(
            [("row", "max"), ("cost_usd", "sum", pc.ScalarAggregateOptions(skip_nulls=False))]
        )
        .sort_by("row_max")
    )
    column = results.schema.get_field_index("cost_usd")
    return results.take(grouped["row_max"]).set_column(
        column, results.schema.field(column), grouped["cost_usd_sum"]
    )
