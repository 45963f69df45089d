"""Polars DataFrames at the door."""

from collections.abc import Hashable

import polars as pl
import pyarrow as pa

from batchframe.errors import ColumnError

__all__ = ["attach", "column", "labels"]


def labels(frame: pl.DataFrame) -> list[Hashable]:
    """The names of the columns, in order."""
    return list(frame.columns)


def column(frame: pl.DataFrame, label: Hashable) -> pa.Array:
    """One column as Arrow, one entry per row."""
    series = frame.get_column(str(label))
    if series.dtype == pl.Object:
        raise ColumnError(
            f"Column {label!r} holds Python objects (pl.Object), which cannot be read. "
            f"Cast it first, for example with pl.col({label!r}).map_elements(str, pl.String)"
        )
    # The oldest layout has plain offsets; string views lack some of Arrow's kernels.
    return series.rechunk().to_arrow(compat_level=pl.CompatLevel.oldest())


def attach(frame: pl.DataFrame, columns: pa.Table, *, like: Hashable) -> pl.DataFrame:  # noqa: ARG001 - pandas needs it
    """A new frame with the columns appended by position."""
    return frame.with_columns(
        pl.Series(name, columns[name].combine_chunks()) for name in columns.column_names
    )
