"""The tables of a checkpoint: parquet that anyone can read, and that is checked when we do."""

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from batchframe.errors import CheckpointCorruptError
from batchframe.layout import unreadable
from batchframe.storage import Storage

__all__ = ["read_table", "write_table"]

#: Columns whose values are all different: a dictionary of them costs time and space.
_UNIQUE = frozenset({"row_key", "id", "body_digest", "request_id"})


def write_table(storage: Storage, path: Path, table: pa.Table) -> None:
    """Write a table, which takes its place when it is whole."""
    with storage.replace(path) as file:
        pq.write_table(
            table,
            file,
            compression="zstd",
            compression_level=1,
            use_dictionary=[name for name in table.column_names if name not in _UNIQUE],
            write_page_checksum=True,
        )


def read_table(
    storage: Storage, path: Path, schema: pa.Schema, columns: Sequence[str] | None = None
) -> pa.Table:
    """A table as it was written, or some of its columns.

    Raises CheckpointCorruptError if it is damaged, CheckpointError if it cannot be read now.
    """
    try:
        # Checked, or a text with a byte that was changed on the disk would be an answer. And not
        # read ahead: that is done by threads of Arrow, which let go of our file when it comes to
        # that, and abort a process that is ending just then (apache/arrow #34314).
        with (
            storage.open(path) as file,
            pq.ParquetFile(file, page_checksum_verification=True, pre_buffer=False) as parquet,
        ):
            fits = parquet.schema_arrow.equals(schema)
            table = parquet.read(columns, use_threads=False) if fits else None
    except (OSError, pa.ArrowException) as error:
        raise unreadable(path, error) from error
    if table is None:
        raise CheckpointCorruptError(f"{path} does not have the columns that were written.")
    return table.select(columns) if columns else table
