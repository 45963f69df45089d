"""Parquet in, parquet out: frames that are larger than memory.

    files --ids, checked--> nothing, or an error
          --windows of rows--> shards --> batches --> results in the checkpoint
          --windows of rows + their results--> the target, as it is when all of it is written

All rows are read three times, the last time with all columns, and a window of them is held only
while it is looked at. What grows with the number of rows are the ids, 16 bytes for each row's key,
and about 100 bytes more at the end, where answers are looked up (measured, 2026-11).
"""

import functools
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from operator import attrgetter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from batchframe.answers import find_windows
from batchframe.checkpoint import Checkpoint
from batchframe.core.columns import result_columns
from batchframe.core.requests import Rows
from batchframe.core.results import RESULT_SCHEMA
from batchframe.errors import ColumnError, InputError, ParameterError
from batchframe.frames import inputs
from batchframe.frames.calls import rows_of_table
from batchframe.frames.failures import Failures
from batchframe.frames.questions import Call
from batchframe.frames.sending import unanswered
from batchframe.frames.settings import Columns
from batchframe.frames.sources import Source
from batchframe.storage import check_replaceable, replacing

__all__ = ["check_target", "write_answers"]


def write_answers(
    source: Source,
    target: Path,
    call: Call,
    id_col: str,
    columns: Columns,
    send: Callable[
        [Callable[[], Iterable[Rows]]], tuple[Checkpoint, list[pa.FixedSizeBinaryArray]]
    ],
    *,
    prices: Mapping[str, Any] | None,
) -> None:
    """Have the rows of a source answered, and write them with their answers.

    Args:
        source: The rows.
        target: The file that takes its place, whole, when all is written.
        call: What the rows ask.
        id_col: The column of the ids.
        columns: What the call says of new columns and rows.
        send: Reads all windows of rows, so that a mistake in the last is told before the first is
            sent; sends them, waits, and gives the checkpoint that has their results, and for each
            window the keys of its requests.
        prices: Rates that hold instead of those of the checkpoint.

    Raises what the call says of rows without an answer; then the target stays as it was.
    """
    columns_of = functools.partial(
        result_columns, output=columns.output, details=columns.details, form=call.form
    )
    nothing = RESULT_SCHEMA.empty_table()
    empty = columns_of(nothing, pa.array([], pa.int64()), skipped=None)
    _check(source, target, call, id_col, new=empty.column_names, output=columns.output)
    needed = _labels(call, id_col)

    def rows_of(window: pa.Table, start: int) -> Rows:
        try:
            return rows_of_table(window, call, id_col, nulls=columns.nulls)
        except InputError as error:
            if not start:
                raise
            raise type(error)(f"{error} Rows count from row {start} of the source.") from None

    def windows() -> Iterator[Rows]:
        return map(rows_of, source.windows(needed), source.starts(needed))

    starts = source.starts()  # of all columns, whose damage is told before the first row is sent
    # Where nothing is asked no key is needed. Whoever sends looks at all rows before that.
    is_asked = any(map(attrgetter("n_asked"), windows()))
    checkpoint, keys = send(windows) if is_asked else (None, [])
    status = None if checkpoint is None else unanswered(checkpoint)

    def answered(window: pa.Table) -> pa.Table:
        results, positions = nothing, pa.nulls(len(window), pa.int64())
        skipped = pa.repeat(pa.scalar(value=True), len(window))
        if checkpoint is not None:
            results, positions, own_keys, _ = next(answers)
            skipped = own_keys.is_null()
        made = columns_of(results, positions, skipped=skipped, unanswered=status)
        if failures.matter and checkpoint is not None:
            failures.look(made, window[id_col].combine_chunks(), results, positions)
        return pa.table([*window.columns, *made.columns], schema=schema)

    failures = Failures(columns)
    answers = (
        iter(()) if checkpoint is None else find_windows(_apart(keys, starts), checkpoint, prices)
    )
    schema = pa.schema([*source.schema, *empty.schema], source.schema.metadata)
    with replacing(target) as path, pq.ParquetWriter(path, schema) as writer:
        try:
            # By no loop's variable, which would hold a window while the next one is made.
            deque(map(writer.write_table, map(answered, source.windows())), maxlen=0)
        finally:
            source.check_unchanged()
        failures.check()  # before the target is replaced


def _apart(
    keys: list[pa.FixedSizeBinaryArray], starts: Sequence[int]
) -> list[pa.FixedSizeBinaryArray]:
    """The same keys, apart where other windows start."""
    together = pa.concat_arrays([pa.array([], pa.binary(16)), *keys])
    ends = (*starts[1:], len(together))
    return [together[start:end] for start, end in zip(starts, ends, strict=True)]


def _check(
    source: Source, target: Path, call: Call, id_col: str, *, new: Sequence[str], output: str
) -> None:
    """Raise an InputError for columns and paths that do not fit."""
    names: list[Hashable] = list(source.schema.names)
    for label, role in (*call.question.columns, (id_col, "id_col")):
        inputs.check_label(label, role, names, [])
    for name, column in call.own.items():
        inputs.check_label(column.label, name, names, [])
    inputs.check_free(new, names, output)
    check_target(target)
    inputs.ids(source.column(id_col), id_col)  # unique over all windows


def check_target(target: Path) -> None:
    """Raise ParameterError unless a file can be written there."""
    if not target.parent.is_dir():
        raise ParameterError(
            f"There is no directory {target.parent} for target={str(target)!r}. Nothing was sent."
        )
    check_replaceable(target)


def _labels(call: Call, id_col: str) -> list[str]:
    """The columns that rows are made of, each once."""
    asked = [label for label, _ in call.question.columns]
    own = [column.label for column in call.own.values()]
    labels = dict.fromkeys((*asked, *own, id_col))
    if not all(isinstance(label, str) for label in labels):
        raise ColumnError("The columns of parquet files have names that are text.")
    return [str(label) for label in labels]
