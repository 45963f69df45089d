"""The parquet files of a source -> all of their rows, a window at a time."""

import glob
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from batchframe.errors import ParameterError

if TYPE_CHECKING:
    import pyarrow.dataset as ds
    from typing_extensions import TypeIs

__all__ = ["Source"]

#: Rows of a window, at most; and of what it holds, in bytes, about.
_WINDOW_ROWS, _WINDOW_BYTES = 100_000, 32_000_000
#: Rows at the beginning of a row group that tell how large the others are, at most, and how many of
#: them are read at a time.
_SAMPLE_ROWS, _READ_ROWS = 256, 16
#: Bytes of a column that are read from a file at a time.
_BUFFER_BYTES = 1_000_000

#: Columns that a message names, at most.
_SHOWN = 5


class Source:
    """The parquet files of a source, in one order: a path, a list of paths, or a dataset.

    Raises ParameterError if there is none, if they have different columns, or fewer rows or columns
    than the source, or if `target` is one of them.
    """

    def __init__(
        self, source: "str | Path | Sequence[str | Path] | ds.Dataset", target: Path
    ) -> None:
        """Find the files, and read their schemas."""
        self.paths = _files(source)
        if not self.paths:
            raise ParameterError(f"source={str(source)!r:.100} names no parquet file.")
        if target.resolve() in {path.resolve() for path in self.paths}:
            raise ParameterError(
                f"target={str(target)!r} is one of the files that are read. Nothing was sent. Name "
                "another one."
            )
        self._stamps = {path: _stamp(path) for path in self.paths}
        self._stretches: dict[tuple[str, ...] | None, list[_Stretch]] = {}
        self.schema: pa.Schema = _schema(self.paths[0])
        for path in self.paths[1:]:
            other = _schema(path)
            if not other.equals(self.schema):
                raise ParameterError(
                    f"{path} has other columns than {self.paths[0]}: "
                    f"{_differences(self.schema, other)}. Nothing was sent."
                )

        if others := _in_folders(source) - set(self.schema.names):
            raise ParameterError(
                f"The source has columns that are in the names of its folders and not in its "
                f"files: {', '.join(sorted(others))}. Nothing was sent. Write them into the files, "
                "or pass the files' paths to go without them, such as 'data/*/*.parquet'."
            )
        if _is_dataset(source) and source.count_rows(use_threads=False) != self._n_rows():
            raise ParameterError(
                "The dataset is filtered, and its files are read whole. Nothing was sent. Write "
                "the rows into a file first, for example by polars.scan_pyarrow_dataset(dataset)"
                ".sink_parquet('rows.parquet')."
            )

    def _n_rows(self) -> int:
        return sum(pq.read_metadata(path).num_rows for path in self.paths)

    def check_unchanged(self) -> None:
        """Raise ParameterError if a file is not the one that it was at the beginning.

        Answers go to rows by position, and hours lie between the first reading and the last.
        """
        for path in self._stamps:
            self._check_unchanged(path)

    def _check_unchanged(self, path: Path) -> None:
        if _stamp(path) != self._stamps[path]:
            raise ParameterError(
                f"{path} was changed while it was read, so nothing was written. Run the same call "
                "again: answers that are in the checkpoint are not paid for again."
            )

    def column(self, label: str) -> pa.Array:
        """All values of one column."""
        chunks = []
        for path in self.paths:
            with _reading(path), pq.ParquetFile(path) as file:
                chunks.append(file.read([label], use_threads=False))
        array = pa.concat_tables(chunks)[label]
        return (
            array.cast(pa.large_string()) if pa.types.is_string(array.type) else array
        ).combine_chunks()

    def windows(self, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
        """All rows, some at a time, with these columns; None is all.

        So many of them as these columns leave room for.
        """
        for stretch in self._stretches_of(columns):
            batches = self._batches(stretch, columns)
            # By no loop, whose variable would hold a window while the next one is read.
            windows = range(0, stretch.n_rows, stretch.n_of_window)
            yield from (_window(batches, stretch.n_of_window) for _ in windows)

    def starts(self, columns: Sequence[str] | None = None) -> list[int]:
        """The number of the first row of each window with these columns."""
        starts: list[int] = []
        start = 0
        for stretch in self._stretches_of(columns):
            starts += range(start, start + stretch.n_rows, stretch.n_of_window)
            start += stretch.n_rows
        return starts

    def _stretches_of(self, columns: Sequence[str] | None) -> "list[_Stretch]":
        key = None if columns is None else tuple(columns)
        if key not in self._stretches:
            self._stretches[key] = list(self._stretch_by_stretch(columns))
        return self._stretches[key]

    def _stretch_by_stretch(self, columns: Sequence[str] | None) -> "Iterator[_Stretch]":
        """Small row groups together, also of several files; a large one by itself, in windows."""
        groups: list[tuple[Path, int]] = []
        n_rows = n_bytes = 0

        def stretch() -> _Stretch:
            fit = n_rows * _WINDOW_BYTES // max(1, n_bytes)
            return _Stretch(groups, n_rows, max(1, min(_WINDOW_ROWS, fit)))

        for path in self.paths:
            with self._open(path) as file:
                for group in range(file.num_row_groups):
                    n = file.metadata.row_group(group).num_rows
                    size = _n_bytes(file, group, columns)
                    if groups and (n_rows + n > _WINDOW_ROWS or n_bytes + size > _WINDOW_BYTES):
                        yield stretch()
                        groups, n_rows, n_bytes = [], 0, 0
                    groups.append((path, group))
                    n_rows, n_bytes = n_rows + n, n_bytes + size
        if groups:
            yield stretch()

    def _batches(
        self, stretch: "_Stretch", columns: Sequence[str] | None
    ) -> Iterator[pa.RecordBatch]:
        for path, groups in groupby(stretch.groups, key=itemgetter(0)):
            with self._open(path) as file:
                for _, group in groups:
                    yield from _read(file, group, stretch.n_of_window, columns)

    @contextmanager
    def _open(self, path: Path) -> Iterator[pq.ParquetFile]:
        self._check_unchanged(path)
        # By a small buffer and without reading ahead, which would hold whole columns of a group.
        with (
            _reading(path),
            pq.ParquetFile(path, pre_buffer=False, buffer_size=_BUFFER_BYTES) as file,
        ):
            yield file


class _Stretch(NamedTuple):
    """Row groups that follow each other, and how many of their rows are looked at together."""

    groups: list[tuple[Path, int]]
    n_rows: int
    n_of_window: int


def _n_bytes(file: pq.ParquetFile, group: int, columns: Sequence[str] | None) -> int:
    """What these columns of a row group take in memory, about.

    At least what they take in the file, where a text that is repeated stands once; and what the
    first rows say of all.
    """
    known = file.metadata.row_group(group)
    n_read = n_bytes = 0
    for batch in _read(file, group, _READ_ROWS, columns):
        n_read += len(batch)
        n_bytes += sum(map(_n_bytes_of_rows, batch.columns))
        if n_read >= _SAMPLE_ROWS or n_bytes >= _WINDOW_BYTES:
            break
    in_file = sum(
        known.column(index).total_uncompressed_size
        for index in range(known.num_columns)
        if columns is None or _is_part(known.column(index).path_in_schema, columns)
    )
    return max(int(in_file), n_bytes * int(known.num_rows) // max(1, n_read))


def _is_part(path: str, columns: Sequence[str]) -> bool:
    """True for what a file keeps of one of these columns: a list or struct has several parts."""
    return any(path == label or path.startswith(f"{label}.") for label in columns)


def _n_bytes_of_rows(column: pa.Array) -> int:
    """What the rows of a column take, without the categories, which do not grow with the rows."""
    n_bytes = int(column.nbytes)
    if "dictionary<" in str(column.type):  # on whichever level
        return n_bytes - int(column.slice(0, 0).nbytes)
    return n_bytes


def _read(
    file: pq.ParquetFile, group: int, size: int, columns: Sequence[str] | None
) -> Iterator[pa.RecordBatch]:
    # One row group at a time, as no others can be read where a list or struct holds dictionaries.
    # In this thread: what each thread of a pool has freed, its heap keeps for itself.
    n_read, n_rows = 0, file.metadata.row_group(group).num_rows
    for batch in file.iter_batches(size, row_groups=[group], columns=columns, use_threads=False):
        n_read += len(batch)
        yield batch
        del batch  # not held while the next one is read
    if n_read != n_rows:  # as of some lists of categories (pyarrow 26)
        raise pa.ArrowInvalid(f"row group {group} has {n_rows} rows, and {n_read} were read")


def _window(batches: Iterator[pa.RecordBatch], n_rows: int) -> pa.Table:
    """The next rows, without what the file says beside them; fewer where there are no more.

    A batch may end early, by the dictionaries of any column that is read.
    """
    parts: list[pa.RecordBatch] = []
    n = 0
    while n < n_rows and (batch := next(batches, None)) is not None:
        parts.append(batch)
        n += len(batch)
    table = pa.Table.from_batches(parts)
    return table.replace_schema_metadata(None)


def _stamp(path: Path) -> tuple[int, int, int] | None:
    """What a file that is written anew does not keep; None where there is none."""
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_ino, stat.st_size, stat.st_mtime_ns


def _is_dataset(source: object) -> "TypeIs[ds.Dataset]":
    # Whoever has one has imported its module, which takes a quarter of a second.
    module = sys.modules.get("pyarrow.dataset")
    return module is not None and isinstance(source, module.Dataset)


def _files(source: "str | Path | Iterable[str | Path] | ds.Dataset") -> list[Path]:
    if _is_dataset(source):
        import pyarrow.dataset as ds

        if not isinstance(source, ds.FileSystemDataset) or not isinstance(
            source.format, ds.ParquetFileFormat
        ):
            raise ParameterError("source= must be a dataset of parquet files on this machine.")
        return [path for file in source.files for path in _files(file)]
    if isinstance(source, Sequence | Iterator) and not isinstance(source, str | bytes):
        return [path for one in source for path in _files(one)]
    if not isinstance(source, str | Path):
        raise ParameterError(
            f"source= must be a path, a list of paths or a pyarrow Dataset, not "
            f"{type(source).__name__}. Nothing was sent. batchframe.complete() takes frames."
        )
    path = Path(source).expanduser()
    if path.is_dir():
        return [found for found in sorted(path.rglob("*.parquet")) if _is_data(found, path)]
    if path.is_file():
        return [path]
    return sorted(
        Path(found)
        for found in glob.glob(str(path), recursive=True)  # noqa: PTH207 - of absolute paths too
        if os.path.isfile(found)  # noqa: PTH113
    )


def _is_data(path: Path, directory: Path) -> bool:
    """A file of rows; what begins with a dot or an underscore is none, as for pyarrow and Spark."""
    names = path.relative_to(directory).parts
    return path.is_file() and not any(name.startswith((".", "_")) for name in names)


def _in_folders(source: "str | Path | Iterable[str | Path] | ds.Dataset") -> set[str]:
    """Columns that the names of folders may hold, for those who read the source as one table."""
    if _is_dataset(source):
        return set(source.schema.names)
    if not isinstance(source, str | Path) or not (path := Path(source).expanduser()).is_dir():
        return set()
    folders = (name for file in _files(path) for name in file.relative_to(path).parts[:-1])
    return {name.partition("=")[0] for name in folders if "=" in name}


def _schema(path: Path) -> pa.Schema:
    with _reading(path, " Nothing was sent."):
        return pq.read_schema(path)


@contextmanager
def _reading(path: Path, then: str = " Nothing was written.") -> Iterator[None]:
    try:
        yield
    except MemoryError:
        raise
    except (pa.ArrowException, OSError) as error:
        reason = str(error).strip().rstrip(".")
        raise ParameterError(f"{path} cannot be read as parquet: {reason}.{then}") from None


def _differences(ours: pa.Schema, theirs: pa.Schema) -> str:
    mine, other = (
        {field.name: f"{field.type}{'' if field.nullable else ' not null'}" for field in schema}
        for schema in (ours, theirs)
    )
    found = [
        f"{name!r} is {other.get(name, 'missing')} there and {mine.get(name, 'missing')} here"
        for name in sorted(mine.keys() | other.keys())
        if mine.get(name) != other.get(name)
    ]
    if len(found) > _SHOWN:
        found[_SHOWN:] = [f"and {len(found) - _SHOWN} more"]
    return ", ".join(found) or f"their order is {', '.join(map(repr, theirs.names))} there"
