"""Output and error file lines -> exactly one result per request of a shard.

    bytes --core/lines--> blocks --core/outcomes--> outcomes --collect_results--> Collected

The invariant: the table has one row per row key, in the shard's order, whatever the lines are.
Lines come in any order, twice, for strangers, torn, or not at all; none of that raises, and each
request without a usable line says so in its status.
"""

import json
from binascii import hexlify
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from msgspec.structs import astuple

from batchframe.core.batches import BatchError
from batchframe.core.lines import integer, lines_in, without_halves
from batchframe.core.outcomes import Outcome, read_line, read_lines
from batchframe.core.statuses import Status

__all__ = [
    "COUNTS",
    "RESULT_SCHEMA",
    "Collected",
    "answer_bodies",
    "collect_results",
    "take",
]

_FIELDS: "list[pa.Field[Any]]" = [
    pa.field("row_key", pa.binary(16), nullable=False),
    pa.field("id", pa.string()),
    pa.field("status", pa.string(), nullable=False),
    pa.field("completion", pa.string()),
    pa.field("error_code", pa.string()),
    pa.field("error_message", pa.string()),
    pa.field("input_tokens", pa.int64()),
    pa.field("cached_tokens", pa.int64()),
    pa.field("cache_write_tokens", pa.int64()),
    pa.field("output_tokens", pa.int64()),
    pa.field("reasoning_tokens", pa.int64()),
    pa.field("tool_calls", pa.int64()),
    pa.field("cost_usd", pa.float64()),
    pa.field("price_source", pa.string()),
    pa.field("http_status", pa.int64()),
    pa.field("finish_reason", pa.string()),
    pa.field("model", pa.string()),
    pa.field("request_id", pa.string()),
    pa.field("batch_id", pa.string()),
]

#: One row per request. Null means that the provider did not say; it is never written as 0 or "".
RESULT_SCHEMA = pa.schema(_FIELDS)


@dataclass(frozen=True, slots=True)
class Collected:
    """The results of one batch."""

    #: RESULT_SCHEMA, one row per request, in the shard's order, without costs.
    table: pa.Table
    #: Lines for a request that has another line already.
    n_duplicate: int
    #: Lines whose custom_id is not of this shard.
    n_foreign: int
    #: Lines that do not say which request they answer.
    n_unreadable: int
    #: Tokens over all rows of the table; rows without a number count nothing.
    input_tokens: int
    #: Those of `input_tokens` that the provider had cached.
    cached_tokens: int
    #: Those of `input_tokens` that went into the provider's cache; newer models bill them higher.
    cache_write_tokens: int
    #: Tokens over all rows of the table, reasoning included.
    output_tokens: int
    #: Those of `output_tokens` that were spent on reasoning.
    reasoning_tokens: int


#: The columns of tokens.
COUNTS = (
    "input_tokens",
    "cached_tokens",
    "cache_write_tokens",
    "output_tokens",
    "reasoning_tokens",
)


def collect_results(
    row_keys: pa.FixedSizeBinaryArray,
    ids: pa.StringArray,
    blocks: Iterable[bytes],
    *,
    batch_id: str,
    ended: str,
    batch_errors: Sequence[BatchError] = (),
    files_gone: bool = False,
) -> Collected:
    """Give each request of a shard its one result.

    Of several lines for one request the first with a 2xx answer counts, else the first.

    Args:
        row_keys: The shard's row keys, binary(16) and distinct, in the order of its lines.
        ids: The user's ids, as strings, in the same order.
        blocks: The lines of the output file and of the error file, in any order, one or more whole
            lines in each block. Where requests are without a line they are read once more.
        batch_id: The batch that answered.
        ended: How the batch ended (completed, failed, expired or cancelled), which says what became
            of requests without a line.
        batch_errors: What the provider said of a batch that it refused.
        files_gone: The provider has deleted a file of results: whatever has no line may have been
            in it.

    Returns:
        One row per row key, in their order.

    Raises:
        ValueError: The batch has not ended.
    """
    custom_ids = _digits(row_keys)
    # Columns at once, while a block is in the processor's cache.
    parts = [_read_off(read_lines(block)) for block in blocks]
    lines = pa.Table.from_batches(parts, _OUTCOMES)
    row_of, line_of = _matched(lines, custom_ids)
    n_unreadable = lines["custom_id"].null_count
    n_foreign = row_of.null_count - n_unreadable
    n_duplicate = (len(row_of) - row_of.null_count) - (len(line_of) - line_of.null_count)

    if line_of.null_count:
        # A line that stands within a torn one was read as a part of it, if at all.
        unanswered = set(custom_ids.filter(line_of.is_null()).to_pylist())
        found = map(read_line, chain.from_iterable(map(lines_in, blocks)))
        parts.append(_read_off(line for line in found if line.custom_id in unanswered))
        lines = pa.Table.from_batches(parts, _OUTCOMES)
        _, line_of = _matched(lines, custom_ids)

    without_line = _without_line("gone" if files_gone else ended, batch_errors)
    is_without = line_of.is_null()
    rows_without = pc.indices_nonzero(is_without).to_pylist()
    rest = pa.arange(len(lines), len(lines) + len(rows_without))
    line_of = pc.replace_with_mask(line_of, is_without, rest)
    parts.append(_read_off(without_line(row + 1) for row in rows_without))
    lines = pa.Table.from_batches(parts, _OUTCOMES)
    values = {name: take(lines[name], line_of) for name in _READ}
    return Collected(
        _table(row_keys, ids, values, batch_id),
        n_duplicate=n_duplicate,
        n_foreign=n_foreign,
        n_unreadable=n_unreadable,
        **{name: _sum(values[name]) for name in COUNTS},
    )


def answer_bodies(blocks: Iterable[bytes]) -> dict[str, dict[str, Any]]:
    """Each custom_id's answer as the service gave it, for those who want all of it.

    Of several lines for one custom_id the same one counts as in `collect_results`.

    Args:
        blocks: As in `collect_results`.

    Returns:
        The body of each response by its custom_id, as JSON values; {} where there is none, and
        where a line is not one JSON value, of which the results tell text and tokens all the same.
        Halves of characters are replaced, so that what comes back can be printed and stored.
    """
    chosen: dict[str, tuple[bool, bytes]] = {}
    for line in chain.from_iterable(map(lines_in, blocks)):
        outcome = read_line(line)
        custom_id = outcome.custom_id
        if custom_id is not None and (
            custom_id not in chosen or (outcome.answered and not chosen[custom_id][0])
        ):
            chosen[custom_id] = (outcome.answered, line)
    return {custom_id: _body(line) for custom_id, (_, line) in chosen.items()}


def _body(line: bytes) -> dict[str, Any]:
    try:
        value = json.loads(line.decode("utf-8", "replace"), strict=False, parse_int=integer)
        body = (value.get("response") or {}).get("body")
        if isinstance(body, str):
            body = json.loads(body, strict=False, parse_int=integer)
    except (ValueError, AttributeError, RecursionError):
        return {}
    return _printable(body) if isinstance(body, dict) else {}


def _printable(value: Any) -> Any:
    match value:
        case str():
            return without_halves(value)
        case list():
            return [_printable(item) for item in value]
        case dict():
            return {without_halves(key): _printable(item) for key, item in value.items()}
        case _:
            return value


def _without_line(ended: str, batch_errors: Sequence[BatchError]) -> Callable[[int], Outcome]:
    """What becomes of a request without a line, as a function of its line number, from 1."""
    match ended:
        case "completed":
            result = Outcome(
                Status.MISSING,
                error_code="missing",
                error_message=(
                    "The batch ended, and neither of its files has a line for this request. "
                    "Whether it was billed is unknown."
                ),
            )
        case "gone":
            result = Outcome(
                Status.MISSING,
                error_code="results_expired",
                error_message=(
                    "The provider has deleted the file that held the answer, which was paid for. "
                    "It keeps files for 30 days."
                ),
            )
        case "expired":
            result = Outcome(
                Status.EXPIRED,
                error_code="batch_expired",
                error_message="The completion window ended before the request ran. Not billed.",
            )
        case "cancelled":
            result = Outcome(
                Status.CANCELLED,
                error_code="batch_cancelled",
                error_message="The batch was cancelled before the request ran. Not billed.",
            )
        case "failed":
            return _refused(batch_errors)
        case _:
            message = f"a batch that is {ended!r} has no results yet"
            raise ValueError(message)
    return lambda _: result


def _refused(batch_errors: Sequence[BatchError]) -> Callable[[int], Outcome]:
    # A refused batch runs nothing, so one bad line fails the requests of all the others too.
    named: dict[int, Outcome] = {}
    for error in batch_errors:
        if error.line is not None and error.line not in named:
            named[error.line] = _failed(error)
    whole = next((error for error in batch_errors if error.line is None), None)
    if whole is not None and whole.param == "file_id":
        # Seen just after an upload, and when the file has expired: nothing ran, and a new upload
        # helps (bespokelabs curator issue 116, 2024). The provider's own code says only "invalid".
        rest = _failed(BatchError(code="input_file_not_found", message=whole.message))
    elif whole is not None:
        rest = _failed(whole)
    elif named:
        line, first = next(iter(named.items()))
        others = f" and {len(named) - 1} other lines" if len(named) > 1 else ""
        rest = Outcome(
            Status.FAILED,
            error_code="batch_not_run",
            error_message=(
                f"The batch was refused because of line {line}{others} "
                f"({first.error_code}: {first.error_message}). This request did not run. "
                "Not billed."
            ),
        )
    else:
        rest = _failed(BatchError(code="", message=""))
    return lambda line: named.get(line, rest)


def _failed(error: BatchError) -> Outcome:
    return Outcome(
        Status.FAILED,
        error_code=error.code or "batch_failed",
        error_message=error.message or "The batch failed and the service gave no reason.",
    )


#: The columns that are read off outcomes; the others are the shard's, or filled in later.
_READ = Outcome.__struct_fields__[: -len(("custom_id", "answered"))]
#: Outcomes as columns.
_OUTCOMES = pa.schema(
    [
        *map(RESULT_SCHEMA.field, _READ),
        pa.field("custom_id", pa.string()),
        pa.field("answered", pa.bool_()),
    ]
)


def _read_off(outcomes: Iterable[Outcome]) -> pa.RecordBatch:
    """The columns of outcomes, one entry each, in their order."""
    # Of no outcomes there are no columns to turn: each is empty then.
    columns = list(zip(*map(astuple, outcomes), strict=True)) or [()] * len(_OUTCOMES)
    return pa.record_batch(list(map(pa.array, columns, _OUTCOMES.types)), schema=_OUTCOMES)


def _digits(keys: pa.FixedSizeBinaryArray) -> pa.StringArray:
    """Keys as their lines have them: two hexadecimal digits for each byte."""
    n_bytes = keys.type.byte_width
    data = keys.buffers()[1].slice(keys.offset * n_bytes, len(keys) * n_bytes)
    # All at once: a string for each key would take as long as to look at it.
    ends = pa.arange(0, 2 * len(data) + 1, 2 * n_bytes).cast(pa.int32())
    return pa.StringArray.from_buffers(len(keys), ends.buffers()[1], pa.py_buffer(hexlify(data)))


def _matched(lines: pa.Table, custom_ids: pa.StringArray) -> tuple[pa.ChunkedArray, pa.Int64Array]:
    """Which request each line is for, and which line is each request's result; null is none."""
    row_of = pc.index_in(lines["custom_id"], value_set=custom_ids)
    # Of several the first in this order: lines with an answer, and then all lines.
    answered = pc.indices_nonzero(lines["answered"]).cast(pa.int64())
    order = pa.concat_arrays([answered, pa.arange(0, len(lines))])
    rows = pa.arange(0, len(custom_ids)).cast(pa.int32())
    return row_of, order.take(pc.index_in(rows, value_set=row_of.combine_chunks().take(order)))


def take(column: pa.ChunkedArray, positions: pa.Int64Array) -> pa.ChunkedArray:
    """The entries of a column at `positions`, and null where a position is null."""
    if positions.equals(pa.arange(0, len(column))):  # as they stand: there is nothing to copy
        return column
    # Arrow's strings count their bytes in 32 bits, and their `take` fails above 2 GiB in all,
    # wherever chunks are cut. A column's text may be more: it goes by 64 bits, and back in pieces.
    try:
        return column.take(positions)
    except pa.ArrowInvalid:
        wide = column.cast(pa.large_string()).combine_chunks()
        return pa.chunked_array(_pieces(wide, positions), pa.string())


def _pieces(wide: pa.LargeStringArray, positions: pa.Int64Array) -> Iterator[pa.StringArray]:
    try:
        yield wide.take(positions).cast(pa.string())
    except pa.ArrowInvalid:
        if len(positions) < 2:
            raise
        half = len(positions) // 2
        yield from _pieces(wide, positions[:half])
        yield from _pieces(wide, positions[half:])


def _sum(counts: pa.ChunkedArray) -> int:
    most = pc.max(counts).as_py() or 0
    if most * len(counts) < 2**63:
        return pc.sum(counts).as_py() or 0
    return sum(filter(None, counts.to_pylist()))  # Arrow's sum would go round


def _table(
    row_keys: pa.FixedSizeBinaryArray,
    ids: pa.StringArray,
    values: Mapping[str, pa.ChunkedArray],
    batch_id: str,
) -> pa.Table:
    n = len(row_keys)
    columns = {
        "row_key": row_keys,
        "id": ids.cast(pa.string()),
        "cost_usd": pa.nulls(n, pa.float64()),
        "price_source": pa.nulls(n, pa.string()),
        "batch_id": pa.repeat(pa.scalar(batch_id, pa.string()), n),
        **values,
    }
    return pa.table(columns, schema=RESULT_SCHEMA)
