"""Results -> the new columns of a frame: one entry per input row, in the frame's order.

    results (any order, each once) + positions (one per input row) --take--> columns

The invariant: rows are joined by position and by nothing else, so that an entry can neither be
lost nor doubled. All types are declared, so that a column without a single value keeps its own.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import pyarrow as pa
import pyarrow.compute as pc

from batchframe.core.results import take
from batchframe.core.statuses import Status

__all__ = ["Form", "column_names", "result_columns"]

# The texts of answers -> their values, or None where they stay text; and why each does not fit.
_Reader: TypeAlias = Callable[[Sequence[str | None]], tuple[pa.Array | None, list[str | None]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """What the answers of a call become, where they are more than text."""

    #: One entry per text, in order; null texts are null values.
    read: _Reader
    #: Give the texts as well, as `<output>_text`.
    with_text: bool = True
    #: Give each field of a struct as a column `<output>_<field>`, instead of the struct.
    flat: bool = False


# Suffix of the output's name -> type, in the order that the user sees.
_ALWAYS: dict[str, pa.DataType] = {
    "": pa.string(),
    "_status": pa.string(),
    "_error": pa.string(),
    "_input_tokens": pa.int64(),
    "_cached_tokens": pa.int64(),
    "_output_tokens": pa.int64(),
    "_reasoning_tokens": pa.int64(),
    "_cost_usd": pa.float64(),
}
_DETAILS: dict[str, pa.DataType] = {
    "_finish_reason": pa.string(),
    "_model": pa.string(),
    "_request_id": pa.string(),
    "_batch_id": pa.string(),
}


def column_names(output: str, details: bool) -> list[str]:  # noqa: FBT001 - a name and a flag
    """The names of the new columns, in order."""
    return [output + suffix for suffix in _types(details=details)]


def result_columns(
    results: pa.Table,
    positions: pa.Int64Array,
    *,
    skipped: pa.BooleanArray | None,
    output: str,
    details: bool,
    form: Form | None = None,
    unanswered: str | None = Status.MISSING,
) -> pa.Table:
    """The new columns, one entry per input row, in the frame's order.

    Rows that share a result (identical bodies that were sent once) show its tokens, but only the
    first of them its cost; the others cost 0.0, so that the column's sum is the bill.

    Args:
        results: Rows of RESULT_SCHEMA, with costs.
        positions: For each input row the row of `results`, or null where it has none.
        skipped: For each input row whether no request was made for it; None: one for each. Where
            there is a result as well, the result counts.
        output: Names the columns.
        details: Add finish reason, model, request id and batch id.
        form: What answers become. Those that do not fit are `invalid`, with the reason. Where they
            have a type of their own, the first column has it.
        unanswered: The status of rows that were not skipped and have no result.
    """
    values = None
    if form is not None:
        results, values = _formed(results, form)
    no_result = pc.is_null(positions)
    if skipped is None:
        skipped = pa.repeat(pa.scalar(value=False), len(positions))
    skipped = pc.and_(no_result, skipped)

    columns: dict[str, pa.Array | pa.ChunkedArray] = {
        "": take(results["completion"], positions),
        "_status": pc.if_else(
            no_result,
            pc.if_else(skipped, Status.SKIPPED, pa.scalar(unanswered, pa.string())),
            take(results["status"], positions),
        ),
        "_error": take(_errors(results), positions),
        "_cost_usd": pc.if_else(
            pc.or_(skipped, _repeated(positions)), 0.0, take(results["cost_usd"], positions)
        ),
    }
    types = _types(details=details)
    for suffix in types:
        if suffix not in columns:
            columns[suffix] = take(results[suffix.removeprefix("_")], positions)
    if values is not None:
        text = {"_text": columns[""]} if form is not None and form.with_text else {}
        taken = values.take(positions)
        first = {"": taken}
        if form is not None and form.flat:
            first = {f"_{f.name}": pc.struct_field(taken, f.name) for f in taken.type}
        rest = {suffix: type_ for suffix, type_ in types.items() if suffix}
        columns = columns | text | first
        types = {name: columns[name].type for name in (*first, *text)} | rest
    schema = pa.schema([(output + suffix, type_) for suffix, type_ in types.items()])
    return pa.table([columns[suffix] for suffix in types], schema=schema)


def _formed(results: pa.Table, form: Form) -> tuple[pa.Table, pa.Array | None]:
    """Results of which those that do not fit say so, and the values of those that do."""
    answered = pc.equal(results["status"], Status.OK)
    texts = pc.if_else(answered, results["completion"], pa.scalar(None, pa.string()))
    values, reasons = form.read(texts.to_pylist())
    reason = pa.array(reasons, pa.string())
    for name, new in (
        ("status", pa.scalar(Status.INVALID, pa.string())),
        ("error_code", pa.scalar("invalid")),
        ("error_message", reason),
    ):
        place = results.schema.get_field_index(name)
        column = pc.if_else(pc.is_valid(reason), new, results[name])
        results = results.set_column(place, results.schema.field(place), column)
    return results, values


def _types(*, details: bool) -> dict[str, pa.DataType]:
    return _ALWAYS | _DETAILS if details else _ALWAYS


def _errors(results: pa.Table) -> pa.ChunkedArray:
    code, message = results["error_code"], results["error_message"]
    # Null where one of them is, and so the one that is not.
    return pc.coalesce(pc.binary_join_element_wise(code, message, ": "), code, message)


def _repeated(positions: pa.Int64Array) -> pa.BooleanArray:
    # True where a row's result is an earlier row's as well. Dictionary codes are given in the order
    # of first sight: one that is not above all before it has been seen.
    codes = pc.fill_null(positions, -1).dictionary_encode().indices.cast(pa.int64())
    highest = pc.cumulative_max(codes)
    before = pa.concat_arrays([pa.array([-1], pa.int64()), highest])[:-1]
    return pc.and_(pc.is_valid(positions), pc.less_equal(codes, before))
