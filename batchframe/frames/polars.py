"""Polars DataFrames at the door, and LazyFrames by way of parquet files."""

import io
from collections.abc import Hashable
from pathlib import Path
from typing import Any
from uuid import UUID

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from batchframe.errors import ColumnError

__all__ = [
    "attach",
    "column",
    "index_names",
    "labels",
    "lists",
    "new_labels",
    "objects",
    "scan",
    "sink",
    "sink_empty",
    "snapshot",
]


def labels(frame: pl.DataFrame) -> list[Hashable]:
    """The names of the columns, in order."""
    return list(frame.columns)


def index_names(frame: pl.DataFrame) -> list[Hashable]:  # noqa: ARG001 - pandas has one
    """No names: there is no index."""
    return []


def column(frame: pl.DataFrame, label: Hashable) -> pa.Array:
    """One column as Arrow, one entry per row."""
    series = frame.get_column(str(label))
    if series.dtype == pl.Object:
        values = series.to_list()
        if all(isinstance(value, UUID | None) for value in values):
            return pa.array([value and value.bytes for value in values], pa.uuid())
        raise ColumnError(
            f"Column {label!r} holds Python objects (pl.Object), which cannot be read. "
            f"Cast it first, for example with pl.col({label!r}).map_elements(str, pl.String)"
        )
    try:
        # The oldest layout has plain offsets; string views lack some of Arrow's kernels.
        return series.rechunk().to_arrow(compat_level=pl.CompatLevel.oldest())
    except pa.ArrowInvalid as error:  # 128-bit integers
        raise ColumnError(
            f"Column {label!r} holds {series.dtype}, which Arrow lacks: {series[0]!r} in row 0. "
            f"Cast it first, for example with pl.col({label!r}).cast(pl.String)"
        ) from error


def lists(frame: pl.DataFrame, label: Hashable) -> list[Any] | None:
    """A column of lists as Python values, None where one is null; None for other columns."""
    series = frame.get_column(str(label))
    return series.to_list() if isinstance(series.dtype, pl.List | pl.Array) else None


def objects(frame: pl.DataFrame, label: Hashable) -> list[Any] | None:  # noqa: ARG001 - pandas has some
    """None: the values of a column have one type."""
    return None


def new_labels(columns: pa.Table) -> list[str]:
    """What `attach` calls the new columns."""
    return list(columns.column_names)


def attach(frame: pl.DataFrame, columns: pa.Table, *, like: Hashable) -> pl.DataFrame:  # noqa: ARG001 - pandas needs it
    """A new frame with the columns appended by position."""
    return frame.with_columns(pl.Series(name, columns[name]) for name in columns.column_names)


def sink_empty(frame: pl.LazyFrame, path: Path) -> None:
    """Write a parquet file with the columns of a query and no rows; the query does not run.

    Raises ColumnError for a column that such a file, or Arrow, has no type for.
    """
    schema = frame.collect_schema()
    for name, dtype in schema.items():
        file = io.BytesIO()
        try:
            pl.DataFrame(schema={name: dtype}).write_parquet(file)
            pq.read_schema(file)
        except (pl.exceptions.PolarsError, pa.ArrowException) as error:
            raise ColumnError(
                f"Column {name!r} holds {dtype}, which parquet cannot hold for Arrow: "
                f"{str(error).strip().rstrip('.')}. Nothing was sent. Cast it first, for example "
                f"with pl.col({name!r}).cast(pl.String), or drop it."
            ) from None
    pl.DataFrame(schema=schema).write_parquet(path)


def sink(frame: pl.LazyFrame, path: Path) -> None:
    """Run the query, once and streaming, into a parquet file."""
    frame.sink_parquet(path)


def scan(path: Path, frame: pl.LazyFrame) -> pl.LazyFrame:
    """The rows of a parquet file, with the dtypes that the columns of `frame` have."""
    return pl.scan_parquet(path).cast(frame.collect_schema())


def snapshot(frame: pl.DataFrame) -> pl.DataFrame:
    """The frame as it is, whatever becomes of the user's."""
    return frame.clone()
