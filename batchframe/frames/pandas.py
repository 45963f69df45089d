"""pandas DataFrames at the door."""

from collections.abc import Hashable

import pandas as pd
import pyarrow as pa

from batchframe.errors import ColumnError

__all__ = ["attach", "column", "labels"]

#: The dtypes of new columns beside NumPy and pandas' own: missing values stay missing, and
#: integers stay integers.
_DTYPES = {
    pa.string(): pd.StringDtype(na_value=float("nan")),  # the `str` of pandas 3
    pa.int64(): pd.Int64Dtype(),
    pa.float64(): pd.Float64Dtype(),
}


def labels(frame: pd.DataFrame) -> list[Hashable]:
    """The labels of the columns, in order."""
    if isinstance(frame.columns, pd.MultiIndex):
        raise ColumnError(
            "The frame's columns are a MultiIndex, whose labels new columns cannot join. Flatten "
            "them first: df.columns = ['_'.join(map(str, label)) for label in df.columns]"
        )
    return list(frame.columns)


def column(frame: pd.DataFrame, label: Hashable) -> pa.Array:
    """One column as Arrow, one entry per row; None, NaN, NaT and NA become null."""
    series = frame[label]
    try:
        array = pa.array(series, from_pandas=True)
    except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
        values = series[series.notna()]
        kinds = sorted({type(value).__name__ for value in values})
        first = next(i for i, known in enumerate(series.notna()) if known) if len(values) else 0
        raise ColumnError(
            f"Column {label!r} (dtype {series.dtype}, from row {first} on with values of type "
            f"{', '.join(kinds)}) cannot be read: {error}. "
            f"Cast it first: df[{label!r}] = df[{label!r}].astype(str)"
        ) from error
    return array.combine_chunks() if isinstance(array, pa.ChunkedArray) else array


def attach(frame: pd.DataFrame, columns: pa.Table, *, like: Hashable) -> pd.DataFrame:
    """A new frame with the columns appended by position; index and subclass stay.

    Where the column `like` is of Arrow's dtypes, so are the new ones.
    """
    if isinstance(frame[like].dtype, pd.ArrowDtype):
        converted = columns.to_pandas(types_mapper=pd.ArrowDtype)
    else:
        converted = columns.to_pandas(types_mapper=_DTYPES.get)
    return frame.assign(**{name: converted[name].array for name in columns.column_names})
