"""Files of rows, with the answers to them: parquet, CSV and JSONL.

    bytes --read_rows--> labels, and the columns that a call needs
    rows + new columns --writer_of--> bytes

The invariant: in the format of the source, what stood there stands in the target as it was. CSV and
JSONL are not written anew: the new fields are added to the text of each row, so that quotes, ids
such as 007, digits and line ends stay.
"""

import csv
import io
import re
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from batchframe.errors import ColumnError, ParameterError, RowError

__all__ = [
    "Format",
    "RowsOfFile",
    "format_of",
    "needed_of",
    "read_rows",
    "write_table",
    "writer_of",
]

#: Characters of one field of CSV: Python's own limit is 131,072, and prompts are longer.
_FIELD_CHARS = 2**31 - 1
#: What makes quotes necessary (RFC 4180, 2.6). U+2028 and its like end lines for some readers.
_TO_QUOTE = re.compile('[",\r\n\x0b\x0c\x1c-\x1e\x85\u2028\u2029]')
#: Line ends of Unicode, which JSON takes as they are, and readers of lines do not.
_LINE_ENDS = {
    "\u2028".encode(): rb"\u2028",
    "\u2029".encode(): rb"\u2029",
    "\x85".encode(): rb"\u0085",
}


class Format(StrEnum):
    """What the bytes of a file are."""

    PARQUET = "parquet"
    CSV = "csv"
    JSONL = "jsonl"


_ENDINGS = {
    ".parquet": Format.PARQUET,
    ".pq": Format.PARQUET,
    ".csv": Format.CSV,
    ".jsonl": Format.JSONL,
    ".ndjson": Format.JSONL,
}


def format_of(path: str, option: str) -> Format:
    """The format that a path's ending says; `option` names it where that says nothing.

    Raises ParameterError.
    """
    found = _ENDINGS.get(Path(path).suffix.lower())
    if found is None:
        shown = "Standard input or output" if path == "-" else repr(path)
        raise ParameterError(
            f"{shown} does not say by its ending what it is: .parquet, .csv or .jsonl. Nothing was "
            f"sent. Say it by {option}."
        )
    return found


class RowsOfFile(Protocol):
    """The rows of one file."""

    format: Format
    #: The names of the columns, in order.
    labels: list[str]

    def __len__(self) -> int: ...

    def values(self, labels: Collection[str]) -> dict[str, pa.Array]:
        """The columns of these names, one entry per row."""
        ...

    def objects(self) -> Iterator[dict[str, Any]]:
        """The rows as Python values by label; one that a row does not have may be left out."""
        ...

    def write(self, file: BinaryIO, new: pa.Table) -> None:
        """The rows as they were, each with its new columns."""
        ...


def read_rows(data: bytes, format_: Format, name: str) -> RowsOfFile:
    """The rows of a file.

    Args:
        data: Its bytes.
        format_: What they are.
        name: What messages call it.

    Raises:
        ParameterError: it is something else.
        RowError: a row does not fit the others.
        ColumnError: two columns have one name.
    """
    match format_:
        case Format.PARQUET:
            return _Parquet(data, name)
        case Format.CSV:
            return _Csv(_text(data, name), name)
        case Format.JSONL:
            return _Jsonl(data, name)


def needed_of(rows: RowsOfFile, needed: Collection[str]) -> pa.Table:
    """The rows as a Table: the needed columns with their values, the others by name only."""
    labels = dict.fromkeys([*rows.labels, *([] if len(rows) else needed)])
    values = rows.values([label for label in rows.labels if label in needed])
    nothing = pa.nulls(len(rows))
    return pa.table({label: values.get(label, nothing) for label in labels})


def writer_of(rows: RowsOfFile, format_: Format) -> Callable[[BinaryIO, pa.Table], None]:
    """What writes the rows with new columns in a format; errors come now, and not then."""
    if format_ is rows.format:
        return rows.write
    if format_ is Format.PARQUET:
        table = pa.table(rows.values(rows.labels))
        return lambda file, new: pq.write_table(_beside(table, new), file)

    if rows.format is Format.PARQUET:
        _check_texts(rows, format_)

    def write(file: BinaryIO, new: pa.Table) -> None:
        labels = [*rows.labels, *new.column_names]
        both = zip(rows.objects(), _values(new), strict=True)
        _write_text(file, labels, (row | fields for row, fields in both), format_)

    return write


def _check_texts(rows: RowsOfFile, format_: Format) -> None:
    """Raise ColumnError if rows hold what has no text, before they are paid for."""
    try:
        deque(map(_object, rows.objects()), maxlen=0)
    except (TypeError, ValueError, OverflowError) as error:
        raise ColumnError(
            f"The rows cannot be written as {format_}: {error}. Nothing was sent. Write parquet, "
            "or leave out or cast the column."
        ) from None


def write_table(file: BinaryIO, table: pa.Table, format_: Format) -> None:
    """A Table in a format."""
    if format_ is Format.PARQUET:
        pq.write_table(table, file)
    else:
        _write_text(file, table.column_names, _values(table), format_)


def _write_text(
    file: BinaryIO, labels: Sequence[str], rows: Iterable[dict[str, Any]], format_: Format
) -> None:
    if format_ is Format.JSONL:
        file.writelines(_object(row) + b"\n" for row in rows)
        return
    file.write(f"{','.join(map(_cell, labels))}\r\n".encode())
    file.writelines(
        f"{','.join(_cell(row.get(label)) for label in labels)}\r\n".encode() for row in rows
    )


def _beside(table: pa.Table, new: pa.Table) -> pa.Table:
    for field in new.schema:
        table = table.append_column(field, new[field.name])
    return table


def _check_names(labels: Sequence[str], name: str) -> None:
    doubled = sorted(label for label, n in Counter(labels).items() if n > 1)
    if doubled:
        raise ColumnError(
            f"{name} has more than one column of the name {', '.join(map(repr, doubled))}. "
            "Nothing was sent. Rename them first."
        )


class _Parquet:
    format = Format.PARQUET

    def __init__(self, data: bytes, name: str) -> None:
        try:
            # By this thread alone, as the tables of checkpoints are, and for the same reason.
            with pq.ParquetFile(pa.BufferReader(data), pre_buffer=False) as file:
                self._table = file.read(use_threads=False)
        except (OSError, pa.ArrowException) as error:
            reason = str(error).rstrip(".")
            raise ParameterError(
                f"{name} cannot be read as parquet: {reason}. Nothing was sent."
            ) from None
        self.labels: list[str] = self._table.column_names
        _check_names(self.labels, name)

    def __len__(self) -> int:
        return len(self._table)

    def values(self, labels: Collection[str]) -> dict[str, pa.Array]:
        return {label: self._table[label] for label in labels}

    def objects(self) -> Iterator[dict[str, Any]]:
        return _values(self._table)

    def write(self, file: BinaryIO, new: pa.Table) -> None:
        write_table(file, _beside(self._table, new), self.format)


class _Csv:
    format = Format.CSV

    def __init__(self, text: str, name: str) -> None:
        self._bom = "\ufeff" if text.startswith("\ufeff") else ""
        records = _records(text.removeprefix("\ufeff"), name)
        header, self.labels, _ = next(records, ("", [], 0))
        if not self.labels:
            raise ParameterError(
                f"{name} is empty: the first line of CSV names its columns. Nothing was sent."
            )
        _check_names(self.labels, name)
        self._name = name
        self._texts = [header]
        for record, fields, line in records:
            if len(fields) != len(self.labels):
                raise RowError(
                    f"Line {line:,} of {name} has {len(fields)} fields and the header has "
                    f"{len(self.labels)}. Nothing was sent. Mend that line; a field that holds a "
                    "comma, a quote or a line end stands in quotes."
                )
            self._texts.append(record)

    def __len__(self) -> int:
        return len(self._texts) - 1

    def values(self, labels: Collection[str]) -> dict[str, pa.Array]:
        places = {label: self.labels.index(label) for label in labels}
        found: dict[str, list[str]] = {label: [] for label in labels}
        for fields in csv.reader(self._texts[1:] if labels else (), strict=True):
            for label, place in places.items():
                found[label].append(fields[place])
        return {label: pa.array(texts, pa.large_string()) for label, texts in found.items()}

    def objects(self) -> Iterator[dict[str, Any]]:
        for fields in csv.reader(self._texts[1:], strict=True):
            yield dict(zip(self.labels, fields, strict=True))

    def write(self, file: BinaryIO, new: pa.Table) -> None:
        names = ",".join(map(_cell, new.column_names))
        file.write(self._bom.encode() + _spliced(self._texts[0], names))
        # By position: the invariant of all that adds columns.
        rows = zip(self._texts[1:], _cells(new), strict=True)
        file.writelines(_spliced(record, cells) for record, cells in rows)


def _records(text: str, name: str) -> Iterator[tuple[str, list[str], int]]:
    """Each record of a CSV: its text with its line end, its fields, the line it begins in.

    Lines without anything are no records.
    """
    csv.field_size_limit(_FIELD_CHARS)
    taken: list[str] = []

    def lines() -> Iterator[str]:
        for line in io.StringIO(text, newline=""):  # which leaves line ends as they are
            taken.append(line)
            yield line

    reader = csv.reader(lines(), strict=True)
    while True:
        taken.clear()
        line = reader.line_num + 1
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise ParameterError(
                f"{name} cannot be read as CSV: {error}, in the row that begins in line {line:,}. "
                "Nothing was sent."
            ) from None
        if fields:
            yield "".join(taken), fields, line


def _spliced(record: str, cells: str) -> bytes:
    """The text of a record with further cells before its line end."""
    body = record.removesuffix("\n").removesuffix("\r")
    return f"{body},{cells}{record[len(body) :]}".encode()


def _cells(table: pa.Table) -> Iterator[str]:
    """The rows of a Table as cells of CSV."""
    for row in _values(table):
        yield ",".join(map(_cell, row.values()))


def _cell(value: object) -> str:
    """A value as a cell of CSV: nothing for null, and quotes for a text without a character."""
    match value:
        case None:
            return ""
        case str():
            text = value
        case bool():
            return "true" if value else "false"
        case int() | float():
            return repr(value)
        case _:  # lists and objects as JSON, dates and the like as JSON has them
            text = _encoded(value).decode()
            if not isinstance(value, list | dict):
                text = text.strip('"')
    if not text or _TO_QUOTE.search(text):
        return '"' + text.replace('"', '""') + '"'
    return text


class _Jsonl:
    format = Format.JSONL

    def __init__(self, data: bytes, name: str) -> None:
        self._name = name
        self._bom = b"\xef\xbb\xbf" if data.startswith(b"\xef\xbb\xbf") else b""
        body = data.removeprefix(self._bom)
        self._lines: list[bytes] = []
        labels: dict[str, None] = {}
        for number, line in enumerate(io.BytesIO(body), start=1):
            if not line.strip():
                continue
            labels.update(dict.fromkeys(self._decoded(line, number)))
            self._lines.append(line)
        self.labels = list(labels)

    def _decoded(self, line: bytes, number: int) -> dict[str, Any]:
        try:
            decoded = msgspec.json.decode(line)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise RowError(
                f"Line {number:,} of {self._name} is not JSON: {error}. Nothing was sent."
            ) from None
        if not isinstance(decoded, dict):
            raise RowError(
                f"Line {number:,} of {self._name} is a {type(decoded).__name__}, and each line of "
                "JSONL is one object. Nothing was sent."
            )
        return decoded

    def __len__(self) -> int:
        return len(self._lines)

    def values(self, labels: Collection[str]) -> dict[str, pa.Array]:
        found: dict[str, list[Any]] = {label: [] for label in labels}
        for line in self._lines if labels else ():
            row = msgspec.json.decode(line)
            for label, values in found.items():
                values.append(row.get(label))
        return {label: self._array(label, values) for label, values in found.items()}

    def objects(self) -> Iterator[dict[str, Any]]:
        return map(msgspec.json.decode, self._lines)

    def _array(self, label: str, values: list[Any]) -> pa.Array:
        try:
            array = pa.array(values)
        except (pa.ArrowException, OverflowError, UnicodeError) as error:
            reason = str(error).partition("\n")[0].rstrip(".")
            raise ColumnError(
                f"The values of {label!r} in {self._name} do not make one column: {reason}. "
                "Nothing was sent. Give all of them one type; text fits everything."
            ) from None
        return array.cast(pa.large_string()) if pa.types.is_string(array.type) else array

    def write(self, file: BinaryIO, new: pa.Table) -> None:
        file.write(self._bom)
        rows = zip(self._lines, _values(new), strict=True)
        file.writelines(_merged(line, fields) for line, fields in rows)


def _merged(line: bytes, new: dict[str, Any]) -> bytes:
    """The text of an object with further fields before its brace."""
    body = line.rstrip()
    head = body[:-1]
    comma = b"" if head.strip() == b"{" else b", "
    return head + comma + _object(new)[1:] + line[len(body) :]


def _object(row: dict[str, Any]) -> bytes:
    encoded = _encoded(row)
    for character, escaped in _LINE_ENDS.items():
        encoded = encoded.replace(character, escaped)
    return encoded


def _encoded(value: object) -> bytes:
    """A value as JSON; what JSON has no form for, such as a Timedelta of pandas, as its text."""
    return msgspec.json.encode(value, enc_hook=str)


def _values(table: pa.Table) -> Iterator[dict[str, Any]]:
    """The rows of a Table as Python values."""
    for place, field in enumerate(table.schema):
        # Python's own times have no nanoseconds.
        if pa.types.is_timestamp(field.type) and field.type.unit == "ns":
            table = table.set_column(place, field.name, table[place].cast(pa.string()))
    for batch in table.to_batches():
        yield from batch.to_pylist()


def _text(data: bytes, name: str) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ParameterError(
            f"{name} is not UTF-8: line {line:,} holds the byte {data[error.start]:#04x}. Nothing "
            "was sent. Save it as UTF-8."
        ) from None
