"""A frame's columns -> ids and prompts that can be sent, or an error that names the rows.

Prompts are text, lists of chat messages (as JSON, in binary), or a template over several columns.

Nothing is coerced: a float id or a number among prompts is a mistake more often than not, and a
mistake costs money here.
"""

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from datetime import date, time
from decimal import Decimal
from numbers import Number
from pathlib import Path
from string import Formatter
from typing import Any
from uuid import UUID

import pyarrow as pa
import pyarrow.compute as pc

from batchframe.core.pieces import encode_fields, encode_messages, encode_parts
from batchframe.errors import ColumnError, ParameterError, RowError
from batchframe.frames.images import image_url
from batchframe.parameters import closest

__all__ = [
    "check_free",
    "check_label",
    "check_nulls",
    "ids",
    "messages",
    "models",
    "numbers",
    "own_fields",
    "prompts",
    "rendered",
    "template_fields",
    "with_images",
]

#: Rows that a message names before it says "and more".
_SHOWN = 5
#: Columns that a message names.
_SHOWN_LABELS = 20


def check_label(
    label: Hashable, role: str, labels: Sequence[Hashable], index: Sequence[Hashable]
) -> None:
    """Raise ColumnError unless exactly one column has this label; `index` names pandas' index."""
    if not _is_hashable(label):
        raise ParameterError(f"{role} must be one column's name, not a {type(label).__name__}.")
    found = labels.count(label)
    if found > 1:
        raise ColumnError(
            f"{found} columns are named {label!r}; {role} must name one. Rename them first."
        )
    if found == 0:
        known = {str(other): other for other in labels}
        near = closest(str(label), list(known))
        meant = f" Did you mean {known[near]!r}?" if near is not None else ""
        if label is not None and label in index:
            meant = " It names the index: make a column of it with df.reset_index()."
        shown = ", ".join(map(repr, labels[:_SHOWN_LABELS])) or "none"
        more = len(labels) - _SHOWN_LABELS
        raise ColumnError(
            f"There is no column {label!r} for {role}.{meant} "
            f"The columns are {shown}{f' and {more} more' if more > 0 else ''}."
        )


def check_free(names: Sequence[str], labels: Sequence[Hashable], output: str) -> None:
    """Raise ColumnError if a new column would replace one that exists."""
    taken = [name for name in names if name in labels]
    if taken:
        raise ColumnError(
            f"The frame has {'a column' if len(taken) == 1 else 'columns'} "
            f"{', '.join(map(repr, taken))} already. Choose other names with output=, for example "
            f"output={output + '_2'!r}, or drop them first. Nothing was sent."
        )


def prompts(column: pa.Array, label: Hashable) -> pa.Array:
    """Strings, one per row; null where nothing is to be sent: null and empty prompts."""
    column = _plain(column)
    if column.null_count == len(column):  # of whatever type: nothing here tells a mistake
        return pa.nulls(len(column), pa.large_string())
    if not _is_text(column.type):
        raise ColumnError(
            f"Column {label!r} holds {column.type}, and prompts are text: "
            f"{_examples(column, pc.indices_nonzero(pc.is_valid(column)))}. "
            f"{_way_to_text(column.type)}"
        )
    return _without_empty(pc.cast(column, pa.large_string()))


def messages(lists: Iterable[object], label: Hashable) -> pa.Array:
    """Binary, one per row: the JSON of each list of chat messages; null where it is null or empty.

    Raises RowError for the first row that holds something else.
    """
    return pa.array(
        (
            None
            if value is None or (hasattr(value, "__len__") and len(value) == 0)
            else encode_messages(value, f"Row {row} of column {label!r}")
            for row, value in enumerate(lists)
        ),
        pa.large_binary(),
    )


def template_fields(template: str) -> list[tuple[str, str | None]]:
    """The parts of a template: each a literal text and the column that follows it, or None.

    Braces are written as in `str.format`. Raises ParameterError for anything in braces that is not
    a column's name alone: no attributes, indexes, conversions or formats.
    """
    try:
        parts = list(Formatter().parse(template))
    except ValueError as error:
        raise ParameterError(
            f"template={template!r:.60} cannot be read: {error}. Braces of its own are written "
            "twice: {{ and }}."
        ) from None
    for _, name, spec, conversion in parts:
        if name is not None and (not name or set(name) & set(".[]") or spec or conversion):
            shown = (
                f"{{{name}{'!' + conversion if conversion else ''}{':' + spec if spec else ''}}}"
            )
            raise ParameterError(
                f"template= has {shown}; braces hold the name of a column and nothing else. Braces "
                "of its own are written twice: {{ and }}."
            )
    if not any(name for _, name, _, _ in parts):
        raise ParameterError(
            f"template={template!r:.60} names no column, so all rows would ask the same. Write "
            "column names in braces: 'Summarise {text}'."
        )
    return [(literal, name) for literal, name, _, _ in parts]


def rendered(
    fields: Sequence[tuple[str, str | None]], values_of: Callable[[str], pa.Array | list[Any]]
) -> pa.Array:
    """Strings, one per row: the template with the row's values.

    Null where one of them is null, and where nothing comes of them.

    Numbers, dates and the like stand as Python prints them.
    """
    columns = {name: _as_text(values_of(name), name) for _, name in fields if name is not None}
    pieces: list[pa.Array | pa.Scalar] = []
    for literal, name in fields:
        pieces.append(pa.scalar(literal, pa.large_string()))
        if name is not None:
            pieces.append(columns[name])
    return _without_empty(pc.binary_join_element_wise(*pieces, pa.scalar("", pa.large_string())))


def _without_empty(text: pa.Array) -> pa.Array:
    """The texts, with null in place of empty ones."""
    is_empty = pc.equal(pc.binary_length(text), 0)
    if not pc.any(is_empty).as_py():  # which is usual and needs no copy
        return text
    return pc.if_else(is_empty, pa.scalar(None, text.type), text)


def with_images(
    prompts: pa.Array, columns: Sequence[tuple[Hashable, Sequence[object]]], endpoint: str
) -> pa.Array:
    """Binary, one per row: the JSON of each prompt and its images; null where the prompt is null.

    Args:
        prompts: Strings.
        columns: Label and values, one per row, of each column of images: URLs, paths or bytes;
            None for none.
        endpoint: Where they go.

    Raises:
        ColumnError: a column holds something else.
        RowError: a file cannot be read, or something is no image.
    """
    for label, values in columns:
        for row, value in enumerate(values):
            if not isinstance(value, str | bytes | Path | None):
                raise ColumnError(
                    f"Column {label!r} holds values that are none: images are URLs, paths or "
                    f"bytes, and it has {_short(value)} in row {row}."
                )

    def encoded(row: int, prompt: str | None) -> bytes | None:
        if prompt is None:
            return None
        urls = [
            image_url(
                value if isinstance(value, bytes) else str(value), f"Row {row} of column {label!r}"
            )
            for label, values in columns
            if isinstance(value := values[row], str | bytes | Path) and value
        ]
        return encode_parts(prompt, urls, endpoint)

    texts = (text.as_py() for text in prompts)
    return pa.array((encoded(*pair) for pair in enumerate(texts)), pa.large_binary())


def models(column: pa.Array, label: Hashable, prompts: pa.Array) -> pa.Array:
    """Strings, one per row: each row's model; not null where the prompt is not.

    Raises ColumnError for other values than text, and RowError for rows without a model.
    """
    column = _plain(column)
    if not _is_text(column.type) and column.null_count < len(column):
        raise ColumnError(
            f"Column {label!r} holds {column.type}, and models are named by text: "
            f"{_examples(column, pc.indices_nonzero(pc.is_valid(column)))}."
        )
    text = pc.cast(column, pa.large_string())
    is_blank = pc.fill_null(pc.equal(pc.utf8_trim_whitespace(text), ""), fill_value=True)
    nulls = pc.indices_nonzero(pc.and_(is_blank, pc.is_valid(prompts)))
    if len(nulls):
        raise RowError(
            f"{len(nulls)} {'row has' if len(nulls) == 1 else 'rows have'} no model: column "
            f"{label!r} is null or blank in {_rows(nulls)}. Nothing was sent. Fill them in, or "
            "leave those rows out."
        )
    return text


def own_fields(
    columns: Mapping[str, tuple[Hashable, Sequence[object]]], prompts: pa.Array
) -> pa.Array:
    """Binary, one per row: the JSON of the row's own body fields; null for none.

    Args:
        columns: Label and values, one per row, by the name of the body field.
        prompts: One per row; rows without one need no fields.

    Raises:
        RowError: a row has something that JSON cannot hold.
    """
    values = {name: (label, iter(column)) for name, (label, column) in columns.items()}

    def encoded(row: int, *, is_sent: bool) -> bytes | None:
        fields = {
            name: (next(column), f"Row {row} of column {label!r}")
            for name, (label, column) in values.items()
        }
        return encode_fields(fields) if is_sent else None

    sent = prompts.is_valid().to_pylist()
    return pa.array(
        (encoded(row, is_sent=is_sent) for row, is_sent in enumerate(sent)), pa.large_binary()
    )


def check_nulls(prompts: pa.Array, labels: Sequence[Hashable]) -> None:
    """Raise RowError if a row has no prompt; `labels` are the columns that it is made of."""
    nulls = pc.indices_nonzero(pc.is_null(prompts))
    if len(nulls):
        what = f"column {labels[0]!r}" if len(labels) == 1 else "one of the template's columns"
        raise RowError(
            f"{len(nulls)} {'row has' if len(nulls) == 1 else 'rows have'} no prompt: {what} is "
            f"null or empty in {_rows(nulls)}, and nulls='raise' was asked for. Nothing was sent. "
            "Fill them in, drop those rows, or take nulls='skip'."
        )


def numbers(*asked: pa.Array) -> pa.Array:
    """Ids for rows without any, int64, one per row: which of the rows that ask the same it is.

    From 0; so a row keeps its id wherever it stands, and equal rows are told apart. `asked` is all
    that a row asks, each with one entry per row: its prompt, its model, its fields.
    """
    seen: Counter[tuple[int | None, ...]] = Counter()
    ids = []
    codes = (column.dictionary_encode().indices.to_pylist() for column in asked)
    for code in zip(*codes, strict=True):
        ids.append(seen[code])
        seen[code] += 1
    return pa.array(ids, pa.int64())


def ids(column: pa.Array, label: Hashable) -> pa.Array:
    """Integers or strings, one per row, no nulls, no duplicates.

    UUIDs, dates and times become text: an instant is one id, whatever its unit and time zone.
    """
    column = _time_as_text(_plain(column))
    if len(column) == 0:  # of whatever type: without rows, no library knows one
        return pa.array([], pa.large_string())
    nulls = pc.indices_nonzero(pc.is_null(column))
    if len(nulls):
        raise RowError(
            f"{len(nulls)} {'row has' if len(nulls) == 1 else 'rows have'} no id: column {label!r} "
            f"is null in {_rows(nulls)}. Every row needs an id of its own: fill in the missing "
            "ones, or drop those rows."
        )
    if not (pa.types.is_integer(column.type) or _is_text(column.type)):
        every = pa.array(range(min(len(column), _SHOWN)), pa.uint64())
        raise ColumnError(
            f"Column {label!r} holds {column.type}, and ids are integers, text, UUIDs or dates: "
            f"{_examples(column, every)}. Cast it first, for example to Int64 or str."
        )
    duplicates = _duplicates(column)
    if len(duplicates):
        raise RowError(
            f"{len(duplicates)} {'row repeats' if len(duplicates) == 1 else 'rows repeat'} the id "
            f"of an earlier row: column {label!r} has {_examples(column, duplicates)}. Every row "
            "needs an id of its own: drop the duplicates, or number the rows."
        )
    return column


def _plain(column: pa.Array) -> pa.Array:
    """Categories and runs as their values, and views, which lack some kernels, without views."""
    if pa.types.is_dictionary(column.type):
        return column.dictionary_decode()
    if pa.types.is_run_end_encoded(column.type):
        return pc.run_end_decode(column)
    if pa.types.is_string_view(column.type):
        return column.cast(pa.large_string())
    if pa.types.is_binary_view(column.type):
        return column.cast(pa.large_binary())
    return column


def _time_as_text(column: pa.Array) -> pa.Array:
    kind = column.type
    if isinstance(kind, pa.UuidType) or pa.types.is_date(kind):
        texts = (None if value is None else str(value) for value in column.to_pylist())
        return pa.array(texts, pa.large_string())
    if not pa.types.is_timestamp(kind):
        return column
    # Nanoseconds, for all units alike; in UTC where there is a time zone.
    zone = "" if kind.tz is None else "Z"
    plain = column.cast(pa.timestamp(kind.unit))
    try:
        text = plain.cast(pa.timestamp("ns")).cast(pa.large_string())
    except pa.ArrowInvalid:  # beyond the years 1677 to 2262, which nanoseconds reach
        text, zone = plain.cast(pa.timestamp("us")).cast(pa.large_string()), "000" + zone
    ending = pa.scalar(zone, pa.large_string())
    return pc.binary_join_element_wise(text, ending, pa.scalar("", pa.large_string()))


#: Python values that stand in a template as they are printed.
_PRINTED = (str, Number, Decimal, UUID, date, time)


def _as_text(column: pa.Array | list[Any], label: str) -> pa.Array:
    if isinstance(column, list):  # of any types, and so each as it is
        for row, value in enumerate(column):
            if value is not None and not isinstance(value, _PRINTED):
                raise ColumnError(
                    f"Column {label!r} of the template holds {_short(value)} in row {row}, a "
                    f"{type(value).__name__}, which has no plain text. Make text of each first."
                )
        printed = [None if value is None else str(value) for value in column]
        try:
            return pa.array(printed, pa.large_string())
        except UnicodeEncodeError:
            row, half = next(
                (row, text)
                for row, text in enumerate(printed)
                if text and text != text.encode("utf-8", "replace").decode()
            )
            raise RowError(
                f"Column {label!r} of the template has half a character (a lone surrogate) in row "
                f"{row}, which cannot be sent: {_short(half)}. Nothing was sent. Replace it first."
            ) from None
    column = _plain(column)
    kind = column.type
    if _is_text(kind) or pa.types.is_integer(kind) or pa.types.is_null(kind):
        return pc.cast(column, pa.large_string())
    is_odd = isinstance(kind, pa.BaseExtensionType) and not isinstance(kind, pa.UuidType)
    if pa.types.is_nested(kind) or _is_bytes(kind) or is_odd or pa.types.is_duration(kind):
        raise ColumnError(
            f"Column {label!r} of the template holds {kind}, which has no plain text: "
            f"{_examples(column, pc.indices_nonzero(pc.is_valid(column)))}. {_way_to_text(kind)}"
        )
    texts = (None if value is None else str(value) for value in column.to_pylist())
    return pa.array(texts, pa.large_string())


def _is_hashable(value: object) -> bool:
    try:
        hash(value)
    except TypeError:
        return False
    return True


def _way_to_text(kind: pa.DataType) -> str:
    if _is_bytes(kind):
        # str() would make "b'...'" of it, which nobody means.
        return "Decode it first: .str.decode('utf-8') in pandas, .cast(pl.String) in Polars."
    if pa.types.is_struct(kind) and kind.get_field_index("role") >= 0:
        return "Make a list of chat messages of each first: [{'role': ..., 'content': ...}]."
    if pa.types.is_nested(kind):
        return "Make one text of each first, for example with json.dumps."
    return "Cast it first: .astype(str) in pandas, .cast(pl.String) in Polars."


def _is_bytes(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _is_text(kind: pa.DataType) -> bool:
    return kind in {pa.string(), pa.large_string(), pa.string_view()}


def _duplicates(column: pa.Array) -> pa.Array:
    """The rows whose value stands in an earlier row."""
    # Ids often ascend, which is seen without a table of all of them.
    ascends = pc.all(pc.less(column[:-1], column[1:])).as_py() is not False
    if ascends or pc.count_distinct(column).as_py() == len(column):
        return pa.array([], pa.uint64())
    first = pc.index_in(column, value_set=column)
    return pc.indices_nonzero(pc.not_equal(first, pa.array(range(len(column)), pa.int32())))


def _rows(rows: pa.Array) -> str:
    shown = ", ".join(str(row) for row in rows[:_SHOWN].to_pylist())
    return f"row{'s' if len(rows) > 1 else ''} {shown}{' and more' if len(rows) > _SHOWN else ''}"


def _examples(column: pa.Array, rows: pa.Array) -> str:
    shown = [
        f"{_short(value)} in row {row}"
        for row, value in zip(
            rows[:_SHOWN].to_pylist(), column.take(rows[:_SHOWN]).to_pylist(), strict=True
        )
    ]
    return ", ".join(shown) + (" and more" if len(rows) > _SHOWN else "")


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
