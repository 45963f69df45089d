"""pandas DataFrames at the door."""

import json
from collections.abc import Hashable
from datetime import datetime
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from batchframe.errors import ColumnError, RowError

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

#: The dtypes of new columns beside NumPy and pandas' own: missing values stay missing, and
#: integers stay integers.
_DTYPES = {
    pa.string(): pd.StringDtype(na_value=float("nan")),  # the `str` of pandas 3
    pa.int64(): pd.Int64Dtype(),
    pa.float64(): pd.Float64Dtype(),
    pa.bool_(): pd.BooleanDtype(),
}


def labels(frame: pd.DataFrame) -> list[Hashable]:
    """The labels of the columns, in order."""
    if isinstance(frame.columns, pd.MultiIndex):
        raise ColumnError(
            "The frame's columns are a MultiIndex, whose labels new columns cannot join. Flatten "
            "them first: df.columns = ['_'.join(map(str, label)) for label in df.columns]"
        )
    return list(frame.columns)


def index_names(frame: pd.DataFrame) -> list[Hashable]:
    """The names of the index, where users look for a column that is none."""
    return list(frame.index.names)


def column(frame: pd.DataFrame, label: Hashable) -> pa.Array:
    """One column as Arrow, one entry per row; None, NaN, NaT and NA become null."""
    # Copied: Arrow would look at NumPy's own memory, which the user may write to while a run waits.
    series = frame[label].copy()
    try:
        array = pa.array(series, from_pandas=True)
    except UnicodeEncodeError:
        row, value = next(pair for pair in enumerate(series) if not _is_whole(pair[1]))
        raise RowError(
            f"Column {label!r} has half a character (a lone surrogate) in row {row}, which cannot "
            f"be sent: {value!r:.60}. Replace it first: df[{label!r}] = "
            f"df[{label!r}].str.encode('utf-8', 'replace').str.decode('utf-8')"
        ) from None
    except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
        is_nested = any(isinstance(value, list | dict) for value in series)
        raise ColumnError(
            f"Column {label!r} of dtype {series.dtype} cannot be read as values of one type: "
            f"{_examples(series)}. "
            + (
                "Make texts, or lists of chat messages, of all of them first."
                if is_nested  # str() would make "[{'role': ...", which nobody means
                else f"Cast it first: df[{label!r}] = df[{label!r}].astype(str)"
            )
        ) from error
    if pa.types.is_date(array.type) and any(isinstance(value, datetime) for value in series):
        # Arrow would take the time of day off.
        raise ColumnError(
            f"Column {label!r} of dtype {series.dtype} has dates and times in one: "
            f"{_examples(series)}. Make one type of them: df[{label!r}] = "
            f"pd.to_datetime(df[{label!r}])"
        )
    if isinstance(array, pa.ChunkedArray):
        if pa.types.is_string(array.type):  # whose 32 bits may be too few for all chunks together
            array = array.cast(pa.large_string())
        array = array.combine_chunks()
    return array


def lists(frame: pd.DataFrame, label: Hashable) -> list[Any] | None:
    """A column of lists as Python values, None where one is missing; None for other columns."""
    series = frame[label]
    if isinstance(series.dtype, pd.ArrowDtype):
        kind = series.dtype.pyarrow_dtype
        is_nested = (
            pa.types.is_list(kind)
            or pa.types.is_large_list(kind)
            or pa.types.is_fixed_size_list(kind)
        )
        return pa.array(series).to_pylist() if is_nested else None
    if series.dtype != object:
        return None
    known = series.notna()
    first = next(iter(series[known]), None)
    if not isinstance(first, list | tuple | np.ndarray):
        return None
    return list(series.where(known, None))


def objects(frame: pd.DataFrame, label: Hashable) -> list[Any] | None:
    """A column of Python objects, None where one is missing; None for columns of one type.

    Arrow would give all of them one type: a whole number among fractions, a dict's keys among those
    of other rows, so that what one row asks would depend on the others.
    """
    series = frame[label]
    return list(series.where(series.notna(), None)) if series.dtype == object else None


def new_labels(columns: pa.Table) -> list[str]:
    """What `attach` calls the new columns."""
    return list(_flat(columns).column_names)


def attach(frame: pd.DataFrame, columns: pa.Table, *, like: Hashable) -> pd.DataFrame:
    """A new frame with the columns appended by position; index and subclass stay.

    A structured answer becomes its JSON text and one column for each field, lists and objects as
    JSON: pandas cannot read nested columns back from parquet (pandas issue 57411). Where the column
    `like` is of Arrow's dtypes, so are the new ones.
    """
    flat = _flat(columns)
    if isinstance(frame[like].dtype, pd.ArrowDtype):
        converted = flat.to_pandas(types_mapper=pd.ArrowDtype)
    else:
        converted = flat.to_pandas(types_mapper=_DTYPES.get, date_as_object=False)
    return frame.assign(**{name: converted[name].array for name in flat.column_names})


def _flat(columns: pa.Table) -> pa.Table:
    """The columns; a struct becomes its text under its own name, and its fields behind the rest."""
    name, *_ = columns.column_names
    struct = columns[name].combine_chunks()
    if not pa.types.is_struct(struct.type):
        return columns
    flat = columns.drop_columns(name).rename_columns({f"{name}_text": name})
    for field in struct.type:
        label = f"{name}_{field.name}"
        if label in flat.column_names:
            raise ColumnError(
                f"The field {field.name!r} of response_format would become the column {label!r}, "
                "which tells something else of each row. Nothing was sent. Give the field another "
                "name, or an alias."
            )
        values = pc.struct_field(struct, field.name)
        if pa.types.is_nested(field.type):
            values = pa.array(
                [None if value is None else _json(value) for value in values.to_pylist()],
                pa.string(),
            )
        flat = flat.append_column(label, values)
    return flat


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, default=lambda moment: moment.isoformat())


def _is_whole(value: object) -> bool:
    try:
        str(value).encode()
    except UnicodeEncodeError:
        return False
    return True


def _examples(series: "pd.Series[Any]") -> str:
    """The first value of each type of values."""
    first: dict[type, str] = {}
    for row, (value, known) in enumerate(zip(series, series.notna(), strict=True)):
        if known and type(value) not in first:
            first[type(value)] = f"{value!r:.60} in row {row}"
    return ", ".join(first.values())


def snapshot(frame: pd.DataFrame) -> pd.DataFrame:
    """The frame as it is, whatever becomes of the user's."""
    return frame.copy()
