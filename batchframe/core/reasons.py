"""Results that are not ok -> why: one entry for all rows with the same reason.

Messages that differ in ids and numbers only are one reason, or a million of them would be.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from batchframe.core.statuses import Status
from batchframe.core.texts import printable

__all__ = ["FOR_REASONS", "Failure", "by_reason", "not_ok"]

#: The columns of results that tell why.
FOR_REASONS = ("row_key", "id", "status", "error_code", "error_message")
#: Ids that are shown for each reason.
_SHOWN_IDS = 3
#: Characters that are shown of a message, and of a code or an id.
_MESSAGE_CHARS, _WORD_CHARS = 300, 60
#: What differs between messages that mean the same: words with a digit, such as request ids.
_NUMBERED = r"[\w-]*\d[\w.-]*"


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


def not_ok(results: pa.Table, gone: Sequence[pa.FixedSizeBinaryArray]) -> pa.Table:
    """Of results with the columns FOR_REASONS those that are not ok, without the keys in `gone`."""
    table = results.filter(pc.not_equal(results["status"], Status.OK))
    if not gone:
        return table
    return table.filter(pc.invert(pc.is_in(table["row_key"], value_set=pa.concat_arrays(gone))))


def by_reason(table: pa.Table) -> tuple[Failure, ...]:
    """The reasons of results, the most frequent first; their first ids stand for each.

    Args:
        table: Results that are not ok, with the columns FOR_REASONS.
    """
    columns = {
        name: pc.fill_null(table[name].combine_chunks(), "")
        for name in ("status", "error_code", "error_message")
    }
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
    return tuple(
        Failure(
            status=group["status"],
            code=printable(group["code"], _WORD_CHARS),
            message=printable(message[group["row_min"]].as_py(), _MESSAGE_CHARS),
            n_rows=group["row_count"],
            ids=tuple(
                printable(id_ or "", _WORD_CHARS)
                for id_ in table["id"].take(pa.array(group["rows"], pa.int64())).to_pylist()
            ),
        )
        for group in groups.to_pylist()
    )
