"""The downloads and results of a checkpoint's shards, and which rows may be sent again by them."""

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from typing import BinaryIO

import pyarrow as pa
import pyarrow.compute as pc

from batchframe.core.batches import Collected, Dropped, ResultsCommitted
from batchframe.core.prices import repriced
from batchframe.core.rates import Prices
from batchframe.core.results import RESULT_SCHEMA
from batchframe.core.retries import unfinished
from batchframe.errors import CheckpointCorruptError, CheckpointError
from batchframe.layout import DownloadKind, unreadable
from batchframe.shard_files import ShardFiles
from batchframe.table_files import read_table, write_table

__all__ = ["ResultFiles"]

#: The columns of results that tell which rows may be tried again.
_FOR_TRIES = ("row_key", "status", "error_code", "http_status")
#: Size of the pieces in which downloads are read back, in bytes.
_READ_BYTES = 1 << 19


class ResultFiles(ShardFiles):
    """Shards with their files, and what came back of them."""

    @contextlib.contextmanager
    def download(self, number: int, kind: DownloadKind) -> Iterator[BinaryIO]:
        """Write a verbatim download; it takes its place when the block ends without an error."""
        with (
            self._storage.replace(self._layout.raw(number, kind)) as file,
            pa.CompressedOutputStream(pa.PythonFile(_KeptOpen(file), mode="w"), "zstd") as stream,
        ):
            yield stream

    def downloaded(self, number: int, kind: DownloadKind) -> Iterator[bytes]:
        """The bytes of a download, in pieces."""
        path = self._layout.raw(number, kind)
        try:
            with (
                self._storage.open(path) as file,
                pa.CompressedInputStream(pa.PythonFile(file, mode="r"), "zstd") as stream,
            ):
                while piece := stream.read(_READ_BYTES):
                    yield piece
        except (OSError, pa.ArrowException) as error:
            raise unreadable(path, error) from error

    def store_results(self, number: int, table: pa.Table, committed: ResultsCommitted) -> None:
        """Write a shard's results, read their keys back, and commit them."""
        self.write_results(number, table)
        self.commit(number, committed)
        if not pc.any(unfinished(table)).as_py():
            self._storage.remove(self.input_path(number))

    def write_results(self, number: int, table: pa.Table) -> None:
        """Write a shard's results and read their keys back."""
        path = self._layout.results(number)
        write_table(self._storage, path, table)
        # One column stands for all: a file whose end is there was written whole, and what is
        # damaged later is made anew from the downloads.
        there = read_table(self._storage, path, RESULT_SCHEMA, ("row_key",))["row_key"]
        if not there.equals(table["row_key"]):
            raise CheckpointCorruptError(f"{path} does not read back as it was written.")

    def collected(self) -> list[int]:
        """The shards whose results are here, in order."""
        return [
            number
            for number, shard in sorted(self.shards.items())
            if isinstance(shard.state, Collected)
        ]

    def results_of(self, number: int, columns: Sequence[str] | None = None) -> pa.Table:
        """The results of one collected shard; CheckpointCorruptError if they are damaged."""
        return read_table(self._storage, self._layout.results(number), RESULT_SCHEMA, columns)

    def results(
        self,
        columns: Sequence[str] = tuple(RESULT_SCHEMA.names),
        *,
        prices: Prices | None = None,
        numbers: Iterable[int] | None = None,
    ) -> pa.Table:
        """All results, in the order of their shards: of a row tried twice, the last counts.

        With `prices`, at the user's own rates where it has any for them. With `numbers`, those of
        these collected shards.
        """
        chosen = self.collected() if numbers is None else numbers
        tables = (self._priced_results(number, columns, prices) for number in chosen)
        return pa.concat_tables([RESULT_SCHEMA.empty_table().select(columns), *tables])

    def results_of_windows(
        self, windows: Sequence[pa.FixedSizeBinaryArray], *, prices: Prices | None = None
    ) -> Iterator[pa.Table]:
        """For each window of row keys its results, in the order of their shards.

        No key is in two windows, and one without a result has none. Where each result belongs is
        looked up once for all, and a shard is read for the windows alone that it has results of.
        """
        numbers = self.collected()
        keys = [self.results_of(number, ("row_key",))["row_key"] for number in numbers]
        nothing = pa.array([], pa.binary(16))
        place = pc.index_in(
            pa.chunked_array([chunk for column in keys for chunk in column.chunks], nothing.type),
            value_set=pa.concat_arrays([nothing, *windows]),
            skip_nulls=True,
        )
        owners = [pa.repeat(pa.scalar(n, pa.int32()), len(w)) for n, w in enumerate(windows)]
        owner = pa.concat_arrays([pa.array([], pa.int32()), *owners]).take(place)
        owner_of, start = {}, 0
        for number, column in zip(numbers, keys, strict=True):
            owner_of[number] = owner.slice(start, len(column)).combine_chunks()
            start += len(column)
        shards_of: dict[int, list[int]] = {}
        for number in numbers:
            for index in owner_of[number].unique().drop_null().to_pylist():
                shards_of.setdefault(index, []).append(number)

        def results(index: int, number: int) -> pa.Table:
            table = self._priced_results(number, RESULT_SCHEMA.names, prices)
            is_ours = pc.equal(owner_of[number], index)
            # What is whole needs no copy.
            is_whole = pc.all(is_ours, skip_nulls=False).as_py()
            return table if is_whole else table.filter(is_ours)

        for index in range(len(windows)):
            tables = (results(index, number) for number in shards_of.get(index, ()))
            yield pa.concat_tables([RESULT_SCHEMA.empty_table(), *tables])

    def _priced_results(
        self, number: int, columns: Sequence[str], prices: Prices | None
    ) -> pa.Table:
        """The results of one collected shard, at the user's own rates where there are any."""
        if not prices:
            return self.results_of(number, columns)
        table = repriced(self.results_of(number), model=self.model_of(number), prices=prices)
        return table.select(columns)

    def to_send_again(self) -> dict[int, pa.FixedSizeBinaryArray]:
        """By shard, keys of rows that may be tried again: their lines are here, and nowhere later.

        A shard that has none is left out.
        """
        tried: dict[int, pa.FixedSizeBinaryArray] = {}
        given_up: dict[int, pa.FixedSizeBinaryArray] = {}
        for number in self.inputs():
            match self.shards[number].state:
                case Collected():
                    results = self.results_of(number, _FOR_TRIES)
                    tried[number] = results.filter(unfinished(results))["row_key"].combine_chunks()
                case Dropped(is_unwanted=False):
                    given_up[number] = self.row_keys(number)
                case _:
                    pass
        # What was given up in favour of a later shard is in that one's place, and unwanted with it.
        newer = {
            **self.newer(tried, given_up={False}),
            **self.newer(given_up, given_up={False, True}),
        }
        found = sorted((tried | given_up).items())
        left = {number: keys.filter(newer[number].is_null()) for number, keys in found}
        return {number: keys for number, keys in left.items() if len(keys)}

    def _remove_inputs(self) -> None:
        """Remove the input files that nothing will be sent from."""
        # What cannot be read or removed now stays, and is looked at the next time.
        with contextlib.suppress(OSError, CheckpointError):
            again = self.to_send_again()
            for number in self.inputs():
                state = self.shards[number].state
                if isinstance(state, Collected | Dropped) and number not in again:
                    self._storage.remove(self.input_path(number))


class _KeptOpen:
    """A file that a compressor cannot close: its bytes are still to be flushed to the disk."""

    closed = False

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def write(self, data: bytes) -> int:
        return self._file.write(data)

    def flush(self) -> None:
        self._file.flush()

    def close(self) -> None:
        pass
