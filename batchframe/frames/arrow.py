"""pyarrow Tables at the door."""

from collections.abc import Hashable
from typing import Any

import pyarrow as pa

__all__ = [
    "attach",
    "column",
    "index_names",
    "labels",
    "lists",
    "new_labels",
    "objects",
    "snapshot",
]


def labels(table: pa.Table) -> list[Hashable]:
    """The names of the columns, in order."""
    return list(table.column_names)


def index_names(table: pa.Table) -> list[Hashable]:  # noqa: ARG001 - pandas has one
    """No names: there is no index."""
    return []


def column(table: pa.Table, label: Hashable) -> pa.Array:
    """One column as one array, one entry per row."""
    chunks = table.column(str(label))
    if pa.types.is_string(chunks.type):  # whose 32 bits may be too few for all chunks together
        chunks = chunks.cast(pa.large_string())
    return chunks.chunk(0) if chunks.num_chunks == 1 else chunks.combine_chunks()


def lists(table: pa.Table, label: Hashable) -> list[Any] | None:
    """A column of lists as Python values, None where one is null; None for other columns."""
    chunks = table.column(str(label))
    kind = chunks.type
    is_nested = (
        pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    )
    return chunks.to_pylist() if is_nested else None


def objects(table: pa.Table, label: Hashable) -> list[Any] | None:  # noqa: ARG001 - pandas has some
    """None: the values of a column have one type."""
    return None


def new_labels(columns: pa.Table) -> list[str]:
    """What `attach` calls the new columns."""
    return list(columns.column_names)


def attach(table: pa.Table, columns: pa.Table, *, like: Hashable) -> pa.Table:  # noqa: ARG001 - pandas needs it
    """A new table with the columns appended by position; its metadata stays."""
    for field in columns.schema:
        table = table.append_column(field, columns[field.name])
    return table


def snapshot(table: pa.Table) -> pa.Table:
    """The table itself, which does not change."""
    return table
